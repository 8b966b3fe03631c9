"""Faults injected on purpose: what is done, what must happen, what happened. docs/reliability.md is made from them.

A test names its fault and, if it tries more than once, sets its counts:

    @fault("sigkill", "Training", "SIGKILL at random moments", "resumes bit for bit from an intact checkpoint")
    def test_killed(seen):
        ...
        seen.tries, seen.lost_steps, seen.figures["restarts"] = 100, 0, 100

Tests of one fault (parameters, a short and a long one) add up. With ADCO_RECORD_FAULTS=1 a passing run writes
results/faults/NAME.json for every fault in it; a test that fails counts as tried and not survived.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from adco.evaluation.records import Record, load_record
from tests import ROOT

RECORDS = ROOT / "results" / "faults"
SLOW = (pytest.mark.slow, pytest.mark.timeout(3600))  # minutes here; four times as long on a slow and busy machine
PARTS = ("Training", "Data", "Untrusted files", "Load", "Supply chain", "Errors")


@dataclass(frozen=True)
class Fault:
    """A fault.

    Attributes:
        name: Also the name of its record's file.
        part: One of PARTS.
        done: What is tried.
        must: What has to happen.
    """

    name: str
    part: str
    done: str
    must: str


@dataclass
class Seen:
    """What a test counted for a fault.

    Attributes:
        tries: How often it was tried.
        survived: How often the expected behaviour followed; None: always.
        lost_steps: Steps done again beyond those since the last checkpoint; None: no training.
        figures: Other numbers for the page, name with unit -> number; of several tests the largest.
    """

    tries: int = 1
    survived: int | None = None
    lost_steps: int | None = None
    figures: dict[str, float] = field(default_factory=dict)

    def __add__(self, other: Seen) -> Seen:
        lost = [seen.lost_steps for seen in (self, other) if seen.lost_steps is not None]
        figures = dict(self.figures)
        for name, value in other.figures.items():
            figures[name] = max(value, figures.get(name, value))
        return Seen(self.tries + other.tries, self.lived + other.lived, sum(lost) if lost else None, figures)

    @property
    def lived(self) -> int:
        return self.tries if self.survived is None else self.survived


FAULTS: dict[str, Fault] = {}


def fault(name: str, part: str, done: str, must: str) -> Callable:
    """Mark a test as one of the named fault. Tests that share a name must give the same texts."""
    entry = Fault(name, part, done, must)
    if part not in PARTS or FAULTS.setdefault(name, entry) != entry:
        raise ValueError(f"fault {name}: part {part} is none of {PARTS}, or the name is taken by another fault")
    return pytest.mark.fault(name)


def write(name: str, seen: Seen, seconds: float) -> None:
    """Write the record of a fault."""
    entry = FAULTS[name]
    scores = {"tries": seen.tries, "survived": seen.lived, **seen.figures}
    if seen.lost_steps is not None:
        scores["lost_steps"] = seen.lost_steps
    settings = {"part": entry.part, "done": entry.done, "must": entry.must}
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    record = Record(
        f"benchmark/fault/{name}", scores, {}, {"name": "generated"}, settings, round(seconds, 1), command=command
    )
    record.write(RECORDS / f"{name}.json")


def markdown(faults: Sequence[Fault]) -> str:
    """One table for each part; a fault without a record is `not run`."""
    lines = []
    for part in PARTS:
        rows = [entry for entry in faults if entry.part == part]
        if rows:
            lines += [f"## {part}", "", "| tried | what must happen | tries | survived | lost steps | measured |"]
            lines += ["|---|---|---|---|---|---|", *map(_row, rows), ""]
    return "\n".join(lines)


def _row(entry: Fault) -> str:
    path = RECORDS / f"{entry.name}.json"
    cells = ["not run", "", "", ""]
    if path.is_file():
        record = load_record(path)
        scores = dict(record.scores)
        cells = [f"{scores.pop(name):,.0f}" if name in scores else "" for name in ("tries", "survived", "lost_steps")]
        figures = ", ".join(f"{name} {value:,.6g}" for name, value in sorted(scores.items()))
        cells.append(f"{figures} [json](../results/faults/{path.name})".strip())
    return f"| {' | '.join([entry.done, entry.must, *cells])} |"
