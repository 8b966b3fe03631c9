"""detectron2's environment hook: with `DETECTRON2_ENV_MODULE=detection.register` its stock scripts run our configs.

detectron2 calls `setup_environment()` when it is imported; this project's scripts call it themselves.
"""

from __future__ import annotations


def setup_environment() -> None:
    """Register `Res5ROIHeadsExtraNorm`, check every load of weights and images, select the implementation of COCOeval.

    Calling it again has no effect, except that the fastest COCOeval is selected again.
    """
    import detection.roi_heads  # noqa: F401  (importing it registers the head)
    from detection import coco_eval, image_errors, safe_loading

    safe_loading.install()
    image_errors.install()
    coco_eval.use()
