"""Of the stages there are, those that are asked for and can run here; and how fast this machine has proved to be."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from adco.evaluation.records import load_record
from adco.launch.jobs import Job
from adco.utils.errors import UserError
from benchmarks.experiments.stages import EvidenceStage


def measured_rate(plan: Mapping, output: Path) -> float | None:
    """Images a second, in units of single-crop AdCo, of the runs of figure 1 that have ended; None without any."""
    rates = []
    for path in sorted(Path(output).glob("runs/*/record.json")):
        method = plan["methods"].get(path.parent.name.rpartition("-s")[0])
        record = load_record(path)
        if method and record.duration_seconds:
            images = record.data.counts["images"] * record.settings["epochs"]
            rates.append(images * method["cost"] / record.duration_seconds)
    return statistics.median(rates) if rates else None


def chosen_only(stages: Sequence[EvidenceStage], only: Sequence[str]) -> list[EvidenceStage]:
    """The stages whose section or job begins with one of the words, and what must end before them. Raises UserError."""
    if not only:
        return list(stages)
    by_name, wanted = {stage.job.name: stage for stage in stages}, set()

    def want(name: str) -> None:
        wanted.add(name)
        for before in by_name[name].job.after:
            want(before)

    for word in only:
        found = [s.job.name for s in stages if s.section == word or s.job.name.startswith(word)]
        if not found:
            sections = ", ".join(dict.fromkeys(stage.section for stage in stages))
            raise UserError(f"--only {word}: no such section or job; sections: {sections}; --list prints the jobs")
        for name in found:
            want(name)
    return [stage for stage in stages if stage.job.name in wanted]


def runnable(stages: Iterable[EvidenceStage]) -> list[Job]:
    """The jobs that can run here; one whose data is absent takes those after it with it."""
    jobs, out = [], set()
    for stage in stages:
        if stage.not_run or set(stage.job.after) & out:
            out.add(stage.job.name)
        else:
            jobs.append(stage.job)
    return jobs
