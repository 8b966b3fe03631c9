"""Races: a candidate and a reference are timed in turn in the same run, so that a busy machine slows both alike.

A benchmark is a file `benchmarks/speed/NAME.py` with a function `run(options: Options) -> Outcome`, which times things
with `race` and returns ratios with goals; `benchmarks/run.py` prints, records and compares them.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TypeVar

import torch

from adco.evaluation.records import Record, load_record
from adco.train.throughput import Throughput
from adco.utils.errors import UserError

T = TypeVar("T")

ROUNDS = 5
REGRESSION = 0.2  # warn when a ratio is this much below the committed one


@dataclass(frozen=True)
class Options:
    """The options of the command line.

    Attributes:
        quick: Whether to end within a minute on two cores.
        reference: A clone of the released code.
        data: A folder of images to use instead of generated ones.
        device: Where the work runs.
    """

    quick: bool = False
    reference: Path | None = None
    data: Path | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def rounds(self) -> int:
        """How many times each contestant runs: at least 5, because the median of fewer is not robust."""
        return ROUNDS if self.quick else 2 * ROUNDS - 1


@dataclass(frozen=True)
class Timing:
    """The times of a contestant.

    Attributes:
        name: The contestant's name.
        seconds: Of each round, in order.
        items: How many items (images, steps) a round processes.
    """

    name: str
    seconds: tuple[float, ...]
    items: float = 1

    @property
    def median(self) -> float:
        """The median seconds of a round."""
        return statistics.median(self.seconds)

    @property
    def rate(self) -> float:
        """Items a second in the median round."""
        return self.items / self.median

    @property
    def spread(self) -> float:
        """The difference between the slowest and the fastest round, relative to the median."""
        return (max(self.seconds) - min(self.seconds)) / self.median


@dataclass(frozen=True)
class Ratio:
    """How many times better than the reference a candidate is.

    Attributes:
        name: The ratio's name.
        value: Above 1 the candidate is better.
        goal: What the project aims at.
    """

    name: str
    value: float
    goal: float

    def line(self) -> str:
        """The line `RATIO name value goal`, which scripts can read."""
        return f"RATIO {self.name} {self.value:.2f} {self.goal:g}"


@dataclass(frozen=True)
class Outcome:
    """The results of a benchmark.

    Attributes:
        unit: What `Timing.items` counts.
        timings: The times of the contestants.
        ratios: The last one is the most important.
        scores: Other figures (MiB, shares).
        data: What it ran on.
        settings: Every size that affects the figures.
        notes: What was not run, and why.
    """

    unit: str
    timings: Sequence[Timing]
    ratios: Sequence[Ratio]
    scores: Mapping[str, float] = field(default_factory=dict)
    data: str = "generated"
    settings: Mapping[str, object] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def table(self) -> str:
        """A table as text: name, milliseconds an item, items a second, and the spread of the rounds."""
        lines = [("contestant", f"ms/{self.unit}", f"{self.unit}/s", "spread")]
        for timing in self.timings:
            row = f"{1e3 / timing.rate:.2f}", f"{timing.rate:.1f}", f"{100 * timing.spread:.0f}%"
            lines.append((timing.name, *row))
        lines += [(name, f"{value:.4g}", "", "") for name, value in self.scores.items()]
        widths = [max(len(line[i]) for line in lines) for i in range(4)]
        return "\n".join(
            "  ".join(
                c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        )

    def record(self, name: str, seconds: float) -> Record:
        """The results as a record of the protocol `benchmark/NAME`. seconds: of the whole benchmark."""
        scores = {f"ratio/{ratio.name}": round(ratio.value, 3) for ratio in self.ratios}
        scores |= {f"{self.unit}_per_s/{timing.name}": round(timing.rate, 3) for timing in self.timings}
        goals = {ratio.name: ratio.goal for ratio in self.ratios}
        settings = {**self.settings, "goals": goals, "rounds": len(self.timings[0].seconds) if self.timings else 0}
        if self.notes:
            settings["notes"] = list(self.notes)
        return Record(f"benchmark/{name}", {**scores, **self.scores}, {}, {"name": self.data}, settings, seconds)


def race(
    contestants: Mapping[str, Callable[[], object]],
    rounds: int = ROUNDS,
    items: float = 1,
    device: torch.device | None = None,
) -> dict[str, Timing]:
    """Run every contestant once unmeasured, then `rounds` times in turn, with the order reversed in each round.

    Args:
        contestants: A call for each name. When it returns a float, that is its time in seconds; otherwise the whole
            call counts, on a GPU from an event before its work to one after it, when no work of other calls is left.
        rounds: How often each is timed.
        items: How many items a call processes.
        device: Where the calls run; None for the CPU.

    Returns:
        The timing of each contestant.
    """
    device = device or torch.device("cpu")
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for round_ in range(rounds + 1):
        order = list(contestants)[:: 1 if round_ % 2 else -1]
        for name in order:
            _synchronize(device)
            (taken,) = timed(contestants[name], 1, device)
            if round_:
                seconds[name].append(taken)
    return {name: Timing(name, tuple(taken), items) for name, taken in seconds.items()}


def repeated(step: Callable[[], object], times: int) -> Callable[[], None]:
    """A call of several steps in succession, as in training: the next is launched while a GPU works on the last."""

    def work() -> None:
        for _ in range(times):
            step()

    return work


def steady(
    made: Iterable[T], use: Callable[[T], object], workers: int, count: int, device: torch.device
) -> tuple[float, float]:
    """Time a loader at its steady rate.

    The first 2 x workers + 2 batches are not used: a loader makes so many ahead, before the clock starts. As many as
    there are workers are dropped at the end: as much work is unfinished when the clock stops as when it starts, and
    nothing is made while another contestant is timed.

    Args:
        made: A pass of `steady_length` batches.
        use: Called with each timed batch.
        workers: The loader's threads or processes.
        count: How many batches are timed.
        device: Where `use` runs.

    Returns:
        Seconds of `count` batches, and the share of them spent waiting for batches.
    """
    rate = Throughput(device)
    stream = rate.waiting(made)
    deque(islice(stream, 2 * workers + 2), maxlen=0)
    _synchronize(device)
    rate.scalars(0)
    for batch in islice(stream, count):
        use(batch)
    _synchronize(device)
    scalars = rate.scalars(count)
    deque(stream, maxlen=0)
    return count / scalars["images_per_second"], scalars["loader_wait_share"]


def steady_count(workers: int, least: int = 30) -> int:
    """How many batches to time: at least `least`, and a multiple of the workers, because processes that make a batch
    each deliver as many batches at a time as there are processes."""
    return -(-least // workers) * workers


def steady_length(workers: int, count: int) -> int:
    """How many batches a pass of a loader must have so that `steady` can time `count` of them."""
    return 2 * workers + 2 + count + workers


def ratio(name: str, reference: Timing, candidate: Timing, goal: float) -> Ratio:
    """How many times faster an item of the candidate is: the median of the ratios of the rounds.

    Both timings must be of one `race`, whose rounds shared the machine.
    """
    rounds = zip(reference.seconds, candidate.seconds, strict=True)
    scale = candidate.items / reference.items
    return Ratio(name, statistics.median(scale * theirs / ours for theirs, ours in rounds), goal)


def regressions(outcome: Outcome, committed: Path) -> list[str]:
    """A line for every ratio that is more than 20% below that of the committed record; none without a record."""
    if not committed.is_file():
        return []
    try:
        before = load_record(committed)
    except UserError as error:
        return [str(error)]
    lines = []
    for ratio_ in outcome.ratios:
        was = before.scores.get(f"ratio/{ratio_.name}")
        if was is not None and ratio_.value < (1 - REGRESSION) * was:
            lines.append(f"{ratio_.name}: {ratio_.value:.2f} is below the recorded {was:.2f} ({before.hardware})")
    return lines


def timed(work: Callable[[], object], rounds: int, device: torch.device) -> list[float]:
    """Time a call several times in succession.

    On a GPU the time of a call is that between two events in its queue. Nothing waits between the calls, so that the
    launches of the CPU do not count while the GPU is busy.

    Args:
        work: The call. Where it returns a float, that is its time.
        rounds: How often it is called.
        device: Where it runs.

    Returns:
        Seconds of each round.
    """
    on_gpu = device.type == "cuda"
    marks, results = [_mark(on_gpu)], []
    for _ in range(rounds):
        results.append(work())
        marks.append(_mark(on_gpu))
    _synchronize(device)
    return [
        result if isinstance(result, float) else _seconds(before, after)
        for result, before, after in zip(results, marks, marks[1:], strict=False)
    ]


def _mark(on_gpu: bool) -> float | torch.cuda.Event:
    """Now: on a GPU an event in its queue, else the clock's seconds."""
    if not on_gpu:
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _seconds(before: float | torch.cuda.Event, after: float | torch.cuda.Event) -> float:
    """The seconds between two marks."""
    return after - before if isinstance(before, float) else before.elapsed_time(after) / 1000


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
