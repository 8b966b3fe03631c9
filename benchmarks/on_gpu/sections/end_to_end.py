"""From JPEG files to updated weights: our loader and step against the released loader and step, ResNet-50, batch 256.

Our loader is the fastest one that the section `loader` has reported, else what `auto` is; the step is the default one.
speed/training.py says which batches of a round are dropped, and why. A round of each comes first, then more as
time allows; the figures of a later round are of all rounds so far.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from adco.data.images import index_folder
from adco.utils.device import resolve_workers, usable_cores
from benchmarks.on_gpu.sections import SECTIONS, Context
from benchmarks.on_gpu.sections.shared import attempt, figures, photographs
from benchmarks.speed.input import backends_for
from benchmarks.speed.race import steady_count
from benchmarks.speed.step import recipe_for
from benchmarks.speed.training import MOST_WORKERS, gpu_hours, our_training, released_training

ROUNDS = 3  # of each, at most


@dataclass
class Side:
    """A contestant. work: seconds of a round; images: of a round; share: reads the last round's share of waiting;
    facts: what is reported beside its figures."""

    work: Callable[[], float]
    images: int
    share: Callable[[], float]
    facts: dict[str, object]
    seconds: list[float] = field(default_factory=list)


def run(context: Context) -> None:
    """Rounds in turn; what is known is reported after each."""
    with tempfile.TemporaryDirectory() as folder:
        sides, longest = contestants(context, Path(folder)), 0.0
        for round_ in range(1 if context.small else ROUNDS):
            for name, side in sides.items():
                if round_ and context.left() < longest:
                    return
                began = time.monotonic()
                with attempt(context, name):
                    side.seconds.append(side.work())
                    report(context, name, side)
                longest = max(longest, time.monotonic() - began)
            report_ratio(context, *sides.values())


def contestants(context: Context, folder: Path) -> dict[str, Side]:
    """Both sides, as far as they can be made."""
    recipe, device, sides, shares = recipe_for(context.device, context.small), context.device, {}, {}
    index, least = index_folder(photographs(context, 16 if context.small else 1024)), 2 if context.small else 30
    backend, workers = best_loader(context)
    with attempt(context, "ours"):
        count = steady_count(workers, least)
        work = our_training(recipe, backend, index, workers, count, folder, device, shares)
        facts = {"backend": backend, "workers": workers}
        sides["ours"] = Side(work, count * recipe.batch, lambda: shares[backend], facts)
    with attempt(context, "released"):
        workers = min(MOST_WORKERS, usable_cores())
        count = steady_count(workers, least)
        work = released_training(recipe, index.root, workers, count, device, shares)
        sides["released"] = Side(work, count * recipe.batch, lambda: shares["released"], {"workers": workers})
    return sides


def best_loader(context: Context) -> tuple[str, int]:
    """The backend and number of threads that delivered the most images in section `loader`."""
    number = next(section.number for section in SECTIONS if section.module == "loader")
    found = [line for line in figures(context, number).values() if line.get("backend") and line["value"]]
    if not found:
        return backends_for(context.device)[0], min(MOST_WORKERS, resolve_workers("auto", context.device))
    best = max(found, key=lambda line: line["value"])
    return best["backend"], best["workers"]


def report(context: Context, name: str, side: Side) -> None:
    """A side's images a second, share of the time spent waiting for images, and GPU hours of an epoch of ImageNet."""
    rate, facts = side.images / statistics.median(side.seconds), {"rounds": len(side.seconds), **side.facts}
    context.report(f"{name}/images_per_second", rate, "images/s", **facts)
    context.report(f"{name}/loader_wait_share", side.share())
    if context.device.type == "cuda":
        context.report(f"{name}/gpu_hours_per_imagenet_epoch", gpu_hours(rate), "h")


def report_ratio(context: Context, *sides: Side) -> None:
    """Our images a second over the released ones, the median over the rounds."""
    if len(sides) == 2 and all(side.seconds for side in sides):
        ours, released = ([side.images / seconds for seconds in side.seconds] for side in sides)
        ratio = statistics.median(a / b for a, b in zip(ours, released, strict=False))
        context.report("ours_over_released", ratio, "times as fast")
