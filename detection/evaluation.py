"""detectron2's evaluators, and what they leave out: VOC predictions kept, AP by class, the mean over those present."""

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
from detection import predictions, scoring

PREDICTIONS = "coco_instances_results.json"  # the name that detectron2's COCOEvaluator gives its own


def build_evaluator(dataset_name: str, folder: Path) -> DatasetEvaluator:
    """The protocol's evaluator for a dataset; predictions go to `folder`/coco_instances_results.json."""
    kind = MetadataCatalog.get(dataset_name).evaluator_type
    if kind == "pascal_voc":
        return VOCEvaluator(dataset_name, folder)
    if kind == "coco":
        fast = scoring.in_use() != "pycocotools"
        return KeepingCOCOEvaluator(dataset_name, output_dir=str(folder), use_fast_impl=fast)
    raise UserError(f"{dataset_name}: no evaluator for {kind!r}; VOC and COCO are supported")


class KeepingCOCOEvaluator(COCOEvaluator):
    """detectron2's COCO evaluator, which also keeps which detection found which box."""

    def evaluate(self, *args, **kwargs) -> dict | None:
        results = super().evaluate(*args, **kwargs)
        written = Path(self._output_dir) / PREDICTIONS
        if comm.is_main_process() and written.is_file() and "annotations" in self._coco_api.dataset:
            found = json.loads(written.read_text())
            if found:
                predictions.write_coco(
                    Path(self._output_dir) / predictions.BOXES, self._coco_api, self._coco_api.loadRes(found)
                )
        return results


class VOCEvaluator(PascalVOCDetectionEvaluator):
    """detectron2's VOC evaluator (11 points for 2007), fit for subsets.

    A class without any test box counts 0 in detectron2's mean over the 20 classes; `AP_present` and its kin are the
    mean over the classes that have one. The two agree on the full test set. `AP-cat` and `AP50-cat` are of one class.
    """

    def __init__(self, dataset_name: str, folder: Path) -> None:
        super().__init__(dataset_name)
        self._folder = Path(folder)
        self._kept: list[dict] = []

    def reset(self) -> None:
        super().reset()
        self._kept = []

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        super().process(inputs, outputs)
        for image, output in zip(inputs, outputs, strict=True):
            instances = output["instances"].to("cpu")
            self._kept += instances_to_coco_json(instances, str(image["image_id"]))

    def evaluate(self) -> dict | None:
        with np.errstate(invalid="ignore", divide="ignore"):  # 0 of 0 boxes found
            results = super().evaluate()
        kept, lines = comm.gather(self._kept, dst=0), comm.gather(dict(self._predictions), dst=0)
        if not comm.is_main_process():
            return None
        gathered = {c: [line for part in lines for line in part.get(c, ())] for c in range(len(self._class_names))}
        write_text(self._folder / PREDICTIONS, json.dumps([item for part in kept for item in part]))
        matched = predictions.write_voc(
            self._folder / predictions.BOXES,
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
        results["bbox"] = scores | predictions.by_class(matched, self._class_names)
        return results

    def classes_present(self) -> int:
        """Classes with at least one test box that is not `difficult`."""
        ids = Path(self._image_set_path).read_text().split()
        counted = Counter(
            item["name"] for i in ids for item in parse_rec(self._anno_file_template.format(i)) if not item["difficult"]
        )
        return sum(counted[name] > 0 for name in self._class_names)
