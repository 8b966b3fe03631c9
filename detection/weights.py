"""A torchvision ResNet state dict under detectron2's names, written as the pickle that detectron2 loads whole."""

from __future__ import annotations

import pickle
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from adco.backbone import Backbone
from adco.errors import UserError
from adco.files import atomic_write, output_folder

AUTHOR = "adco"
# A ResNet's tensors inside any detectron2 model: `backbone.res2...`, `backbone.bottom_up.stem...`, `roi_heads.res5...`
BACKBONE_TENSOR = re.compile(r"(?:^|\.)((?:stem\.conv1|res[2-5]\.\d+)\..+)$")


def detectron2_name(name: str) -> str:
    """`layer1.0.bn2.weight` -> `res2.0.conv2.norm.weight`; `conv1.weight` -> `stem.conv1.weight`, and so on."""
    name = re.sub(r"^(conv1|bn1)\.", r"stem.\1.", name)
    name = re.sub(r"^layer(\d)\.", lambda match: f"res{int(match[1]) + 1}.", name)
    name = re.sub(r"\.bn(\d)\.", r".conv\1.norm.", name)
    return name.replace(".downsample.0.", ".shortcut.").replace(".downsample.1.", ".shortcut.norm.")


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
    """Write the pickle; `check` sees the very file before it takes its name, and when it raises nothing is left behind.

    Without `__author__` and `matching_heuristics` detectron2 would drop the BatchNorm statistics silently.
    origin: what a result record says of the checkpoint that was converted.
    """
    out = Path(out)
    if out.suffix != ".pkl":
        raise UserError(f"{out}: the output must end in .pkl, by which detectron2 knows its own format")
    if out.is_dir():
        raise UserError(f"{out}: this is a folder; name a file that ends in .pkl")
    content = {"model": arrays, "__author__": AUTHOR, "matching_heuristics": True, "origin": origin}
    output_folder(out.parent)
    with tempfile.TemporaryDirectory(prefix=".convert-", dir=out.parent) as folder:
        candidate = Path(folder) / out.name
        with atomic_write(candidate) as file:
            pickle.dump(content, file, protocol=4)
        if check is not None:
            check(candidate)
        candidate.replace(out)


class _ArraysOnly(pickle.Unpickler):
    """Reads NumPy arrays and plain containers; anything else in a pickle is refused, not run."""

    def find_class(self, module: str, name: str) -> object:
        arrays = {"_reconstruct", "_frombuffer", "ndarray", "dtype"}
        if module.split(".")[0] == "numpy" and name in arrays:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is refused")


def origin_of(path: Path) -> dict[str, object]:
    """What a converted file says of the checkpoint it came from; {} for other files."""
    if path.suffix != ".pkl":
        return {}
    with path.open("rb") as file:
        try:
            content = _ArraysOnly(file, encoding="latin1").load()
        except pickle.UnpicklingError:  # not one of ours: it holds more than arrays
            return {}
    ours = isinstance(content, dict) and content.get("__author__") == AUTHOR
    return content.get("origin", {}) if ours else {}
