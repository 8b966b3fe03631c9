"""What came out: records of ended stages side by side in results/, and the names of the stages that have none."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from adco.evaluation.records import Record, load_record
from adco.launch.jobs import Outcome
from adco.suite.plan import RunDirs, Task
from adco.utils.errors import UserError


def collect(tasks: Sequence[Task], outcomes: Mapping[str, Outcome], place: RunDirs) -> dict[str, str]:
    """Put each good stage's records into results/LABEL/PROTOCOL.json, and take out what they no longer stand for.

    Returns stage or conversion -> what is wrong, for those that failed, were left or skipped, or wrote other records
    than planned.
    """
    stages = {task.name for task in tasks}
    wrong = {name: f"failed: {o.why}" for name, o in outcomes.items() if name not in stages and o.status == "failed"}
    for task in tasks:
        if task.why_not:
            continue
        outcome = outcomes[task.name]
        problem = "" if outcome.good else f"{outcome.status}: {outcome.why}"
        for path, protocol in zip(task.records, task.protocols, strict=True):
            target = place.results / task.subject.label / f"{protocol.replace('/', '-')}.json"
            try:
                if not problem:
                    publish(_checked(path, protocol, task.subject.sha256), path, target)
            except UserError as error:
                problem = f"failed: {error}"
            if problem:
                target.unlink(missing_ok=True)
        if problem:
            wrong[task.name] = problem
    return wrong


def publish(record: Record, path: Path, target: Path) -> None:
    """Write a record to its place, what it predicted beside it under the same name."""
    if record.predictions:
        beside = target.with_suffix(Path(record.predictions.file).suffix)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path.parent / record.predictions.file, beside)
        record = replace(record, predictions=replace(record.predictions, file=beside.name))
    record.write(target)


def measured(tasks: Sequence[Task], place: RunDirs) -> dict[str, list[Record]]:
    """Checkpoint -> its records, of the stages of this plan that have them, in the plan's order."""
    found: dict[str, list[Record]] = {}
    for task in tasks:
        found.setdefault(task.subject.short, [])
        for protocol in () if task.why_not else task.protocols:
            path = place.results / task.subject.label / f"{protocol.replace('/', '-')}.json"
            if path.is_file():
                found[task.subject.short].append(load_record(path))
    return found


def _checked(path: Path, protocol: str, sha256: str) -> Record:
    """A stage's record, when it is of what was planned. Raises UserError."""
    record = load_record(path)
    for what, is_now, planned in (
        ("protocol", record.protocol, protocol),
        ("checkpoint", record.checkpoint.pretrained.sha256, sha256),
    ):
        if is_now != planned:
            raise UserError(f"{path}: its {what} is {is_now}, {planned} was planned")
    return record
