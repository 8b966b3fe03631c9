"""The sections of benchmarks/gpu.py: each is a module with `run(context)`, which runs in a process of its own.

A section measures the most important figures first, reports each as soon as it is known, and checks `context.left()`
before it starts something new. `context.small` is true on a CPU: the same code in miniature, so that tests run it.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

MOST_BYTES = 15 << 20  # of the file of figures, whatever a section does


@dataclass(frozen=True)
class Section:
    """A section of the command.

    Attributes:
        number: Its number.
        module: The name of its module in benchmarks/on_gpu/sections.
        seconds: Roughly its time on a GPU.
        title: What it measures.
    """

    number: int
    module: str
    seconds: float
    title: str


SECTIONS = (
    Section(0, "machine", 25, "what the machine is: card, driver, copies, matrix products, the C kernel"),
    Section(1, "correctness", 45, "every method and precision: finite, equal to the CPU, no hidden synchronisation"),
    Section(2, "cuda_tests", 40, "the tests marked cuda"),
    Section(3, "input_races", 20, "input backends under load, against a synchronous run"),
    Section(4, "step", 120, "the ResNet-50 step: eager, compiled, graphs, fp16, released, bare"),
    Section(5, "bank", 20, "the bank: errors and time"),
    Section(6, "loader", 65, "the loader to the GPU"),
    Section(7, "end_to_end", 60, "loader and step against the released ones"),
    Section(8, "profile", 30, "the eager and the compiled step by kernel class"),
    Section(9, "nccl", 20, "NCCL with one rank"),
    Section(10, "detection", 30, "detectron2: 20 iterations of R50-C4 and FPN with AMP"),
    Section(11, "learning", 160, "AdCo and MoCo v2: kNN and linear over epochs"),
)


@dataclass
class Context:
    """What a section is given.

    Attributes:
        section: The section.
        device: Where it runs.
        small: Whether it runs in miniature.
        seconds: The time that it should take.
        data: A folder with train/CLASS/*.jpg and val/CLASS/*.jpg of small photographs, or None.
        work: A folder that is kept between sections and calls (drawn photographs, the state of section 11).
        file: Where figures are appended, one line of JSON each.
        begin: When it started.
    """

    section: Section
    device: torch.device
    small: bool
    seconds: float
    data: Path | None
    work: Path
    file: Path
    begin: float = field(default_factory=time.monotonic)

    def report(self, name: str, value: float | int | str | bool | list | dict | None, unit: str = "", **facts) -> None:
        """Append a figure to the file and print it. facts: what belongs to it (settings, spread)."""
        line = {"section": self.section.number, "name": name, "value": value, "unit": unit, **facts}
        with self.file.open("a") as file:
            if file.tell() > MOST_BYTES:
                raise RuntimeError(f"{self.file} is full: more than {MOST_BYTES >> 20} MiB of figures")
            file.write(json.dumps(line) + "\n")
        shown = f"{value:.5g}" if isinstance(value, float) else value
        print(f"{self.section.number:2} {name}: {shown} {unit}".rstrip(), flush=True)

    def left(self) -> float:
        """Seconds left of the time that this section should take."""
        return self.seconds - (time.monotonic() - self.begin)

    def skip(self, name: str, reason: str) -> None:
        """Report that a figure was not measured, and why."""
        self.report(name, None, reason="not run: " + reason)
