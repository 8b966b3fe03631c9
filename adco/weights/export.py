"""Pack a checkpoint of this project for the package: convolutions in float16, and the manifest row for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from adco.config.diff import changed_fields
from adco.config.loading import load_recipe
from adco.config.validation import METHOD_NAMES
from adco.evaluation.records import Record, load_record
from adco.models.resnet import stage_features
from adco.utils.errors import UserError
from adco.utils.files import sha256_of
from adco.weights.backbone import Backbone, load_backbone
from adco.weights.manifest import as_model
from adco.weights.readers import write_state

BOUND = 2e-3  # largest relative difference of features; float16 rounds a weight by at most 2^-11 = 4.9e-4 of itself
IMAGES, IMAGE_PX = 8, 96


@dataclass(frozen=True)
class Packed:
    """What `pack` made.

    Attributes:
        row: The row for a manifest that has the folder `models` beside it.
        difference: The largest relative difference of features (`features_differ`), at most BOUND.
    """

    row: dict[str, object]
    difference: float


def pack(checkpoint: Path, out: Path, recipe: str, data: str, licence: str) -> Packed:
    """Write a checkpoint's backbone as a small `.safetensors` file.

    Args:
        checkpoint: The last checkpoint of a finished run of tools/train_adco.py, with record.json beside it.
        out: The `.safetensors` file to write.
        recipe: Name of the recipe that it was trained with.
        data: Name of the training data, for readers.
        licence: Licence of the weights.

    Returns:
        The manifest row and the difference of features.

    Raises:
        UserError: There is no record, or it belongs to another file; a weight is beyond float16's range; or features
            change by more than BOUND. No file is written then.
    """
    if out.suffix != ".safetensors":
        raise UserError(f"{out}: expected a name that ends in .safetensors")
    original, record = load_backbone(checkpoint), _record_of(checkpoint)
    small = replace(original, state=rounded(checkpoint, original.state))
    if (difference := features_differ(original, small)) > BOUND:
        raise UserError(f"{checkpoint}: in float16 its features change by {difference:.1e}, more than {BOUND:.0e}")
    trained: dict[str, Any] = dict(record.settings)  # the resolved recipe of the run
    method, epochs = METHOD_NAMES[trained["method"]], int(trained["epochs"])
    changes = changed_fields(asdict(load_recipe(recipe)), trained)
    facts = {"recipe": recipe, "changes": "; ".join(changes) or "none", "method": method, "epochs": epochs}
    facts |= {"data": data, "licence": licence, "commit": record.commit, "from_sha256": original.sha256}
    write_state(out, small.state, facts)
    again = load_backbone(out)
    if not all(torch.equal(again.state[name], tensor) for name, tensor in small.state.items()):
        out.unlink()
        raise UserError(f"{out}: what was read back is not what was written; the file was removed, try another disk")
    row = {"method": method, "epochs": epochs, "data": data, "arch": again.arch, "layout": again.source}
    row |= {"recipe": recipe, "file": f"models/{out.name}", "sha256": again.sha256, "bytes": out.stat().st_size}
    row |= {"licence": licence, "source": f"this project, commit {record.commit[:12]}", "note": _note(facts)}
    as_model(out, out.stem.replace("_", "-"), row)
    return Packed(row, difference)


def rounded(path: Path, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with convolutions in float16 and the rest in float32.

    BatchNorm keeps float32: it is a thousandth of the size, and variances may be beyond float16's range.

    Args:
        path: The file that the message names.
        state: Names -> tensors.

    Raises:
        UserError: A convolution has values beyond float16's range.
    """
    small = {name: tensor.half() if tensor.ndim == 4 else tensor.float() for name, tensor in state.items()}
    for name, tensor in small.items():
        if not torch.isfinite(tensor).all():
            raise UserError(f"{path}: {name} holds values beyond float16's 65504; it cannot be packed")
    return small


@torch.no_grad()
def features_differ(first: Backbone, second: Backbone) -> float:
    """The largest relative difference of two backbones' feature maps.

    Both run in float32 on the same smooth noise, (8, 3, 96, 96).

    Returns:
        The maximum over images and stages res2..res5 of |a - b| / |a|, with the 2-norm over an image's map.
    """
    noise = torch.Generator().manual_seed(0)
    coarse = torch.randn(IMAGES, 3, 8, 8, generator=noise)
    images = F.interpolate(coarse, size=(IMAGE_PX, IMAGE_PX), mode="bilinear")
    a, b = (stage_features(backbone.module(), images) for backbone in (first, second))
    return max(float(((a[k] - b[k]).flatten(1).norm(dim=1) / a[k].flatten(1).norm(dim=1)).max()) for k in a)


def _record_of(checkpoint: Path) -> Record:
    record = load_record(checkpoint.parent / "record.json")
    if not record.protocol.startswith("pretrain/") or record.checkpoint.sha256 != sha256_of(checkpoint):
        raise UserError(
            f"{checkpoint.parent / 'record.json'}: not the record of {checkpoint.name}; give the last checkpoint of a "
            "run that has ended"
        )
    return record


def _note(facts: Mapping[str, object]) -> str:
    changed = "" if facts["changes"] == "none" else f"; the recipe with {facts['changes']}"
    return f"float16 of the checkpoint {str(facts['from_sha256'])[:12]}{changed}"
