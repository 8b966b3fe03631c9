"""Verifies weights: every tensor of a file is loaded, and the converted network computes the same as the original.

detectron2 only warns when a file matches no tensor, so every load is checked here.
"""

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
from detection.config import first_line
from detection.weights import BACKBONE_TENSOR, resnet_settings, tensor_names

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
PIXEL_STD = [58.395, 57.12, 57.375]
INPUT_SHAPE = (1, 3, 65, 97)  # odd sizes, which show a stride or padding at another place


def detectron2_resnet(arch: str) -> nn.Module:
    """detectron2's ResNet of the same architecture as torchvision's `arch`, in eval mode.

    Returns:
        images (B, 3, H, W) -> {"res2": (B, C, H/4, W/4), ..., "res5": (B, C, H/32, W/32)}; with BatchNorm and the
        stride in the 3x3 convolution.
    """
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.NORM = "BN"
    cfg.MODEL.RESNETS.OUT_FEATURES = list(STAGES)
    for key, value in resnet_settings(arch).items():
        cfg.MODEL.RESNETS[key] = value
    return build_resnet_backbone(cfg, ShapeSpec(channels=3)).eval()


@contextmanager
def every_tensor_loads(model: nn.Module, names: Sequence[str], source: str) -> Iterator[None]:
    """Context manager around a load: checks that the named tensors of a model are loaded.

    They are filled with NaN before the load, so a tensor counts as loaded if its values have changed, whatever the
    loader reports.

    Args:
        model: The model that is loaded inside the block; changed in place.
        names: Names in its state dict.
        source: The file that the message names.

    Raises:
        UserError: The load failed, or a tensor still has NaN.
    """
    state = model.state_dict()
    for name in names:
        state[name].fill_(float("nan"))
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{source}: detectron2 cannot load this file: {first_line(error, 200)}") from error
    state = model.state_dict()
    absent = [name for name in names if torch.isnan(state[name]).any()]
    if absent:
        more = f" and {len(absent) - 3} more" if len(absent) > 3 else ""
        raise UserError(
            f"{source}: {len(names) - len(absent)} of {len(names)} tensors were loaded; absent, of another shape, or "
            f"NaN in the file: {', '.join(absent[:3])}{more}; make the file with tools/convert_to_d2.py"
        )


def loaded_resnet(path: Path, arch: str) -> nn.Module:
    """detectron2's ResNet with the tensors of a converted file, loaded by detectron2's own loader.

    Raises:
        UserError: A tensor was not loaded.
    """
    model = detectron2_resnet(arch)
    with every_tensor_loads(model, tensor_names(model), str(path)):
        DetectionCheckpointer(model).load(str(path))
    return model


def resnet_inside(path: Path, arch: str) -> nn.Module:
    """detectron2's ResNet with the backbone tensors of a complete detector's file, selected by detectron2's names.

    Raises:
        UserError: A tensor is missing, or `check_arrangement` refuses the file.
    """
    check_arrangement(path)
    model, content = detectron2_resnet(arch), read_weights(path)
    tensors = content.get("model", content)
    state = {match[1]: tensors[name] for name in tensors if (match := BACKBONE_TENSOR.search(name))}
    with every_tensor_loads(model, tensor_names(model), str(path)):
        model.load_state_dict(state, strict=False)
    return model


def check_arrangement(path: Path) -> str:
    """Check by the config.yaml beside a detector's file that its input and strides are those of torchvision's ResNets.

    Returns:
        A line for the user that says what was assumed.

    Raises:
        UserError: BGR input, another standard deviation of pixels, or the stride in the 1x1 convolution. The tensors
            would fit a torchvision ResNet, but its outputs would differ.
    """
    config = path.parent / "config.yaml"
    if not config.is_file():
        return "no config.yaml beside it: taken for RGB, ImageNet mean and deviation, stride in the 3x3 convolution"
    cfg = get_cfg()
    try:
        cfg.merge_from_file(str(config))
    except Exception as error:
        raise UserError(f"{config}: not a detectron2 config; repair it or move it away") from error
    settings = {
        "INPUT.FORMAT": (cfg.INPUT.FORMAT, "RGB"),
        "MODEL.RESNETS.STRIDE_IN_1X1": (cfg.MODEL.RESNETS.STRIDE_IN_1X1, False),
        "MODEL.PIXEL_STD": (list(cfg.MODEL.PIXEL_STD), PIXEL_STD),
    }
    for key, (value, needed) in settings.items():
        if value != needed:
            raise UserError(
                f"{config}: {key} is {value}, torchvision's ResNets need {needed}; {path.name} cannot be converted"
            )
    return "config.yaml beside it: RGB, ImageNet mean and deviation, stride in the 3x3 convolution"


@torch.no_grad()
def stage_differences(model: nn.Module, backbone: Backbone, dtype: torch.dtype = torch.float32) -> dict[str, float]:
    """Compare res2..res5 of detectron2's ResNet with layer1..layer4 of torchvision's ResNet on a random input.

    Args:
        model: detectron2's ResNet, as `loaded_resnet` returns it; it is converted to `dtype`.
        backbone: The weights of torchvision's ResNet.
        dtype: The type in which both compute.

    Returns:
        Stage -> largest absolute difference, divided by the stage's largest absolute value where that exceeds 1: the
        difference is absolute for small features and relative for large ones.
    """
    images = torch.randn(INPUT_SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    actual = model.to(dtype)(images)
    expected = stage_features(backbone.module().to(dtype), images)
    return {stage: _difference(actual[stage], expected[stage]) for stage in STAGES}


def prove(model: nn.Module, backbone: Backbone) -> dict[str, dict[str, float]]:
    """Check that detectron2's ResNet computes the same as torchvision's, in float32 and float64.

    Args:
        model, backbone: As for `stage_differences`.

    Returns:
        dtype -> stage -> difference, as `stage_differences` defines it.

    Raises:
        UserError: A difference exceeds TOLERANCE, 1e-5 in float32 and 1e-10 in float64.
    """
    differences = {}
    for dtype, tolerance in TOLERANCE.items():
        stages = stage_differences(model, backbone, dtype)
        check_differences(stages, tolerance)
        differences[str(dtype).removeprefix("torch.")] = stages
    return differences


def check_differences(differences: dict[str, float], tolerance: float) -> None:
    """Raise UserError naming every stage whose difference exceeds the tolerance or is NaN."""
    wrong = [f"{stage} {value:.1e}" for stage, value in differences.items() if not value <= tolerance]
    if wrong:
        raise UserError(
            f"the converted backbone differs from the original: {', '.join(wrong)} (allowed {tolerance:.0e}); "
            "nothing was written"
        )


def check_equal(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise UserError unless both have the same names with bit-identical tensors."""
    if actual.keys() != expected.keys() or not all(torch.equal(actual[name], expected[name]) for name in expected):
        raise UserError("what was written reads back differently; nothing was written")


def _difference(actual: Tensor, expected: Tensor) -> float:
    if actual.shape != expected.shape:
        return float("inf")
    return float((actual - expected).abs().max() / expected.abs().max().clamp(min=1))
