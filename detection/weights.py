"""torchvision's ResNet tensors under detectron2's names, and the files that the conversion writes."""

from __future__ import annotations

import pickle
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import nn

from adco.models.resnet import build_resnet
from adco.utils.errors import UserError
from adco.utils.files import atomic_write, output_folder
from adco.weights.backbone import STEP_COUNTER, Backbone
from adco.weights.readers import load_arrays, write_state

AUTHOR = "adco"
# A ResNet's tensors in any detectron2 model: `backbone.res2...`, `backbone.bottom_up.stem...`, `roi_heads.res5...`
BACKBONE_TENSOR = re.compile(r"(?:^|\.)((?:stem\.conv1|res[2-5]\.\d+)\..+)$")


def detectron2_name(name: str) -> str:
    """detectron2's name of a tensor of torchvision's ResNet, e.g. `layer1.0.bn2.weight` -> `res2.0.conv2.norm.weight`.

    The inverse of `adco.weights.layouts.from_detectron2`.
    """
    name = re.sub(r"^(conv1|bn1)\.", r"stem.\1.", name)
    name = re.sub(r"^layer(\d)\.", lambda match: f"res{int(match[1]) + 1}.", name)
    name = re.sub(r"\.bn(\d)\.", r".conv\1.norm.", name)
    return name.replace(".downsample.0.", ".shortcut.").replace(".downsample.1.", ".shortcut.norm.")


def resnet_settings(arch: str) -> dict[str, object]:
    """The values of MODEL.RESNETS for which detectron2 builds torchvision's architecture `arch`."""
    with torch.device("meta"):
        model = build_resnet(arch)
    depth = int(re.sub(r"\D*(\d+).*", r"\1", arch))  # the first number of the name
    return {
        "DEPTH": depth,
        "NUM_GROUPS": model.groups,
        "WIDTH_PER_GROUP": model.base_width,
        "RES2_OUT_CHANNELS": 64 if depth < 50 else 256,
        "STRIDE_IN_1X1": False,  # torchvision has it in the 3x3 convolution
    }


def to_detectron2(backbone: Backbone) -> dict[str, np.ndarray]:
    """The backbone's tensors as detectron2 names them.

    Returns:
        Names -> float32 arrays.

    Raises:
        UserError: The backbone has the stem for small images, which detectron2 does not have.
    """
    if backbone.stem != "imagenet":
        raise UserError(
            f"{backbone.name}: its stem is 3x3 for small images, detectron2's ResNet has the 7x7 stem only; "
            "pretrain with stem imagenet"
        )
    return {detectron2_name(name): tensor.float().numpy() for name, tensor in backbone.state.items()}


def tensor_names(model: nn.Module) -> list[str]:
    """Names of a model's parameters and buffers, without BatchNorm's step counters."""
    return [name for name in model.state_dict() if not name.endswith(STEP_COUNTER)]


def backbone_tensors(model: nn.Module) -> list[str]:
    """Names of the tensors of a detectron2 model that belong to its ResNet, wherever in the model it is."""
    return [name for name in tensor_names(model) if BACKBONE_TENSOR.search(name)]


def write_weights(
    arrays: dict[str, np.ndarray], origin: dict[str, object], out: Path, check: Callable[[Path], None] | None = None
) -> None:
    """Write a `.pkl` file that detectron2 loads completely.

    Args:
        arrays: Tensors under detectron2's names.
        origin: The checkpoint that was converted, as `Backbone.describe` returns it; kept in the file for records.
        out: The file to write.
        check: Called with the written file before it gets its final name. When it raises, no file is written.

    Raises:
        UserError: `out` does not end in .pkl, or cannot be written.
    """
    # without `__author__` and `matching_heuristics` detectron2 drops the BatchNorm statistics silently
    content = {"model": arrays, "__author__": AUTHOR, "matching_heuristics": True, "origin": origin}
    with checked_output(out, (".pkl",), check) as candidate, atomic_write(candidate) as file:
        pickle.dump(content, file, protocol=4)


def write_torchvision(backbone: Backbone, out: Path, check: Callable[[Path], None] | None = None) -> None:
    """Write the backbone under torchvision's names, as `.pth` or `.safetensors`; `check` as for `write_weights`."""
    with checked_output(out, (".pth", ".safetensors"), check) as candidate:
        write_state(candidate, backbone.state, backbone.describe())


@contextmanager
def checked_output(out: Path, suffixes: tuple[str, ...], check: Callable[[Path], None] | None) -> Iterator[Path]:
    """Yield a temporary path to write to; the file becomes `out` after `check(file)` has returned.

    Raises:
        UserError: `out` does not end in one of `suffixes`, or its folder cannot be written.
    """
    out = Path(out)
    if out.suffix not in suffixes or out.is_dir():
        raise UserError(f"{out}: the output must be a file that ends in {' or '.join(suffixes)}")
    output_folder(out.parent)
    with tempfile.TemporaryDirectory(prefix=".convert-", dir=out.parent) as folder:
        candidate = Path(folder) / out.name
        yield candidate
        if check is not None:
            check(candidate)
        candidate.replace(out)


def origin_of(path: Path) -> dict[str, object]:
    """The checkpoint that a converted file was made from, as `write_weights` keeps it; {} for other files."""
    if path.suffix != ".pkl":
        return {}
    with path.open("rb") as file:
        try:
            content = load_arrays(file)
        except Exception:  # not written by this project: more than arrays, or not a pickle
            return {}
    if not isinstance(content, dict) or not isinstance(content.get("origin"), dict):
        return {}
    author = content.get("__author__")
    return content["origin"] if isinstance(author, str) and author == AUTHOR else {}
