"""One conversion from reading to the proof: nothing takes its final name before both networks have agreed."""

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
    """Write the backbone for `detectron2` (.pkl) or `torchvision` (.pth, .safetensors).

    source_file: the detectron2 file that the backbone was read from; the proof then starts from its own names
    Returns (what the user should know, dtype -> stage -> worst difference; {} without proof). Raises UserError when
    tensors are absent or the outputs differ; no file is left then, and an older one stays as it was.
    """
    found: dict[str, dict[str, float]] = {}
    notes = []
    if source_file is not None and source_file.suffix != ".pkl":
        notes.append(verify.check_arrangement(source_file))

    def check_detectron2(written: Path) -> None:
        found.update(verify.prove(verify.loaded_resnet(written, backbone.arch), backbone))

    def check_torchvision(written: Path) -> None:
        again = load_backbone(written, "torchvision")
        verify.check_equal(again.state, backbone.state)
        if backbone.stem == "imagenet":
            found.update(verify.prove(_detectron2_side(backbone, source_file), again))
        else:
            notes.append("3x3 stem, which detectron2 does not have: tensors compared bit for bit, not outputs")

    if target == "detectron2":
        arrays = weights.to_detectron2(backbone)
        weights.write_weights(arrays, backbone.describe(), out, check_detectron2 if proof else None)
    else:
        weights.write_torchvision(backbone, out, check_torchvision if proof else None)
    return notes, found


def local_weights(given: str) -> str:
    """MODEL.WEIGHTS as detectron2 can read it: `zoo://NAME` becomes a proved file in the cache, others stay. Raises
    UserError."""
    if not is_zoo(given):
        return given
    backbone, name = load_backbone(given), SCHEME.sub("", given)
    out = zoo_folder() / "detectron2" / f"{name}-{backbone.sha256[:12]}.pkl"
    with file_lock("zoo-detectron2"):  # several machines' and trials' first processes
        if not out.is_file():
            convert(backbone, "detectron2", out)
    return str(out)


def _detectron2_side(backbone: Backbone, source_file: Path | None) -> nn.Module:
    """detectron2's ResNet to compare with: from the source itself, or from a conversion made for the purpose."""
    if source_file is not None:
        return verify.resnet_inside(source_file, backbone.arch)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.pkl"
        weights.write_weights(weights.to_detectron2(backbone), {}, path)
        return verify.loaded_resnet(path, backbone.arch)
