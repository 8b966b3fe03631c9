"""Which implementation computes COCO's numbers: the compiled ones where they are installed, else pycocotools.

All three compute the same numbers (a test compares them); only the time differs.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

from detectron2.evaluation import coco_evaluation

from adco.utils.errors import UserError
from detection.compat import has_extension

EVALUATORS = ("detectron2", "faster-coco-eval", "pycocotools")  # fastest first


def installed() -> tuple[str, ...]:
    """Those of EVALUATORS that can run here."""
    there = (has_extension(), importlib.util.find_spec("faster_coco_eval") is not None, True)
    return tuple(name for name, available in zip(EVALUATORS, there, strict=True) if available)


def use(name: str | None = None) -> str:
    """Let detectron2's COCOEvaluator use this implementation in this process, the fastest one by default.

    Returns its name. Raises UserError when it is not installed.
    """
    name = name or installed()[0]
    if name not in installed():
        raise UserError(f"--evaluator {name}: not installed here; there are {', '.join(installed())}")
    coco_evaluation.COCOeval_opt = evaluator(name)
    return name


def in_use() -> str:
    """The name of the implementation that this process uses."""
    chosen = coco_evaluation.COCOeval_opt
    return next((name for name in installed() if evaluator(name) is chosen), "unknown")


def evaluator(name: str) -> Callable:
    """(ground truth, detections, "bbox" or "segm") -> an object with pycocotools' COCOeval methods."""
    if name == "detectron2":
        from detectron2.evaluation.fast_eval_api import COCOeval_opt

        return COCOeval_opt
    return faster_coco_eval if name == "faster-coco-eval" else coco_evaluation.COCOeval


def faster_coco_eval(truth, found, iou_type: str):
    """faster-coco-eval's COCOeval on what pycocotools' containers hold."""
    from faster_coco_eval import COCO, COCOeval_faster

    return COCOeval_faster(COCO(truth.dataset), COCO(found.dataset), iou_type, print_function=print)
