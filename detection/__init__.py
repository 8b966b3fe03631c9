"""Detection with detectron2; no other package of the project imports it.

Importing this package applies the compatibility patches, so that detectron2's own modules can be imported afterwards.
Without detectron2 the import fails with one line that says how to install it.
"""

from detection.compat import apply_patches, require_detectron2

require_detectron2()
apply_patches()
