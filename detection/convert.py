"""The conversion between torchvision's and detectron2's files: write, verify, and only then give the final name."""

from __future__ import annotations

import tempfile
from pathlib import Path

from torch import nn

from adco.utils.files import file_lock
from adco.weights.backbone import Backbone, load_backbone
from adco.weights.manifest import zoo_folder
from adco.weights.zoo import SCHEME, is_zoo
from detection import verify, weights


def convert(
    backbone: Backbone, target: str, out: Path, proof: bool = True, source_file: Path | None = None
) -> tuple[list[str], dict[str, dict[str, float]]]:
    """Write a backbone for detectron2 or torchvision and verify that both networks compute the same.

    Args:
        backbone: The weights.
        target: `detectron2` (.pkl) or `torchvision` (.pth, .safetensors).
        out: The file to write.
        proof: Whether to verify the written file.
        source_file: The detectron2 file that the backbone was read from, if it was one; the verification then compares
            with that file, by detectron2's names.

    Returns:
        (lines for the user, dtype -> stage -> largest difference as in `verify.prove`; {} without verification).

    Raises:
        UserError: Tensors are missing or the outputs differ. No file is written then; an existing one is kept.
    """
    differences: dict[str, dict[str, float]] = {}
    notes = []
    if source_file is not None and source_file.suffix != ".pkl":
        notes.append(verify.check_arrangement(source_file))

    def check_detectron2(written: Path) -> None:
        differences.update(verify.prove(verify.loaded_resnet(written, backbone.arch), backbone))

    def check_torchvision(written: Path) -> None:
        again = load_backbone(written, "torchvision")
        verify.check_equal(again.state, backbone.state)
        if backbone.stem == "imagenet":
            differences.update(verify.prove(_detectron2_side(backbone, source_file), again))
        else:
            notes.append("3x3 stem, which detectron2 does not have: tensors compared bit for bit, not outputs")

    if target == "detectron2":
        arrays = weights.to_detectron2(backbone)
        weights.write_weights(arrays, backbone.describe(), out, check_detectron2 if proof else None)
    else:
        weights.write_torchvision(backbone, out, check_torchvision if proof else None)
    return notes, differences


def local_weights(given: str) -> str:
    """MODEL.WEIGHTS in a form that detectron2 can read.

    Args:
        given: MODEL.WEIGHTS. `zoo://NAME` is downloaded, converted and verified once; other values are returned as is.

    Returns:
        The path of the converted file in the cache, or `given`.

    Raises:
        UserError: The model cannot be downloaded or converted.
    """
    if not is_zoo(given):
        return given
    backbone, name = load_backbone(given), SCHEME.sub("", given)
    out = zoo_folder() / "detectron2" / f"{name}-{backbone.sha256[:12]}.pkl"
    with file_lock("zoo-detectron2"):  # several trials or machines may convert at once
        if not out.is_file():
            convert(backbone, "detectron2", out)
    return str(out)


def _detectron2_side(backbone: Backbone, source_file: Path | None) -> nn.Module:
    """detectron2's ResNet to compare with: from the source file, or else from a temporary conversion."""
    if source_file is not None:
        return verify.resnet_inside(source_file, backbone.arch)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.pkl"
        weights.write_weights(weights.to_detectron2(backbone), {}, path)
        return verify.loaded_resnet(path, backbone.arch)
