"""Selects which implementation of COCOeval computes COCO's AP: a compiled one where installed, else pycocotools.

All three give the same numbers, which a test compares; they differ in speed only. The evaluators are in evaluation.py.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Literal

from detectron2.evaluation import coco_evaluation

from adco.utils.errors import UserError
from detection.compat import has_extension

EVALUATORS = ("detectron2", "faster-coco-eval", "pycocotools")  # fastest first


def installed() -> tuple[str, ...]:
    """Those of EVALUATORS that are installed, fastest first."""
    available = (has_extension(), importlib.util.find_spec("faster_coco_eval") is not None, True)
    return tuple(name for name, there in zip(EVALUATORS, available, strict=True) if there)


def use(name: str | None = None) -> str:
    """Make detectron2's COCOEvaluator use an implementation in this process.

    Args:
        name: One of EVALUATORS. Default: the fastest that is installed.

    Returns:
        Its name.

    Raises:
        UserError: It is not installed.
    """
    name = name or installed()[0]
    if name not in installed():
        raise UserError(f"--evaluator {name}: not installed here; there are {', '.join(installed())}")
    coco_evaluation.COCOeval_opt = evaluator(name)
    return name


def in_use() -> str:
    """Name of the implementation that this process uses, `unknown` where it is none of EVALUATORS."""
    current = coco_evaluation.COCOeval_opt
    return next((name for name in installed() if evaluator(name) is current), "unknown")


def evaluator(name: str) -> Callable:
    """The implementation: (ground truth, detections, "bbox" or "segm") -> an object with COCOeval's methods."""
    if name == "detectron2":
        from detectron2.evaluation.fast_eval_api import COCOeval_opt

        return COCOeval_opt
    return faster_coco_eval if name == "faster-coco-eval" else coco_evaluation.COCOeval


def faster_coco_eval(truth, detections, iou_type: Literal["bbox", "segm"]):
    """faster-coco-eval's COCOeval for ground truth and detections in pycocotools' containers."""
    from faster_coco_eval import COCO, COCOeval_faster

    return COCOeval_faster(COCO(truth.dataset), COCO(detections.dataset), iou_type, print_function=print)
