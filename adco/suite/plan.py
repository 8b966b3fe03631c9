"""The plan of a benchmark: every stage for every checkpoint, whether it runs, is reused or cannot run, and its cost."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from adco.data.datasets.locate import Dataset
from adco.evaluation.provenance import code_version
from adco.evaluation.records import Record, load_record, reuse_obstacles
from adco.launch.live_table import duration
from adco.suite.checkpoints import CheckpointSpec
from adco.suite.estimates import Estimate, Rates, disk_bytes, estimate, records_below
from adco.suite.stages import Stage, Suite
from adco.utils.errors import UserError


@dataclass(frozen=True)
class RunDirs:
    """Where and on what stages run.

    Attributes:
        out: The output folder.
        devices: CUDA_VISIBLE_DEVICES of each GPU; empty for the CPU.
        device: `auto`, `cpu` or `cuda`.
        workers: Threads that read images, for each rank of a stage, or `auto`, which a stage resolves where it runs.
        trials: How often a detector is trained; None for the suite's number.
    """

    out: Path
    devices: tuple[str, ...] = ()
    device: str = "auto"
    workers: int | str = "auto"
    trials: int | None = None

    @property
    def results(self) -> Path:
        """The folder of the records."""
        return self.out / "results"

    @property
    def stages(self) -> Path:
        """The folder of the stages' own files."""
        return self.out / "stages"


@dataclass(frozen=True)
class Task:
    """One stage for one checkpoint.

    Attributes:
        checkpoint: What is evaluated.
        stage: By which stage.
        protocols: The protocols of its records.
        folder: Depends on the checkpoint, stage, data and code, so that after a change of any it is a new one.
        data: The datasets that the stage needs.
        obstacle: Why the stage cannot run; empty when it can.
        reused: Why it need not run; empty when it must.
        estimate: The expected time.
        disk: Bytes that it will write, roughly.
        devices: How many GPUs it takes.
        trials: How often a detector is trained.
    """

    checkpoint: CheckpointSpec
    stage: Stage
    protocols: tuple[str, ...]
    folder: Path
    data: tuple[Dataset, ...] = ()
    obstacle: str = ""
    reused: str = ""
    estimate: Estimate = Estimate(None, "")
    disk: int = 0
    devices: int = 1
    trials: int = 1

    @property
    def name(self) -> str:
        """The name of its job."""
        return f"{self.checkpoint.label}--{self.stage.name}"

    @property
    def runs(self) -> bool:
        """Whether it has to run and can."""
        return not self.obstacle and not self.reused

    @property
    def detector(self) -> Path:
        """The OUTPUT_DIR of its detector; of several trials the first one's."""
        return self.folder / "trial_1" if self.trials > 1 else self.folder

    @property
    def records(self) -> tuple[Path, ...]:
        """The files of its records, in the order of `protocols`."""
        if self.stage.config:
            return (self.folder / "record.json",)
        return tuple(self.folder / f"{protocol.replace('/', '-')}.json" for protocol in self.protocols)


def make_plan(
    suite: Suite,
    checkpoints: Sequence[CheckpointSpec],
    datasets: Mapping[str, Dataset],
    missing: Mapping[str, str],
    dirs: RunDirs,
    rates: Rates,
) -> list[Task]:
    """The tasks of a benchmark: for each stage of the suite one task a checkpoint.

    Args:
        suite: The stages.
        checkpoints: What is evaluated.
        datasets: The datasets that are on disk, by name.
        missing: For every other dataset the reason why it cannot be used.
        dirs: Where and on what the stages run.
        rates: Measures images per second where no record says how long a stage takes.
    """
    past = records_below(dirs.results)
    return [
        _task(stage, checkpoint, datasets, missing, dirs, past, rates)
        for stage in suite.stages
        for checkpoint in checkpoints
    ]


def _task(
    stage: Stage,
    checkpoint: CheckpointSpec,
    datasets: Mapping[str, Dataset],
    missing: Mapping[str, str],
    dirs: RunDirs,
    past: Sequence[Record],
    rates: Rates,
) -> Task:
    protocols = stage.protocols(checkpoint.depth or 0)
    if obstacle := _obstacle(stage, checkpoint, missing):
        return Task(checkpoint, stage, protocols, dirs.stages, obstacle=obstacle)
    data = tuple(datasets[name] for name in stage.data)
    trials = (dirs.trials or stage.trials) if stage.config else 1
    devices = max(1, len(dirs.devices)) if stage.ranks else 1
    gpus = min(devices, len(dirs.devices))
    key = _key(stage, checkpoint, protocols, data, trials, gpus)
    folder = dirs.stages / checkpoint.label / f"{stage.name}-{key}"
    task = Task(checkpoint, stage, protocols, folder, data, devices=devices, trials=trials)
    if reason := reusable(task):
        return replace(task, reused=reason)
    if not checkpoint.arch:
        return replace(task, estimate=Estimate(None, "the network is not known before the download"))
    counts = data[0].counts
    cost = estimate(stage, checkpoint.arch, data[0].path, protocols, counts, trials, gpus, past, rates)
    return replace(task, estimate=cost, disk=disk_bytes(stage, checkpoint.arch, counts, trials))


def _obstacle(stage: Stage, checkpoint: CheckpointSpec, missing: Mapping[str, str]) -> str:
    if absent := [name for name in stage.data if name in missing]:
        return missing[absent[0]]
    if not stage.config:
        return ""
    if importlib.util.find_spec("detectron2") is None:
        return "detectron2 is not installed (docs/detection.md says how)"
    if checkpoint.depth is None:
        return f"no detection config for {checkpoint.arch or 'an architecture that is not known'}"
    if checkpoint.stem != "imagenet":
        return "its stem is 3x3 for small images, which detectron2's ResNet does not have"
    return ""


def _key(
    stage: Stage,
    checkpoint: CheckpointSpec,
    protocols: Sequence[str],
    data: Sequence[Dataset],
    trials: int,
    gpus: int,
) -> str:
    """Eight digits of a hash over everything that the result depends on."""
    content = {
        "checkpoint": checkpoint.sha256,
        "protocols": protocols,
        "arguments": stage.arguments,
        "settings": dict(stage.changed),
        "data": {item.name: item.fingerprint for item in data},
        "code": code_version(protocols[0]),
    }
    if stage.config:
        content |= {"trials": trials, "gpus": gpus}  # the batch follows from the number of GPUs, by the linear rule
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


def reusable(task: Task) -> str:
    """Why the task need not run: there are records of the same checkpoint, protocol, data and code. Empty otherwise."""
    try:
        records = [load_record(path) for path in task.records]
    except UserError:
        return ""
    for record, protocol in zip(records, task.protocols, strict=True):
        # the folder's name has a hash with the data's fingerprint, so the record's own need not be compared
        if reuse_obstacles(record, task.checkpoint.sha256, protocol, record.data.fingerprint, code_version(protocol)):
            return ""
    return f"same checkpoint, protocol, data and code, measured {records[0].created[:16].replace('T', ' ')}"


def describe(suite: Suite, tasks: Sequence[Task], dirs: RunDirs) -> str:
    """The plan as text: for every checkpoint its stages with their fate, then a summary."""
    lines, width = [f"{suite.name}: {suite.about}"], max(len(task.stage.name) for task in tasks)
    devices = f"{len(dirs.devices)} GPU(s)" if dirs.devices else "the CPU"
    for checkpoint in dict.fromkeys(task.checkpoint for task in tasks):
        absent = "; not downloaded yet" if checkpoint.absent else ""
        what = (
            "random weights"
            if checkpoint.given.startswith("random:")
            else f"sha256 {checkpoint.sha256[:12] or 'not known'}"
        )
        lines.append(f"\n{checkpoint.short}: {checkpoint.arch}, {what}{absent}")
        for task in (task for task in tasks if task.checkpoint == checkpoint):
            head = f"  {task.stage.name:<{width}}  "
            lines.append(f"{head}{', '.join(task.protocols)}{f', {task.trials} trials' if task.trials > 1 else ''}")
            lines.append(f"{' ' * len(head)}{_fate(task)}")
    running = [task for task in tasks if task.runs]
    known = [task.estimate.minutes for task in running if task.estimate.minutes is not None]
    total = f"{duration(60 * sum(known))} expected on {devices}" if known else "time not known"
    if known and len(known) < len(running):
        total += f", and {len(running) - len(known)} stages of which it is not known"
    free = shutil.disk_usage(next(path for path in (dirs.out, *dirs.out.absolute().parents) if path.exists())).free
    total += f"; up to {gib(sum(t.disk for t in running))} of disk, {gib(free)} free"
    counts = [(len(running), "to run"), (sum(bool(t.reused) for t in tasks), "reused"),
              (sum(bool(t.obstacle) for t in tasks), "not run")]  # fmt: skip
    lines.append(f"\n{', '.join(f'{n} {what}' for n, what in counts if n)}; {total if running else 'nothing to do'}")
    return "\n".join(lines)


def _fate(task: Task) -> str:
    if task.obstacle:
        return f"not run: {task.obstacle}"
    if task.reused:
        return f"reused: {task.reused}"
    minutes = task.estimate.minutes
    time = "time not known" if minutes is None else f"about {duration(60 * minutes)}"
    resumed = "; resumes where it was interrupted" if task.folder.is_dir() and any(task.folder.iterdir()) else ""
    return f"{time} ({task.estimate.source}); up to {gib(task.disk)}{resumed}"


def gib(size: float) -> str:
    """A number of bytes in words: `1.2 GiB`, `34 MiB`."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
