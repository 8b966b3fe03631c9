"""The only rooms that know detectron2.

Importing any of them applies the compatibility patches, so that detectron2's own modules may be imported afterwards.
Without detectron2 the import fails with one line that says how to get it.
"""

from detection.compat import apply_patches, require_detectron2

require_detectron2()
apply_patches()
