"""Section 7: from JPEG files to updated weights: our loader and step against the released ones, ResNet-50, batch 256.

Our loader is the fastest one that the section `loader` has reported, else the one of `auto`; the step is the default.
speed/training.py describes which batches of a round are not timed. Each contestant runs one round, then more as time
allows; figures are of all rounds so far.
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
    """A contestant.

    Attributes:
        work: Runs a round and returns its seconds.
        images: How many images a round has.
        share: Returns the last round's share of time spent waiting.
        facts: Reported with its figures.
        seconds: Of the rounds so far.
    """

    work: Callable[[], float]
    images: int
    share: Callable[[], float]
    facts: dict[str, object]
    seconds: list[float] = field(default_factory=list)


def run(context: Context) -> None:
    """Run rounds in turn and report the figures after each."""
    with tempfile.TemporaryDirectory() as folder:
        sides, longest = contestants(context, Path(folder)), 0.0
        for round_ in range(1 if context.small else ROUNDS):
            for name, side in sides.items():
                if round_ and context.left() < longest:
                    return
                start = time.monotonic()
                with attempt(context, name):
                    side.seconds.append(side.work())
                    report(context, name, side)
                longest = max(longest, time.monotonic() - start)
            report_ratio(context, *sides.values())


def contestants(context: Context, folder: Path) -> dict[str, Side]:
    """Our side and the released one, as far as they can be made."""
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
    """The backend and the number of threads that were the fastest in the section `loader`."""
    number = next(section.number for section in SECTIONS if section.module == "loader")
    ours = [line for line in figures(context, number).values() if line.get("backend") and line["value"]]
    if not ours:
        return backends_for(context.device)[0], min(MOST_WORKERS, resolve_workers("auto", context.device))
    best = max(ours, key=lambda line: line["value"])
    return best["backend"], best["workers"]


def report(context: Context, name: str, side: Side) -> None:
    """Report a side's images a second, its share of time spent waiting for images, and GPU hours an ImageNet epoch."""
    rate, facts = side.images / statistics.median(side.seconds), {"rounds": len(side.seconds), **side.facts}
    context.report(f"{name}/images_per_second", rate, "images/s", **facts)
    context.report(f"{name}/loader_wait_share", side.share())
    if context.device.type == "cuda":
        context.report(f"{name}/gpu_hours_per_imagenet_epoch", gpu_hours(rate), "h")


def report_ratio(context: Context, *sides: Side) -> None:
    """Report our images a second over the released ones: the median over the rounds."""
    if len(sides) == 2 and all(side.seconds for side in sides):
        ours, released = ([side.images / seconds for seconds in side.seconds] for side in sides)
        ratio = statistics.median(a / b for a, b in zip(ours, released, strict=False))
        context.report("ours_over_released", ratio, "times as fast")
