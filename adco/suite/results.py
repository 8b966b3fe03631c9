"""The results of a benchmark: the records of ended stages in results/, and the stages that have none."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from adco.evaluation.records import Record, load_record
from adco.launch.jobs import Outcome
from adco.suite.plan import RunDirs, Task
from adco.utils.errors import UserError


def collect(tasks: Sequence[Task], outcomes: Mapping[str, Outcome], dirs: RunDirs) -> dict[str, str]:
    """Copy the records of the stages that ended well to results/LABEL/PROTOCOL.json; remove those of the others.

    Args:
        tasks: The plan.
        outcomes: How the jobs ended, by name.
        dirs: The folders.

    Returns:
        What is wrong, by the name of the stage or conversion: it failed, was left or skipped, or wrote other records
        than planned.
    """
    stages = {task.name for task in tasks}
    wrong = {name: f"failed: {o.why}" for name, o in outcomes.items() if name not in stages and o.status == "failed"}
    for task in tasks:
        if task.obstacle:
            continue
        outcome = outcomes[task.name]
        problem = "" if outcome.good else f"{outcome.status}: {outcome.why}"
        for path, protocol in zip(task.records, task.protocols, strict=True):
            target = dirs.results / task.checkpoint.label / f"{protocol.replace('/', '-')}.json"
            try:
                if not problem:
                    publish(_checked(path, protocol, task.checkpoint.sha256), path, target)
            except UserError as error:
                problem = f"failed: {error}"
            if problem:
                target.unlink(missing_ok=True)
        if problem:
            wrong[task.name] = problem
    return wrong


def publish(record: Record, path: Path, target: Path) -> None:
    """Write a record to `target`, and copy its predictions beside it under the same name.

    Args:
        record: The record.
        path: Its file, which the predictions lie beside.
        target: The new file.
    """
    if record.predictions:
        beside = target.with_suffix(Path(record.predictions.file).suffix)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path.parent / record.predictions.file, beside)
        record = replace(record, predictions=replace(record.predictions, file=beside.name))
    record.write(target)


def measured(tasks: Sequence[Task], dirs: RunDirs) -> dict[str, list[Record]]:
    """The records of this plan's stages that exist, by the checkpoint's short name, in the plan's order."""
    records: dict[str, list[Record]] = {}
    for task in tasks:
        records.setdefault(task.checkpoint.short, [])
        for protocol in () if task.obstacle else task.protocols:
            path = dirs.results / task.checkpoint.label / f"{protocol.replace('/', '-')}.json"
            if path.is_file():
                records[task.checkpoint.short].append(load_record(path))
    return records


def _checked(path: Path, protocol: str, sha256: str) -> Record:
    """Load a stage's record. Raises UserError when it has another protocol or checkpoint than planned."""
    record = load_record(path)
    for what, recorded, planned in (
        ("protocol", record.protocol, protocol),
        ("checkpoint", record.checkpoint.pretrained.sha256, sha256),
    ):
        if recorded != planned:
            raise UserError(f"{path}: its {what} is {recorded}, {planned} was planned")
    return record
