"""How long a stage will take and how much disk: from this machine's own records, or from a rate measured now."""

from __future__ import annotations

import functools
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from adco.evaluation.provenance import hardware
from adco.evaluation.records import Record, load_record
from adco.models.resnet import build_resnet
from adco.suite.stages import Stage
from adco.utils.errors import UserError

RATE = Path(__file__).resolve().parent.parent.parent / "transfer" / "rate.py"


class Rates:
    """Images per second by network, image size and data set, each measured for a few seconds when first asked for.

    allowed: False measures nothing: every rate is None, as one is that cannot be measured
    """

    def __init__(self, device: str, workers: int | str, allowed: bool = True):
        self.device, self.workers, self.allowed = device, workers, allowed
        self.found: dict[tuple[str, int, Path], float | None] = {}

    def __call__(self, arch: str, image_px: int, data: Path) -> float | None:
        key = (arch, image_px, data)
        if self.allowed and key not in self.found:
            self.found[key] = self._measure(*key)
        return self.found.get(key)

    def _measure(self, arch: str, image_px: int, data: Path) -> float | None:
        """In a process of its own: a plan needs no memory of the GPU."""
        given = {"checkpoint": f"random:{arch}", "data": data, "image-px": image_px, "device": self.device}
        words = [
            word for name, value in (given | {"workers": self.workers}).items() for word in (f"--{name}", str(value))
        ]
        run = subprocess.run([sys.executable, str(RATE), *words], capture_output=True, text=True)
        return float(run.stdout.split()[-1]) if run.returncode == 0 and run.stdout else None


@dataclass(frozen=True)
class Expected:
    """minutes: None when not known; source: what the number is made from, in words."""

    minutes: float | None
    source: str


def expected(
    stage: Stage,
    arch: str,
    data: Path,
    protocols: Sequence[str],
    counts: Mapping[str, int],
    trials: int,
    devices: int,
    past: Sequence[Record],
    rates: Rates,
) -> Expected:
    """How long a stage will take: a record of the same protocol, network and machine first, else images by rate.

    data: where the images are; counts: split -> images; devices: how many GPUs it will have
    past: records of this output folder
    """
    alike = [r for r in past if r.protocol in protocols and r.checkpoint.arch == arch and _kind(r.hardware) == _here()]
    times = [_as_then(stage, record, counts, trials, devices) for record in alike]
    if known := [minutes for minutes in times if minutes is not None]:
        return Expected(max(known), "as this machine's records say")
    images = stage.images(counts)
    if not images:
        return Expected(None, "no record of this machine yet")
    speed = rates(arch, stage.image_px, data)
    if speed is None:
        return Expected(None, "no rate was measured")
    speed *= devices if stage.ranks and devices else 1
    return Expected(images / speed / 60, f"{images:,} images at {speed:.3g}/s, measured now, without what follows")


def disk_bytes(stage: Stage, arch: str, counts: Mapping[str, int], trials: int) -> int:
    """What a stage leaves on the disk, about: float32 features, or detectors with their momentum."""
    width, parameters = _network(arch)
    images = sum(counts.get(split, 0) for split in stage.passes)
    rpn = 9 * (width // 2) ** 2  # the 3x3 convolution on res4, a C4 detector's largest part beside the backbone
    return images * stage.vectors * width * 4 + stage.saves * trials * 8 * (parameters + rpn)


def records_below(folder: Path) -> list[Record]:
    """The records of results/MODEL/*.json; what is none is left out."""
    found = []
    for path in sorted(folder.glob("*/*.json")):
        try:
            found.append(load_record(path))
        except UserError:
            continue
    return found


def _as_then(stage: Stage, record: Record, counts: Mapping[str, int], trials: int, devices: int) -> float | None:
    """Minutes, when the work takes as long an image, or a trial, as it did for the record."""
    minutes = record.duration_seconds / 60
    if stage.config:
        same = record.settings.get("gpus", 0) == devices
        return minutes / int(record.settings.get("trials", 1)) * trials if same else None
    then = stage.images({key.removesuffix("_images"): n for key, n in record.data.counts.items()})
    from_cache = record.settings.get("pictures_computed", 1) == 0
    if from_cache or not then or record.settings.get("ranks", 1) != (max(devices, 1) if stage.ranks else 1):
        return None
    return minutes * stage.images(counts) / then


def _kind(machine: str) -> str:
    """Hardware in a record's words, without how many of it."""
    return re.sub(r"^\d+ (x|cores? of) ", "", machine)


@functools.cache
def _here() -> str:
    return _kind(hardware())


@functools.cache
def _network(arch: str) -> tuple[int, int]:
    """Width of the average-pooled features, and the number of parameters."""
    with torch.device("meta"):
        model = build_resnet(arch)
    return 512 if arch in ("resnet18", "resnet34") else 2048, sum(p.numel() for p in model.parameters())
