"""What every load of weights goes through, detectron2's stock scripts included: nothing is run, nothing lost.

detectron2 unpickles `.pkl` weights without restriction and only warns when none of them matches. `install` closes both.
"""

from __future__ import annotations

import functools

from detectron2.checkpoint import DetectionCheckpointer, detection_checkpoint
from detectron2.utils import comm

from adco.weights.readers import load_arrays
from detection.verify import every_tensor_loads
from detection.weights import backbone_tensors


class RestrictedPickle:
    """Stands in for the `pickle` module where detectron2 reads weights: arrays and plain containers only."""

    load = staticmethod(load_arrays)


def install() -> None:
    """Make detectron2 read `.pkl` files restrictedly and refuse a file that lacks backbone tensors. Once is enough."""
    detection_checkpoint.pickle = RestrictedPickle
    if not hasattr(DetectionCheckpointer.load, "__wrapped__"):
        DetectionCheckpointer.load = guarded(DetectionCheckpointer.load)


def guarded(load):
    """`DetectionCheckpointer.load` that says how many backbone tensors came from the file, and stops at fewer than all.

    The counts are left in the checkpointer's `backbone_loaded` and `backbone_total`.
    """

    @functools.wraps(load)
    def load_and_count(self, path, *args, **kwargs):
        model = getattr(self.model, "module", self.model)
        names = backbone_tensors(list(model.state_dict()))
        self.backbone_loaded, self.backbone_total = 0, len(names)
        if not path or not names:
            say(0, len(names), path)
            return load(self, path, *args, **kwargs)
        with every_tensor_loads(model, names, path):
            result = load(self, path, *args, **kwargs)
        self.backbone_loaded = len(names)
        say(len(names), len(names), path)
        return result

    return load_and_count


def say(loaded: int, count: int, path: str) -> None:
    """One line on the main process."""
    if count and comm.is_main_process():
        source = f"from {path}" if path else "random initialisation (MODEL.WEIGHTS is empty)"
        print(f"backbone: {loaded} of {count} tensors loaded, {source}", flush=True)
