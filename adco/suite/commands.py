"""A plan's tasks as processes: what each is called with."""

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


def jobs_of(tasks: Sequence[Task], place: RunDirs, datasets: Path) -> list[Job]:
    """The tasks as processes: detectors after the conversion of their checkpoint. Writes the detectors' configs."""
    jobs, converted = [], set()
    for task in tasks:
        if task.why_not:
            continue
        after = ()
        if task.stage.config and not task.reused:
            conversion = _conversion(task.subject, place)
            after = (conversion.name,)
            if conversion.name not in converted:
                jobs.append(conversion)
                converted.add(conversion.name)
        words = _detector_words(task, place) if task.stage.config else _transfer_words(task, place)
        environment = {"DETECTRON2_DATASETS": str(datasets)} if task.stage.config else {}
        jobs.append(
            Job(task.name, words, after, task.expected.minutes, reused=lambda task=task: reusable(task) or None,
                environment=environment, devices=task.devices)
        )  # fmt: skip
    return jobs


def _conversion(subject: CheckpointSpec, place: RunDirs) -> Job:
    out = _converted(subject, place)
    words = (sys.executable, str(ROOT / "tools" / "convert_to_d2.py"), subject.given, str(out))
    return Job(f"{subject.label}--convert", words, outputs=(out,), devices=0)


def _converted(subject: CheckpointSpec, place: RunDirs) -> Path:
    return place.stages / subject.label / f"detectron2-{code_version('detection/')[:8]}.pkl"


def _transfer_words(task: Task, place: RunDirs) -> tuple[str, ...]:
    stage, gpus = task.stage, min(task.devices, len(place.devices))
    start = [sys.executable, str(ROOT / stage.tool)]
    if gpus > 1:
        start = [_torchrun(), "--standalone", "--nproc-per-node", str(gpus), start[1]]
    cache = place.stages / task.subject.label / f"features-{code_version(task.protocols[0])[:8]}"
    words = [*start, "--checkpoint", task.subject.given, "--data", str(task.data[0].path), "--output-dir",
             str(task.folder), "--cache-dir", str(cache), "--device", place.device, "--workers", str(place.workers),
             *stage.arguments]  # fmt: skip
    for key, value in stage.changed.items():
        words += [f"--{key.replace('_', '-')}", str(value)]
    return tuple(words)


def _torchrun() -> str:
    beside = Path(sys.executable).with_name("torchrun")
    return str(beside) if beside.is_file() else shutil.which("torchrun") or "torchrun"


def _detector_words(task: Task, place: RunDirs) -> tuple[str, ...]:
    gpus = min(task.devices, len(place.devices))
    words = [sys.executable, str(ROOT / task.stage.tool), "--config-file", str(_config(task)), "--num-gpus", str(gpus)]
    if task.trials > 1:
        words += ["--trials", str(task.trials)]
    elif (task.folder / "last_checkpoint").is_file():
        words.append("--resume")
    return (*words, "MODEL.WEIGHTS", str(_converted(task.subject, place)), "OUTPUT_DIR", str(task.folder))


def _config(task: Task) -> Path:
    """The stage's config, or one written beside its records that bears the changed protocol's name."""
    given, name = ROOT / task.stage.config, task.protocols[0].partition("/")[2]
    if given.stem.startswith(name):
        return given
    changed, content = task.stage.changed, {"_BASE_": str(given)}
    content["MODEL"] = {
        "RESNETS": {"DEPTH": task.subject.depth, "RES2_OUT_CHANNELS": 64 if task.subject.depth < 50 else 256}
    }
    if count := changed.get("iterations"):
        content["SOLVER"] = {"MAX_ITER": count, "STEPS": [max(1, count * 3 // 4)], "WARMUP_ITERS": min(100, count // 4)}
    if px := changed.get("image_px"):
        content["INPUT"] = {"MIN_SIZE_TRAIN": [px], "MAX_SIZE_TRAIN": px * 5 // 3, "MIN_SIZE_TEST": px}
        content["INPUT"]["MAX_SIZE_TEST"] = px * 5 // 3
    path = task.folder / f"{name}.yaml"
    write_text(path, yaml.safe_dump(content))
    return path
