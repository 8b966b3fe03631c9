"""Every stage for every checkpoint: what will run, on what, for how long; what need not run; and why what cannot."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from adco.data.datasets.locate import Dataset
from adco.evaluation.provenance import code_version
from adco.evaluation.records import Record, load_record, reuse_obstacles
from adco.launch.live_table import duration
from adco.suite.checkpoints import CheckpointSpec
from adco.suite.estimates import Expected, Rates, disk_bytes, expected, records_below
from adco.suite.stages import Stage, Suite
from adco.utils.errors import UserError


@dataclass(frozen=True)
class RunDirs:
    """Where and on what stages run. out: the output folder; devices: CUDA_VISIBLE_DEVICES of each GPU, none: the CPU.

    workers: threads that read images for a rank of a stage, or `auto`, which each stage resolves where it runs
    trials: seeds of a detector; None leaves them to the suite
    """

    out: Path
    devices: tuple[str, ...] = ()
    device: str = "auto"
    workers: int | str = "auto"
    trials: int | None = None

    @property
    def results(self) -> Path:
        return self.out / "results"

    @property
    def stages(self) -> Path:
        return self.out / "stages"


@dataclass(frozen=True)
class Task:
    """One stage for one checkpoint.

    folder: of this checkpoint, stage, data and code alone, so that a change of any starts in an empty one
    why_not: why it cannot run; reused: why it need not; both empty: it will
    """

    subject: CheckpointSpec
    stage: Stage
    protocols: tuple[str, ...]
    folder: Path
    data: tuple[Dataset, ...] = ()
    why_not: str = ""
    reused: str = ""
    expected: Expected = field(default_factory=lambda: Expected(None, ""))
    disk: int = 0
    devices: int = 1
    trials: int = 1

    @property
    def name(self) -> str:
        return f"{self.subject.label}--{self.stage.name}"

    @property
    def runs(self) -> bool:
        return not self.why_not and not self.reused

    @property
    def detector(self) -> Path:
        """OUTPUT_DIR of its detector, of the first where there are several trials."""
        return self.folder / "trial_1" if self.trials > 1 else self.folder

    @property
    def records(self) -> tuple[Path, ...]:
        """The files it leaves, in the order of `protocols`."""
        if self.stage.config:
            return (self.folder / "record.json",)
        return tuple(self.folder / f"{protocol.replace('/', '-')}.json" for protocol in self.protocols)


def make_plan(
    suite: Suite,
    subjects: Sequence[CheckpointSpec],
    found: Mapping[str, Dataset],
    missing: Mapping[str, str],
    place: RunDirs,
    rates: Rates,
) -> list[Task]:
    """All tasks, stage by stage with the checkpoints side by side."""
    past = records_below(place.results)
    return [_task(stage, subject, found, missing, place, past, rates) for stage in suite.stages for subject in subjects]


def _task(
    stage: Stage, subject: CheckpointSpec, found, missing, place: RunDirs, past: Sequence[Record], rates: Rates
) -> Task:
    protocols = stage.protocols(subject.depth or 0)
    if why_not := _obstacle(stage, subject, missing):
        return Task(subject, stage, protocols, place.stages, why_not=why_not)
    data = tuple(found[name] for name in stage.data)
    trials = (place.trials or stage.trials) if stage.config else 1
    devices = max(1, len(place.devices)) if stage.ranks else 1
    gpus = min(devices, len(place.devices))
    key = _key(stage, subject, protocols, data, trials, gpus)
    folder = place.stages / subject.label / f"{stage.name}-{key}"
    made = Task(subject, stage, protocols, folder, data, devices=devices, trials=trials)
    if reason := reusable(made):
        return Task(**{**vars(made), "reused": reason})
    if not subject.arch:
        return Task(**{**vars(made), "expected": Expected(None, "the network is not known before the download")})
    counts = data[0].counts
    cost = expected(stage, subject.arch, data[0].path, protocols, counts, trials, gpus, past, rates)
    return Task(**{**vars(made), "expected": cost, "disk": disk_bytes(stage, subject.arch, counts, trials)})


def _obstacle(stage: Stage, subject: CheckpointSpec, missing: Mapping[str, str]) -> str:
    if absent := [name for name in stage.data if name in missing]:
        return missing[absent[0]]
    if not stage.config:
        return ""
    if importlib.util.find_spec("detectron2") is None:
        return "detectron2 is not installed (docs/detection.md says how)"
    if subject.depth is None:
        return f"no detection config for {subject.arch or 'an architecture that is not known'}"
    if subject.stem != "imagenet":
        return "its stem is 3x3 for small images, which detectron2's ResNet does not have"
    return ""


def _key(stage: Stage, subject: CheckpointSpec, protocols, data: Sequence[Dataset], trials: int, gpus: int) -> str:
    """Eight digits of everything that could make another result."""
    content = {
        "checkpoint": subject.sha256,
        "protocols": protocols,
        "arguments": stage.arguments,
        "settings": dict(stage.changed),
        "data": {item.name: item.fingerprint for item in data},
        "code": code_version(protocols[0]),
    }
    if stage.config:
        content |= {"trials": trials, "gpus": gpus}  # fewer GPUs: another batch by the linear rule
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


def reusable(task: Task) -> str:
    """Why the task need not run, in words: records of the same checkpoint, protocol, data and code; else empty."""
    try:
        records = [load_record(path) for path in task.records]
    except UserError:
        return ""
    for record, protocol in zip(records, task.protocols, strict=True):
        # the data's fingerprint is in the folder's name, by a hash of more than the record's own
        if reuse_obstacles(record, task.subject.sha256, protocol, record.data.fingerprint, code_version(protocol)):
            return ""
    return f"same checkpoint, protocol, data and code, measured {records[0].created[:16].replace('T', ' ')}"


def describe(suite: Suite, tasks: Sequence[Task], place: RunDirs) -> str:
    """The plan for a terminal."""
    lines, width = [f"{suite.name}: {suite.about}"], max(len(task.stage.name) for task in tasks)
    devices = f"{len(place.devices)} GPU(s)" if place.devices else "the CPU"
    for subject in dict.fromkeys(task.subject for task in tasks):
        absent = "; not downloaded yet" if subject.absent else ""
        what = (
            "random weights" if subject.given.startswith("random:") else f"sha256 {subject.sha256[:12] or 'not known'}"
        )
        lines.append(f"\n{subject.short}: {subject.arch}, {what}{absent}")
        for task in (task for task in tasks if task.subject == subject):
            head = f"  {task.stage.name:<{width}}  "
            lines.append(f"{head}{', '.join(task.protocols)}{f', {task.trials} trials' if task.trials > 1 else ''}")
            lines.append(f"{' ' * len(head)}{_fate(task)}")
    running = [task for task in tasks if task.runs]
    known = [task.expected.minutes for task in running if task.expected.minutes is not None]
    total = f"{duration(60 * sum(known))} expected on {devices}" if known else "time not known"
    if known and len(known) < len(running):
        total += f", and {len(running) - len(known)} stages of which it is not known"
    free = shutil.disk_usage(next(path for path in (place.out, *place.out.absolute().parents) if path.exists())).free
    total += f"; up to {gib(sum(t.disk for t in running))} of disk, {gib(free)} free"
    counts = [(len(running), "to run"), (sum(bool(t.reused) for t in tasks), "reused"),
              (sum(bool(t.why_not) for t in tasks), "not run")]  # fmt: skip
    lines.append(f"\n{', '.join(f'{n} {what}' for n, what in counts if n)}; {total if running else 'nothing to do'}")
    return "\n".join(lines)


def _fate(task: Task) -> str:
    if task.why_not:
        return f"not run: {task.why_not}"
    if task.reused:
        return f"reused: {task.reused}"
    minutes = task.expected.minutes
    time = "time not known" if minutes is None else f"about {duration(60 * minutes)}"
    start = "; goes on from where it was" if task.folder.is_dir() and any(task.folder.iterdir()) else ""
    return f"{time} ({task.expected.source}); up to {gib(task.disk)}{start}"


def gib(size: float) -> str:
    """`1.2 GiB`, `34 MiB`."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
