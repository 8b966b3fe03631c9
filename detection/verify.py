"""Proof that weights arrive: detectron2 only warns when a file matches nothing, so every load here is checked."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone.resnet import build_resnet_backbone
from torch import Tensor, nn

from adco.backbone import STAGES, Backbone, stage_features
from adco.errors import UserError

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
INPUT_SHAPE = (1, 3, 65, 97)  # odd sizes: a stride or padding in the wrong place shows


def detectron2_resnet(arch: str) -> nn.Module:
    """detectron2's own ResNet with outputs res2..res5, BatchNorm and the stride in the 3x3 convolution; eval mode."""
    depth = int(re.sub(r"\D", "", arch))
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.DEPTH = depth
    cfg.MODEL.RESNETS.NORM = "BN"
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64 if depth < 50 else 256
    cfg.MODEL.RESNETS.OUT_FEATURES = list(STAGES)
    return build_resnet_backbone(cfg, ShapeSpec(channels=3)).eval()


@contextmanager
def every_tensor_loads(model: nn.Module, names: Sequence[str], source: str) -> Iterator[None]:
    """Fill the named tensors with NaN, run the load inside the block, and raise UserError if any value stayed NaN.

    So a tensor counts as loaded when its values have changed, whatever the loader reports about it.
    """
    state = model.state_dict()
    for name in names:
        state[name].fill_(float("nan"))
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UserError(f"{source}: detectron2 cannot load this file: {reason}") from error
    state = model.state_dict()
    absent = [name for name in names if torch.isnan(state[name]).any()]
    if absent:
        more = f" and {len(absent) - 3} more" if len(absent) > 3 else ""
        raise UserError(
            f"{source}: {len(names) - len(absent)} of {len(names)} tensors were loaded; absent, of another shape, or "
            f"NaN in the file: {', '.join(absent[:3])}{more}; make the file with tools/convert_to_d2.py"
        )


@torch.no_grad()
def stage_differences(path: Path, backbone: Backbone, dtype: torch.dtype = torch.float32) -> dict[str, float]:
    """Load the written file into detectron2's ResNet and compare res2..res5 with torchvision's layer1..layer4.

    Returns stage -> worst |difference| on a random input, divided by the stage's largest |value| where that exceeds 1:
    the tolerance is absolute for small features and relative for large ones.
    """
    model = detectron2_resnet(backbone.arch)
    names = [name for name in model.state_dict() if not name.endswith("num_batches_tracked")]
    with every_tensor_loads(model, names, str(path)):
        DetectionCheckpointer(model).load(str(path))
    images = torch.randn(INPUT_SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    found = model.to(dtype)(images)
    expected = stage_features(backbone.module().to(dtype), images)
    return {stage: _difference(found[stage], expected[stage]) for stage in STAGES}


def check_differences(differences: dict[str, float], tolerance: float) -> None:
    """Raise UserError naming every stage beyond the tolerance (NaN counts as beyond)."""
    wrong = [f"{stage} {value:.1e}" for stage, value in differences.items() if not value <= tolerance]
    if wrong:
        raise UserError(
            f"the converted backbone differs from the original: {', '.join(wrong)} (allowed {tolerance:.0e}); "
            "nothing was written"
        )


def _difference(found: Tensor, expected: Tensor) -> float:
    if found.shape != expected.shape:
        return float("inf")
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1))
