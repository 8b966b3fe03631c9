"""Proof that weights arrive: detectron2 only warns when a file matches nothing, so every load here is checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone.resnet import build_resnet_backbone
from torch import Tensor, nn

from adco.models.resnet import STAGES, stage_features
from adco.utils.errors import UserError
from adco.weights.backbone import Backbone
from adco.weights.readers import read_weights
from detection.weights import BACKBONE_TENSOR, resnet_settings

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
PIXEL_STD = [58.395, 57.12, 57.375]
INPUT_SHAPE = (1, 3, 65, 97)  # odd sizes: a stride or padding in the wrong place shows


def detectron2_resnet(arch: str) -> nn.Module:
    """detectron2's own ResNet with outputs res2..res5, BatchNorm and the stride in the 3x3 convolution; eval mode."""
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.NORM = "BN"
    cfg.MODEL.RESNETS.OUT_FEATURES = list(STAGES)
    for key, value in resnet_settings(arch).items():
        cfg.MODEL.RESNETS[key] = value
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


def loaded_resnet(path: Path, arch: str) -> nn.Module:
    """detectron2's ResNet with a converted file's tensors, by detectron2's own loader, which must load all of them."""
    model = detectron2_resnet(arch)
    names = [name for name in model.state_dict() if not name.endswith("num_batches_tracked")]
    with every_tensor_loads(model, names, str(path)):
        DetectionCheckpointer(model).load(str(path))
    return model


def resnet_inside(path: Path, arch: str) -> nn.Module:
    """detectron2's ResNet with the tensors of a whole detector's file, which are found by detectron2's own names.

    Raises UserError when tensors are missing, or when the run's config.yaml beside the file says that the detector
    was fed or built otherwise than torchvision's networks are.
    """
    check_arrangement(path)
    model, content = detectron2_resnet(arch), read_weights(path)
    found = {name: BACKBONE_TENSOR.search(name) for name in content.get("model", content)}
    state = {match[1]: content.get("model", content)[name] for name, match in found.items() if match}
    names = [name for name in model.state_dict() if not name.endswith("num_batches_tracked")]
    with every_tensor_loads(model, names, str(path)):
        model.load_state_dict(state, strict=False)
    return model


def check_arrangement(path: Path) -> str:
    """What the config.yaml beside a detector's file says of its input and strides, in words for the user.

    Raises UserError for BGR, for the stride in the 1x1 convolution, or for other pixel statistics than torchvision's:
    the tensors would fit a torchvision ResNet and mean something else.
    """
    config = path.parent / "config.yaml"
    if not config.is_file():
        return "no config.yaml beside it: taken for RGB, ImageNet mean and deviation, stride in the 3x3 convolution"
    cfg = get_cfg()
    try:
        cfg.merge_from_file(str(config))
    except Exception as error:
        raise UserError(f"{config}: not a detectron2 config; move it away or mend it") from error
    wrong = {
        "INPUT.FORMAT": (cfg.INPUT.FORMAT, "RGB"),
        "MODEL.RESNETS.STRIDE_IN_1X1": (cfg.MODEL.RESNETS.STRIDE_IN_1X1, False),
        "MODEL.PIXEL_STD": (list(cfg.MODEL.PIXEL_STD), PIXEL_STD),
    }
    for key, (found, needed) in wrong.items():
        if found != needed:
            raise UserError(
                f"{config}: {key} is {found}, torchvision's ResNets need {needed}; {path.name} has no equal"
            )
    return "config.yaml beside it: RGB, ImageNet mean and deviation, stride in the 3x3 convolution"


@torch.no_grad()
def stage_differences(model: nn.Module, backbone: Backbone, dtype: torch.dtype = torch.float32) -> dict[str, float]:
    """Compare res2..res5 of detectron2's ResNet with layer1..layer4 of torchvision's with the backbone's weights.

    Returns stage -> worst |difference| on a random input, divided by the stage's largest |value| where that exceeds 1:
    the tolerance is absolute for small features and relative for large ones.
    """
    images = torch.randn(INPUT_SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    found = model.to(dtype)(images)
    expected = stage_features(backbone.module().to(dtype), images)
    return {stage: _difference(found[stage], expected[stage]) for stage in STAGES}


def prove(model: nn.Module, backbone: Backbone) -> dict[str, dict[str, float]]:
    """dtype -> stage -> worst difference. Raises UserError when one exceeds TOLERANCE: 1e-5 float32, 1e-10 float64."""
    found = {}
    for dtype, tolerance in TOLERANCE.items():
        found[str(dtype).removeprefix("torch.")] = differences = stage_differences(model, backbone, dtype)
        check_differences(differences, tolerance)
    return found


def check_differences(differences: dict[str, float], tolerance: float) -> None:
    """Raise UserError naming every stage beyond the tolerance (NaN counts as beyond)."""
    wrong = [f"{stage} {value:.1e}" for stage, value in differences.items() if not value <= tolerance]
    if wrong:
        raise UserError(
            f"the converted backbone differs from the original: {', '.join(wrong)} (allowed {tolerance:.0e}); "
            "nothing was written"
        )


def check_equal(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise UserError unless both hold the same names with bit-identical tensors."""
    if found.keys() != expected.keys() or not all(torch.equal(found[name], expected[name]) for name in expected):
        raise UserError("what was written reads back differently; nothing was written")


def _difference(found: Tensor, expected: Tensor) -> float:
    if found.shape != expected.shape:
        return float("inf")
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1))
