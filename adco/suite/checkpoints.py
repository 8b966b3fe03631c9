"""The checkpoints of a benchmark: each with a name of its own, whatever their files are called."""

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
    """One checkpoint to be judged.

    given: as the tools take it; label: a folder's name that no other checkpoint has, NAME-SHA256; short: for tables
    stem: the ResNet's; absent: it is in the zoo and not downloaded yet
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
        """18, 34, 50, 101: what a detector's config has to say; None for ResNets that our configs do not describe."""
        found = re.fullmatch(r"resnet(\d+)", self.arch)
        return int(found[1]) if found else None


def read_checkpoints(given: Sequence[str], download: bool = True) -> list[CheckpointSpec]:
    """Read and verify every checkpoint: paths, zoo://NAME, names of zoo models, random:ARCH[:SEED].

    download: False takes the manifest's word for models that are not in the cache
    Raises UserError for one that cannot be read. The same content given twice is one subject.
    """
    found: dict[str, CheckpointSpec] = {}
    for text in dict.fromkeys(given):
        subject = _subject(_resolved(text), download)
        found.setdefault(subject.sha256 or subject.given, subject)
    subjects = list(found.values())
    shorts = [subject.short for subject in subjects]
    return [s if shorts.count(s.short) == 1 else CheckpointSpec(**{**vars(s), "short": s.label}) for s in subjects]


def _resolved(given: str) -> str:
    """zoo://NAME for the bare name of a zoo model, a path made absolute, others as they are."""
    if given.startswith("random:") or is_zoo(given):
        return given
    if Path(given).exists():
        return str(Path(given).resolve())
    if given in models():
        return f"zoo://{given}"
    if "/" in given or "." in given:
        return given  # reading it says what is wrong
    raise UserError(f"--checkpoint {given}: no such file, and no zoo model (python tools/zoo.py list), nor random:ARCH")


def _subject(given: str, download: bool) -> CheckpointSpec:
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
