"""A torchvision ResNet state dict under detectron2's names, written as the pickle that detectron2 loads whole."""

from __future__ import annotations

import pickle
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from adco.models.resnet import build_resnet
from adco.utils.errors import UserError
from adco.utils.files import atomic_write, output_folder
from adco.weights.backbone import Backbone
from adco.weights.readers import load_arrays, write_state

AUTHOR = "adco"
# A ResNet's tensors inside any detectron2 model: `backbone.res2...`, `backbone.bottom_up.stem...`, `roi_heads.res5...`
BACKBONE_TENSOR = re.compile(r"(?:^|\.)((?:stem\.conv1|res[2-5]\.\d+)\..+)$")


def detectron2_name(name: str) -> str:
    """`layer1.0.bn2.weight` -> `res2.0.conv2.norm.weight`; `conv1.weight` -> `stem.conv1.weight`, and so on."""
    name = re.sub(r"^(conv1|bn1)\.", r"stem.\1.", name)
    name = re.sub(r"^layer(\d)\.", lambda match: f"res{int(match[1]) + 1}.", name)
    name = re.sub(r"\.bn(\d)\.", r".conv\1.norm.", name)
    return name.replace(".downsample.0.", ".shortcut.").replace(".downsample.1.", ".shortcut.norm.")


def resnet_settings(arch: str) -> dict[str, object]:
    """The keys of MODEL.RESNETS that make detectron2 build this architecture, the stride in the 3x3 convolution."""
    with torch.device("meta"):
        model = build_resnet(arch)
    depth = int(re.search(r"\d+", arch)[0])
    return {
        "DEPTH": depth,
        "NUM_GROUPS": model.groups,
        "WIDTH_PER_GROUP": model.base_width,
        "RES2_OUT_CHANNELS": 64 if depth < 50 else 256,
        "STRIDE_IN_1X1": False,
    }


def to_detectron2(backbone: Backbone) -> dict[str, np.ndarray]:
    """The backbone's tensors as float32 arrays under detectron2's names. Raises UserError for the small-image stem."""
    if backbone.stem != "imagenet":
        raise UserError(
            f"{backbone.name}: its stem is 3x3 for small images, detectron2's ResNet has the 7x7 stem only; "
            "pretrain with stem imagenet"
        )
    return {detectron2_name(name): tensor.float().numpy() for name, tensor in backbone.state.items()}


def backbone_tensors(names: list[str]) -> list[str]:
    """Those of a detectron2 model's tensor names that belong to its ResNet, step counters apart."""
    return [name for name in names if BACKBONE_TENSOR.search(name) and not name.endswith("num_batches_tracked")]


def write_weights(
    arrays: dict[str, np.ndarray], origin: dict[str, object], out: Path, check: Callable[[Path], None] | None = None
) -> None:
    """Write detectron2's pickle; `check` sees the very file first, and when it raises nothing is left behind.

    Without `__author__` and `matching_heuristics` detectron2 would drop the BatchNorm statistics silently.
    origin: what a result record says of the checkpoint that was converted.
    """
    content = {"model": arrays, "__author__": AUTHOR, "matching_heuristics": True, "origin": origin}
    with checked_output(out, (".pkl",), check) as candidate, atomic_write(candidate) as file:
        pickle.dump(content, file, protocol=4)


def write_torchvision(backbone: Backbone, out: Path, check: Callable[[Path], None] | None = None) -> None:
    """Write the backbone under torchvision's names, as `.pth` or `.safetensors`; `check` as in `write_weights`."""
    with checked_output(out, (".pth", ".safetensors"), check) as candidate:
        write_state(candidate, backbone.state, backbone.describe())


@contextmanager
def checked_output(out: Path, suffixes: tuple[str, ...], check: Callable[[Path], None] | None) -> Iterator[Path]:
    """Yield a path to write to; what lies there becomes `out` once `check` has passed it."""
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
    """What a converted file says of the checkpoint it came from; {} for other files."""
    if path.suffix != ".pkl":
        return {}
    with path.open("rb") as file:
        try:
            content = load_arrays(file)
        except Exception:  # not one of ours: it holds more than arrays, or is no pickle
            return {}
    ours = isinstance(content, dict) and content.get("__author__") == AUTHOR
    return content.get("origin", {}) if ours else {}
