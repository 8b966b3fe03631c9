"""Races: a candidate against a reference in the same run, interleaved, so that a busy machine slows both alike.

A benchmark is a file `benchmarks/NAME.py` with one function, `run(options: Options) -> Outcome`, which times things
with `race` and says what it found as ratios with goals; `benchmarks/run.py` prints, records and compares.
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
REGRESSION = 0.2  # a ratio this much below the committed one is worth a warning


@dataclass(frozen=True)
class Options:
    """What the command line says. quick: end within a minute on two cores; reference: a clone of the released code;
    data: a folder of images to use instead of generated ones; device: where the work runs."""

    quick: bool = False
    reference: Path | None = None
    data: Path | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def rounds(self) -> int:
        """How many times each contestant runs: never below 5, because a median of fewer hides nothing."""
        return ROUNDS if self.quick else 2 * ROUNDS - 1


@dataclass(frozen=True)
class Timing:
    """Seconds of each round, in the order run; `items` is how many things one round does (images, steps)."""

    name: str
    seconds: tuple[float, ...]
    items: float = 1

    @property
    def median(self) -> float:
        """Seconds a round, median."""
        return statistics.median(self.seconds)

    @property
    def rate(self) -> float:
        """Items a second at the median."""
        return self.items / self.median

    @property
    def spread(self) -> float:
        """The slowest round's seconds less the fastest's, over the median."""
        return (max(self.seconds) - min(self.seconds)) / self.median


@dataclass(frozen=True)
class Ratio:
    """How many times better than the reference, against a goal. value > 1: the candidate is better."""

    name: str
    value: float
    goal: float

    def line(self) -> str:
        """`RATIO name value goal`, for eyes and scripts."""
        return f"RATIO {self.name} {self.value:.2f} {self.goal:g}"


@dataclass(frozen=True)
class Outcome:
    """What a benchmark found. unit: what `Timing.items` counts; the last ratio is the headline; scores: other figures
    (MiB, shares); data: what it ran on; settings: every size that moves them; notes: what was not run and why."""

    unit: str
    timings: Sequence[Timing]
    ratios: Sequence[Ratio]
    scores: Mapping[str, float] = field(default_factory=dict)
    data: str = "generated"
    settings: Mapping[str, object] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def table(self) -> str:
        """Aligned lines: name, milliseconds an item, items a second, spread of the rounds."""
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
        """The outcome as a result record of protocol `benchmark/NAME`."""
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
    """Run every contestant once unmeasured, then `rounds` times in turn, the order reversed each round.

    A contestant may return a float: the seconds of the part that counts; otherwise the whole call counts. On a GPU that
    is the time between two events, one before the call's work and one after it, and no work of other calls is left.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for round_ in range(rounds + 1):
        order = list(contestants)[:: 1 if round_ % 2 else -1]
        for name in order:
            taken = _timed(contestants[name], device)
            if round_:
                seconds[name].append(taken)
    return {name: Timing(name, tuple(taken), items) for name, taken in seconds.items()}


def repeated(step: Callable[[], object], times: int) -> Callable[[], None]:
    """So many steps on end, as training runs them: a GPU is given the next one while it still works on the last."""

    def work() -> None:
        for _ in range(times):
            step()

    return work


def steady(
    made: Iterable[T], use: Callable[[T], object], workers: int, count: int, device: torch.device
) -> tuple[float, float]:
    """Seconds of taking and using `count` batches at a loader's steady rate, and the share of them spent waiting.

    made: a pass of `steady_length` batches. The first 2 x workers + 2 are dropped unused: a loader makes so many ahead,
    and they may be older than the clock. As many as there are workers are dropped after it: when the clock stops, as
    much work is unfinished as when it starts, and nothing is being made while another contestant is timed.
    """
    rate = Throughput(device)
    stream = rate.waiting(made)
    deque(islice(stream, 2 * workers + 2), maxlen=0)
    _synchronize(device)
    rate.scalars(0)
    for batch in islice(stream, count):
        use(batch)
    _synchronize(device)
    found = rate.scalars(count)
    deque(stream, maxlen=0)
    return count / found["images_per_second"], found["loader_wait_share"]


def steady_count(workers: int, least: int = 30) -> int:
    """How many batches to time: at least so many, and a multiple of the workers, because processes that make a batch
    each deliver as many batches at a time as there are processes."""
    return -(-least // workers) * workers


def steady_length(workers: int, count: int) -> int:
    """How many batches one pass of a loader needs for `steady` to time `count` of them."""
    return 2 * workers + 2 + count + workers


def ratio(name: str, reference: Timing, candidate: Timing, goal: float) -> Ratio:
    """How many times faster an item of the candidate is: the median of the rounds' own ratios.

    Both must come from one `race`: neighbours in time shared the same machine.
    """
    rounds = zip(reference.seconds, candidate.seconds, strict=True)
    scale = candidate.items / reference.items
    return Ratio(name, statistics.median(scale * theirs / ours for theirs, ours in rounds), goal)


def regressions(outcome: Outcome, committed: Path) -> list[str]:
    """One line for every ratio that is more than 20% below the committed record's; none where there is no record."""
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


def _timed(work: Callable[[], object], device: torch.device | None) -> float:
    if device is None or device.type != "cuda":
        start = time.perf_counter()
        result = work()
        return result if isinstance(result, float) else time.perf_counter() - start
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    _synchronize(device)
    before.record()
    result = work()
    after.record()
    _synchronize(device)
    return result if isinstance(result, float) else before.elapsed_time(after) / 1000


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
