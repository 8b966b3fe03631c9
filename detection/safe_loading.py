"""Makes every load of weights by detectron2 safe and complete, also in its stock scripts.

detectron2 unpickles `.pkl` files without restriction, which can execute code, and only warns when no tensor matches.
After `install` a pickle may hold arrays only, and a file that lacks a tensor of the backbone is an error.
"""

from __future__ import annotations

import functools

from detectron2.checkpoint import DetectionCheckpointer, detection_checkpoint
from detectron2.utils import comm

from adco.weights.readers import load_arrays
from detection.verify import every_tensor_loads
from detection.weights import backbone_tensors


class RestrictedPickle:
    """Replaces the `pickle` module where detectron2 reads weights: arrays and plain containers only."""

    load = staticmethod(load_arrays)


def install() -> None:
    """Replace detectron2's unpickler and check every `DetectionCheckpointer.load`. Calling it again has no effect."""
    detection_checkpoint.pickle = RestrictedPickle
    if not hasattr(DetectionCheckpointer.load, "__wrapped__"):
        DetectionCheckpointer.load = checked(DetectionCheckpointer.load)


def checked(load):
    """Wrap `DetectionCheckpointer.load` so that it raises UserError unless all tensors of the backbone are loaded.

    It prints how many were loaded, and sets the checkpointer's attributes `backbone_loaded` and `backbone_total`.
    """

    @functools.wraps(load)
    def load_and_count(self, path, *args, **kwargs):
        model = getattr(self.model, "module", self.model)
        names = backbone_tensors(model)
        self.backbone_loaded, self.backbone_total = 0, len(names)
        if not path or not names:
            report(0, len(names), path)
            return load(self, path, *args, **kwargs)
        with every_tensor_loads(model, names, path):
            result = load(self, path, *args, **kwargs)
        self.backbone_loaded = len(names)
        report(len(names), len(names), path)
        return result

    return load_and_count


def backbone_tensors_loaded(checkpointer: DetectionCheckpointer) -> int:
    """Number of backbone tensors that the checkpointer's last load took from the file; `install` must precede it."""
    return vars(checkpointer)["backbone_loaded"]


def report(loaded: int, count: int, path: str) -> None:
    """Print how many of the backbone's tensors were loaded, on the main process."""
    if count and comm.is_main_process():
        source = f"from {path}" if path else "random initialisation (MODEL.WEIGHTS is empty)"
        print(f"backbone: {loaded} of {count} tensors loaded, {source}", flush=True)
