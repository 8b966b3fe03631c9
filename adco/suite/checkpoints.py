"""The checkpoints of a benchmark, each with a unique name whatever their files are called."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from adco.utils.errors import UserError
from adco.weights.backbone import load_backbone
from adco.weights.zoo import find, is_zoo, models


@dataclass(frozen=True)
class CheckpointSpec:
    """One checkpoint to evaluate.

    Attributes:
        given: The name that the tools take: a path, zoo://NAME or random:ARCH:SEED.
        label: A folder's name that no other checkpoint has: NAME-SHA256.
        short: The name in tables.
        sha256: Of the weights; empty when it is not known before the download.
        arch: The ResNet, e.g. `resnet50`; empty when it is not known before the download.
        stem: The ResNet's stem: `imagenet` or `small`.
        absent: Whether it is a zoo model that has not been downloaded yet.
    """

    given: str
    label: str
    short: str
    sha256: str
    arch: str
    stem: str
    absent: bool = False

    @property
    def depth(self) -> int | None:
        """18, 34, 50 or 101 for a detector's config; None for ResNets that our configs do not describe."""
        match = re.fullmatch(r"resnet(\d+)", self.arch)
        return int(match[1]) if match else None


def read_checkpoints(given: Sequence[str], download: bool = True) -> list[CheckpointSpec]:
    """Read and verify every checkpoint.

    Args:
        given: Paths, zoo://NAME, names of zoo models, or random:ARCH[:SEED]. The same content given twice is one
            checkpoint.
        download: False uses the manifest's entries for models that are not in the cache.

    Returns:
        The checkpoints in the order given.

    Raises:
        UserError: For a checkpoint that cannot be read.
    """
    by_content: dict[str, CheckpointSpec] = {}
    for text in dict.fromkeys(given):
        checkpoint = _read(_resolved(text), download)
        by_content.setdefault(checkpoint.sha256 or checkpoint.given, checkpoint)
    checkpoints = list(by_content.values())
    shorts = [checkpoint.short for checkpoint in checkpoints]
    return [s if shorts.count(s.short) == 1 else CheckpointSpec(**{**vars(s), "short": s.label}) for s in checkpoints]


def _resolved(given: str) -> str:
    """zoo://NAME for the name of a zoo model, an absolute path for a file, other texts unchanged."""
    if given.startswith("random:") or is_zoo(given):
        return given
    if Path(given).exists():
        return str(Path(given).resolve())
    if given in models():
        return f"zoo://{given}"
    if "/" in given or "." in given:
        return given  # the error of reading it says what is wrong
    raise UserError(f"--checkpoint {given}: no such file, and no zoo model (python tools/zoo.py list), nor random:ARCH")


def _read(given: str, download: bool) -> CheckpointSpec:
    if is_zoo(given) and not download:
        model = find(given)
        if not model.path.is_file():
            sha256 = model.sha256 or ""
            return CheckpointSpec(
                given, _label(model.name, sha256), model.name, sha256, model.arch or "", "imagenet", True
            )
    backbone = load_backbone(given)
    name = find(given).name if is_zoo(given) else Path(backbone.name).stem
    if given.startswith("random:"):
        name = backbone.name.replace(":", "-")
        return CheckpointSpec(given, _label(name, ""), name, backbone.sha256, backbone.arch, backbone.stem)
    return CheckpointSpec(given, _label(name, backbone.sha256), name, backbone.sha256, backbone.arch, backbone.stem)


def _label(name: str, sha256: str) -> str:
    return "-".join(part for part in (re.sub(r"[^\w.-]+", "-", name), sha256[:8]) if part)
