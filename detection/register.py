"""detectron2's own environment hook: `DETECTRON2_ENV_MODULE=detection.register` lets its stock scripts run our configs.

detectron2 calls `setup_environment()` while it is being imported; our own scripts call it themselves.
"""

from __future__ import annotations

from detection.compat import use_official_coco_evaluation


def setup_environment() -> None:
    """Register `Res5ROIHeadsExtraNorm` (once) and finish the compatibility patches that importing `detection` began."""
    import detection.heads  # noqa: F401  (importing it registers the head)

    use_official_coco_evaluation()
