"""The evaluators that run after training: detectron2's for VOC and COCO, which also save detections and matches.

In `OUTPUT_DIR/inference` they write the detections (DETECTIONS_FILE) and which true box each one matches
(predictions.py). VOC's adds AP by class and the mean over the classes present. record.py makes a record of the scores.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, PascalVOCDetectionEvaluator
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.evaluation.pascal_voc_evaluation import parse_rec
from detectron2.utils import comm

from adco.utils.errors import UserError
from adco.utils.files import write_text
from detection import coco_eval, predictions

DETECTIONS_FILE = "coco_instances_results.json"  # the name that detectron2's COCOEvaluator uses


def build_evaluator(dataset_name: str, folder: Path) -> DatasetEvaluator:
    """The evaluator of a dataset's protocol.

    Args:
        dataset_name: A VOC or COCO dataset that is registered in detectron2.
        folder: Where detections and matches are written.

    Raises:
        UserError: The dataset is neither VOC nor COCO.
    """
    kind = MetadataCatalog.get(dataset_name).evaluator_type
    if kind == "pascal_voc":
        return VOCEvaluator(dataset_name, folder)
    if kind == "coco":
        return COCOEvaluatorWithMatches(dataset_name, folder)
    raise UserError(f"{dataset_name}: no evaluator for {kind!r}; VOC and COCO are supported")


class COCOEvaluatorWithMatches(COCOEvaluator):
    """detectron2's COCO evaluator; also saves which detection matches which true box."""

    def __init__(self, dataset_name: str, folder: Path) -> None:
        fast = coco_eval.in_use() != "pycocotools"
        super().__init__(dataset_name, output_dir=str(folder), use_fast_impl=fast)
        self._folder = Path(folder)

    def evaluate(self, *args, **kwargs) -> dict | None:
        """As detectron2, and write which detections matched which boxes beside them."""
        results = super().evaluate(*args, **kwargs)
        written = self._folder / DETECTIONS_FILE
        if comm.is_main_process() and written.is_file() and "annotations" in self._coco_api.dataset:
            detections = json.loads(written.read_text())
            if detections:
                path = self._folder / predictions.MATCHES_FILE
                predictions.write_coco_matches(path, self._coco_api, self._coco_api.loadRes(detections))
        return results


class VOCEvaluator(PascalVOCDetectionEvaluator):
    """detectron2's VOC evaluator (11-point AP for 2007), with scores that make sense on subsets too.

    detectron2's AP is the mean over all 20 classes, where a class without test boxes counts 0; `AP_present`,
    `AP50_present` and `AP75_present` are means over the classes that have some. Both are equal on the full test set.
    `AP-cat` and `AP50-cat` are the scores of one class.
    """

    def __init__(self, dataset_name: str, folder: Path) -> None:
        super().__init__(dataset_name)
        self._folder = Path(folder)
        self._detections: list[dict] = []

    def reset(self) -> None:
        """Forget the detections."""
        super().reset()
        self._detections = []

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Take the detections of a batch."""
        super().process(inputs, outputs)
        for image, output in zip(inputs, outputs, strict=True):
            instances = output["instances"].to("cpu")
            self._detections += instances_to_coco_json(instances, str(image["image_id"]))

    def evaluate(self) -> dict | None:
        """As detectron2, and write which detections matched which boxes; a collective call."""
        with np.errstate(invalid="ignore", divide="ignore"):  # recall and precision of a class without boxes
            results = super().evaluate()
        # collective: every process takes part before all but the main one return
        detections, lines = comm.gather(self._detections, dst=0), comm.gather(dict(self._predictions), dst=0)
        if results is None:
            return None
        gathered = {c: [line for part in lines for line in part.get(c, ())] for c in range(len(self._class_names))}
        write_text(self._folder / DETECTIONS_FILE, json.dumps([item for part in detections for item in part]))
        matches = predictions.write_voc_matches(
            self._folder / predictions.MATCHES_FILE,
            gathered,
            self._class_names,
            Path(self._image_set_path),
            self._anno_file_template,
            11 if self._is_2007 else 0,
        )
        scores = {name: float(value) for name, value in results["bbox"].items()}
        share = self.classes_present() / len(self._class_names)
        if share > 0:
            scores |= {f"{name}_present": value / share for name, value in scores.items()}
        results["bbox"] = scores | predictions.ap_by_class(matches, self._class_names)
        return results

    def classes_present(self) -> int:
        """Number of classes with at least one test box that is not `difficult`."""
        ids = Path(self._image_set_path).read_text().split()
        boxes = Counter(
            item["name"] for i in ids for item in parse_rec(self._anno_file_template.format(i)) if not item["difficult"]
        )
        return sum(boxes[name] > 0 for name in self._class_names)
