"""The figures of benchmarks/gpu.py: a file of JSON lines, and the table and the record that are made from it."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from adco.utils.errors import one_line
from benchmarks.on_gpu.sections import SECTIONS


@dataclass(frozen=True)
class Result:
    """How a section ended.

    Attributes:
        result: `ended`, `failed`, `killed`, `skipped` or `interrupted`.
        seconds: The duration.
        code: The exit code of its process; None when it was not started.
        reason: Why it failed or was skipped.
    """

    result: str
    seconds: float = 0.0
    code: int | None = None
    reason: str = ""

    def line(self) -> str:
        """The result as a line for the user."""
        after = "" if self.code is None else f" after {self.seconds:.1f} s"
        return self.result + after + (f": {self.reason}" if self.reason else "")


def append(path: Path, line: Mapping[str, object]) -> None:
    """Append a JSON line; an incomplete line of a killed process is ended first."""
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            file.write(b"" if file.read(1) == b"\n" else b"\n")
        file.write(json.dumps(line).encode() + b"\n")


def read_lines(path: Path) -> list[dict]:
    """The lines of figures.jsonl in order; incomplete lines of killed processes are ignored."""
    lines = []
    for text in path.read_text(errors="replace").splitlines() if path.is_file() else []:
        with contextlib.suppress(ValueError):
            line = json.loads(text)
            if isinstance(line, dict) and line.get("section") in range(len(SECTIONS)):
                lines.append(line)
    return lines


def newest(lines: Sequence[Mapping]) -> tuple[dict[tuple[int, str], dict], dict[int, dict]]:
    """The newest figures and facts.

    Args:
        lines: The lines of figures.jsonl.

    Returns:
        The newest figure of each (section, name), in the order of their first occurrence, and the newest facts of each
        section: those of its Result, and its hardware.
    """
    figures, facts = {}, {}
    for line in lines:
        if "name" in line:
            figures[line["section"], line["name"]] = dict(line)
        else:
            known = facts.setdefault(line["section"], {})
            known.update({key: value for key, value in line.items() if key != "section"})
    return figures, facts


def table(lines: Sequence[Mapping]) -> str:
    """The table as text: every section that has been started, how it ended, and its figures."""
    figures, facts = newest(lines)
    width = max((len(name) for _, name in figures), default=0)
    text = []
    for section in SECTIONS:
        own = [figure for (number, _), figure in figures.items() if number == section.number]
        if own or section.number in facts:
            known = {key: value for key, value in facts.get(section.number, {}).items() if key != "hardware"}
            result = Result(**{"result": "not finished", **known})
            text.append(f"{section.number:2} {section.module}: {result.line()}")
            text += [f"   {figure['name']:{width}}  {_shown(figure)}".rstrip() for figure in own]
    return "\n".join(text)


def _shown(figure: Mapping) -> str:
    value = figure.get("value")
    if value is None:
        return one_line(figure.get("reason", "not run"))
    if isinstance(value, float):
        value = f"{value:.5g}"
    elif isinstance(value, (list, dict)):
        value = json.dumps(value)
    return f"{one_line(value)[:100]} {figure.get('unit', '')}"


def write_record(path: Path, lines: Sequence[Mapping], asked: Mapping[str, object], data: str, commit: str) -> None:
    """Write the figures as a result record, from which the pages are made.

    Args:
        path: The record's file.
        lines: The lines of figures.jsonl. Numbers become scores `section/name`, everything else settings.
        asked: The options of the command line.
        data: The name of the images.
        commit: The project's commit, for a tree that is not a git checkout.
    """
    from adco.evaluation import provenance  # these need packages that may have to be unpacked first
    from adco.evaluation.records import Record

    figures, facts = newest(lines)
    modules = {section.number: section.module for section in SECTIONS}
    named = {f"{modules[number]}/{name}": figure.get("value") for (number, name), figure in figures.items()}
    scores = {name: value for name, value in named.items() if _is_number(value)}
    settings = {
        **asked,
        "sections": {modules[number]: known for number, known in sorted(facts.items())},
        "figures": {name: value for name, value in named.items() if name not in scores},
        "units": {f"{modules[number]}/{name}": figure["unit"] for (number, name), figure in figures.items()
                  if figure.get("unit")},
    }  # fmt: skip
    seconds = round(sum(known.get("seconds", 0) for known in facts.values()), 1)
    hardware = [line["hardware"] for line in lines if "hardware" in line]
    here = provenance.commit()
    Record(
        "benchmark/gpu", scores, {}, {"name": data}, settings, seconds,
        hardware=hardware[-1] if hardware else "unknown", commit=commit if here == "unknown" else here,
    ).write(path)  # fmt: skip


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
