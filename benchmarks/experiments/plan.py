"""The stages of a plan, those of them that are asked for and can run here, and the measured speed of this machine."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from adco.evaluation.records import load_record
from adco.launch.jobs import Job
from adco.utils.errors import UserError


@dataclass(frozen=True)
class EvidenceStage:
    """A job of a section.

    Attributes:
        section: The section of the plan.
        job: The job.
        records: The records that it writes: the name below the results folder and the file.
        not_run: Why it cannot run here; empty when it can.
    """

    section: str
    job: Job
    records: Mapping[str, Path] = field(default_factory=dict)
    not_run: str = ""


@dataclass(frozen=True)
class ExperimentDirs:
    """Where and on what the plan runs.

    Attributes:
        device: `cpu` or `cuda`.
        data: A folder with imagenette160, voc07_subset and coco_mini, each optional.
        output: Where the jobs write.
        images: The number of images in imagenette160/train.
        precision: Of the pretraining.
    """

    device: str
    data: Path
    output: Path
    images: int = 0
    precision: str = "float32"

    def missing(self, *names: str) -> str:
        """Why a job that needs these folders cannot run; empty when all are there."""
        absent = [name for name in names if not (self.data / name).is_dir()]
        return f"not run: no {absent[0]} below {self.data}" if absent else ""


def measured_rate(plan: Mapping, output: Path) -> float | None:
    """Images a second, in units of single-crop AdCo, of the ended runs of figure 1; None when there are none."""
    rates = []
    for path in sorted(Path(output).glob("runs/*/record.json")):
        method = plan["methods"].get(path.parent.name.rpartition("-s")[0])
        record = load_record(path)
        if method and record.duration_seconds:
            images = record.data.counts["images"] * record.settings["epochs"]
            rates.append(images * method["cost"] / record.duration_seconds)
    return statistics.median(rates) if rates else None


def chosen_only(stages: Sequence[EvidenceStage], only: Sequence[str]) -> list[EvidenceStage]:
    """The stages whose section or job starts with one of the words, and those before them. Raises UserError."""
    if not only:
        return list(stages)
    by_name, wanted = {stage.job.name: stage for stage in stages}, set()

    def want(name: str) -> None:
        wanted.add(name)
        for before in by_name[name].job.after:
            want(before)

    for word in only:
        names = [s.job.name for s in stages if s.section == word or s.job.name.startswith(word)]
        if not names:
            sections = ", ".join(dict.fromkeys(stage.section for stage in stages))
            raise UserError(f"--only {word}: no such section or job; sections: {sections}; --list prints the jobs")
        for name in names:
            want(name)
    return [stage for stage in stages if stage.job.name in wanted]


def runnable(stages: Iterable[EvidenceStage]) -> list[Job]:
    """The jobs that can run here: without those whose data is absent and those that come after such a job."""
    jobs, out = [], set()
    for stage in stages:
        if stage.not_run or set(stage.job.after) & out:
            out.add(stage.job.name)
        else:
            jobs.append(stage.job)
    return jobs
