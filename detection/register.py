"""detectron2's own environment hook: `DETECTRON2_ENV_MODULE=detection.register` lets its stock scripts run our configs.

detectron2 calls `setup_environment()` while it is being imported; our own scripts call it themselves.
"""

from __future__ import annotations


def setup_environment() -> None:
    """Register `Res5ROIHeadsExtraNorm`, guard every load of weights and images, choose how COCO is scored.

    Once is enough.
    """
    import detection.roi_heads  # noqa: F401  (importing it registers the head)
    from detection import image_errors, safe_loading, scoring

    safe_loading.install()
    image_errors.install()
    scoring.use()
