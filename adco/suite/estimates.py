"""The expected time and disk space of a stage: from this machine's records, or from a rate that is measured now."""

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

RATE = Path(__file__).resolve().parent.parent.parent / "transfer" / "throughput.py"


class Rates:
    """Images per second by network, image size and dataset. Each is measured for a few seconds at its first use.

    Args:
        device: `auto`, `cpu` or `cuda`.
        workers: Threads that read images, or `auto`.
        allowed: False measures nothing; every rate is then None.
    """

    def __init__(self, device: str, workers: int | str, allowed: bool = True):
        self.device, self.workers, self.allowed = device, workers, allowed
        self.known: dict[tuple[str, int, Path], float | None] = {}

    def __call__(self, arch: str, image_px: int, data: Path) -> float | None:
        """Images per second from the files of `data` through a network; None where it cannot be measured."""
        key = (arch, image_px, data)
        if self.allowed and key not in self.known:
            self.known[key] = self._measure(*key)
        return self.known.get(key)

    def _measure(self, arch: str, image_px: int, data: Path) -> float | None:
        """Measured in a process of its own, so that this one holds no GPU memory."""
        given = {"checkpoint": f"random:{arch}", "data": data, "image-px": image_px, "device": self.device}
        words = [
            word for name, value in (given | {"workers": self.workers}).items() for word in (f"--{name}", str(value))
        ]
        run = subprocess.run([sys.executable, str(RATE), *words], capture_output=True, text=True)
        return float(run.stdout.split()[-1]) if run.returncode == 0 and run.stdout else None


@dataclass(frozen=True)
class Estimate:
    """The expected duration of a stage.

    Attributes:
        minutes: None when it is not known.
        source: What the number follows from, for the user.
    """

    minutes: float | None
    source: str


def estimate(
    stage: Stage,
    arch: str,
    data: Path,
    protocols: Sequence[str],
    counts: Mapping[str, int],
    trials: int,
    devices: int,
    past: Sequence[Record],
    rates: Rates,
) -> Estimate:
    """Estimate the time of a stage: from records of the same protocol, network and machine, else from a rate.

    Args:
        stage: The stage.
        arch: The network, e.g. `resnet50`.
        data: The folder with the images.
        protocols: The protocols that the stage writes.
        counts: The number of images of each split.
        trials: How often a detector is trained.
        devices: How many GPUs the stage will have.
        past: The records of the output folder.
        rates: Measures images per second when there is no such record.
    """
    alike = [r for r in past if r.protocol in protocols and r.checkpoint.arch == arch and _kind(r.hardware) == _here()]
    times = [_as_then(stage, record, counts, trials, devices) for record in alike]
    if known := [minutes for minutes in times if minutes is not None]:
        return Estimate(max(known), "as this machine's records say")
    images = stage.images(counts)
    if not images:
        return Estimate(None, "no record of this machine yet")
    speed = rates(arch, stage.image_px, data)
    if speed is None:
        return Estimate(None, "no rate was measured")
    speed *= devices if stage.ranks and devices else 1
    return Estimate(images / speed / 60, f"{images:,} images at {speed:.3g}/s, measured now, without what follows")


def disk_bytes(stage: Stage, arch: str, counts: Mapping[str, int], trials: int) -> int:
    """Bytes that a stage writes, roughly: float32 features, or detectors with their momentum.

    Args:
        stage: The stage.
        arch: The network, e.g. `resnet50`.
        counts: The number of images of each split.
        trials: How often a detector is trained.
    """
    width, parameters = _network(arch)
    images = sum(counts.get(split, 0) for split in stage.passes)
    rpn = 9 * (width // 2) ** 2  # the 3x3 convolution on res4, a C4 detector's largest part beside the backbone
    return images * stage.vectors * width * 4 + stage.saves * trials * 8 * (parameters + rpn)


def records_below(folder: Path) -> list[Record]:
    """The records of FOLDER/MODEL/*.json; files that are no records are ignored."""
    records = []
    for path in sorted(folder.glob("*/*.json")):
        try:
            records.append(load_record(path))
        except UserError:
            continue
    return records


def _as_then(stage: Stage, record: Record, counts: Mapping[str, int], trials: int, devices: int) -> float | None:
    """Minutes, if an image or a trial takes as long as it did for the record; None where it would not."""
    minutes = record.duration_seconds / 60
    if stage.config:
        same, trials_then = record.settings.get("gpus", 0) == devices, record.settings.get("trials", 1)
        return minutes / trials_then * trials if same and isinstance(trials_then, int) else None
    then = stage.images({key.removesuffix("_images"): n for key, n in record.data.counts.items()})
    from_cache = record.settings.get("pictures_computed", 1) == 0
    if from_cache or not then or record.settings.get("ranks", 1) != (max(devices, 1) if stage.ranks else 1):
        return None
    return minutes * stage.images(counts) / then


def _kind(machine: str) -> str:
    """A record's hardware without the number of devices or cores."""
    return re.sub(r"^\d+ (x|cores? of) ", "", machine)


@functools.cache
def _here() -> str:
    return _kind(hardware())


@functools.cache
def _network(arch: str) -> tuple[int, int]:
    """The width of the average-pooled features, and the number of parameters."""
    with torch.device("meta"):
        model = build_resnet(arch)
    return 512 if arch in ("resnet18", "resnet34") else 2048, sum(p.numel() for p in model.parameters())
