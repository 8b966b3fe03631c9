"""The command lines of a plan's tasks."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from adco.evaluation.provenance import code_version
from adco.launch.jobs import Job
from adco.suite.checkpoints import CheckpointSpec
from adco.suite.plan import RunDirs, Task, reusable
from adco.utils.files import write_text

ROOT = Path(__file__).resolve().parent.parent.parent


def jobs_of(tasks: Sequence[Task], dirs: RunDirs, datasets: Path) -> list[Job]:
    """The jobs of a plan's tasks, for `adco.launch.jobs.run_jobs`. Writes the configs of changed detectors.

    Args:
        tasks: The plan; tasks with an obstacle are left out.
        dirs: Where and on what they run.
        datasets: The folder that detectron2 reads its datasets from.

    Returns:
        The jobs in the tasks' order; before the first detector of a checkpoint comes the checkpoint's conversion.
    """
    jobs: list[Job] = []
    converted: set[str] = set()
    for task in tasks:
        if task.obstacle:
            continue
        after: tuple[str, ...] = ()
        if task.stage.config and not task.reused:
            conversion = _conversion(task.checkpoint, dirs)
            after = (conversion.name,)
            if conversion.name not in converted:
                jobs.append(conversion)
                converted.add(conversion.name)
        words = _detector_words(task, dirs) if task.stage.config else _transfer_words(task, dirs)
        environment = {"DETECTRON2_DATASETS": str(datasets)} if task.stage.config else {}
        jobs.append(
            Job(task.name, words, after, task.estimate.minutes, reused=lambda task=task: reusable(task) or None,
                environment=environment, devices=task.devices)
        )  # fmt: skip
    return jobs


def _conversion(checkpoint: CheckpointSpec, dirs: RunDirs) -> Job:
    out = _converted(checkpoint, dirs)
    words = (sys.executable, str(ROOT / "tools" / "convert_to_d2.py"), checkpoint.given, str(out))
    return Job(f"{checkpoint.label}--convert", words, outputs=(out,), devices=0)


def _converted(checkpoint: CheckpointSpec, dirs: RunDirs) -> Path:
    return dirs.stages / checkpoint.label / f"detectron2-{code_version('detection/')[:8]}.pkl"


def _transfer_words(task: Task, dirs: RunDirs) -> tuple[str, ...]:
    stage, gpus = task.stage, min(task.devices, len(dirs.devices))
    start = [sys.executable, str(ROOT / stage.tool)]
    if gpus > 1:
        start = [_torchrun(), "--standalone", "--nproc-per-node", str(gpus), start[1]]
    cache = dirs.stages / task.checkpoint.label / f"features-{code_version(task.protocols[0])[:8]}"
    words = [*start, "--checkpoint", task.checkpoint.given, "--data", str(task.data[0].path), "--output-dir",
             str(task.folder), "--cache-dir", str(cache), "--device", dirs.device, "--workers", str(dirs.workers),
             *stage.arguments]  # fmt: skip
    for key, value in stage.changed.items():
        words += [f"--{key.replace('_', '-')}", str(value)]
    return tuple(words)


def _torchrun() -> str:
    beside = Path(sys.executable).with_name("torchrun")
    return str(beside) if beside.is_file() else shutil.which("torchrun") or "torchrun"


def _detector_words(task: Task, dirs: RunDirs) -> tuple[str, ...]:
    gpus = min(task.devices, len(dirs.devices))
    words = [sys.executable, str(ROOT / task.stage.tool), "--config-file", str(_config(task)), "--num-gpus", str(gpus)]
    if task.trials > 1:
        words += ["--trials", str(task.trials)]
    elif (task.folder / "last_checkpoint").is_file():
        words.append("--resume")
    return (*words, "MODEL.WEIGHTS", str(_converted(task.checkpoint, dirs)), "OUTPUT_DIR", str(task.folder))


def _config(task: Task) -> Path:
    """The stage's config file, or a changed one with the changed protocol's name, written beside the records."""
    given, name = ROOT / task.stage.config, task.protocols[0].partition("/")[2]
    if given.stem.startswith(name):
        return given
    changed, depth = task.stage.changed, task.checkpoint.depth
    assert depth is not None  # a detector of another network has an obstacle and gets no job
    resnet = {"DEPTH": depth, "RES2_OUT_CHANNELS": 64 if depth < 50 else 256}
    content: dict[str, object] = {"_BASE_": str(given), "MODEL": {"RESNETS": resnet}}
    if count := changed.get("iterations"):
        content["SOLVER"] = {"MAX_ITER": count, "STEPS": [max(1, count * 3 // 4)], "WARMUP_ITERS": min(100, count // 4)}
    if px := changed.get("image_px"):
        longest = px * 5 // 3
        content["INPUT"] = {"MIN_SIZE_TRAIN": [px], "MAX_SIZE_TRAIN": longest, "MIN_SIZE_TEST": px,
                            "MAX_SIZE_TEST": longest}  # fmt: skip
    path = task.folder / f"{name}.yaml"
    write_text(path, yaml.safe_dump(content))
    return path
