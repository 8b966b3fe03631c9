"""Run the same detector with several seeds, each in a folder and a process of its own, and write one record for all.

The trials are no jobs of `adco.launch.jobs`: each uses all GPUs, its log goes to the terminal, and on several machines
every machine starts the trials in the same folder.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from detectron2.config import CfgNode

from adco.evaluation.records import Record, Score, load_record, record_of
from adco.utils.errors import UserError
from adco.utils.serialization import plain
from detection.record import make_record
from detection.trainer import DetectionRun

SCRIPT = Path(__file__).with_name("train_net.py")
# Settings that differ between the trials of a run.
OWN = ("seed", "speed", "resumed", "undefined_scores", "backbone_tensors_loaded")


def run_trials(count: int, argv: Sequence[str], cfg: CfgNode, job: DetectionRun, main: bool = True) -> int:
    """Run the trials that are not finished, and write OUTPUT_DIR/record.json.

    Args:
        count: How many trials.
        argv: The arguments of detection/train_net.py.
        cfg: The config that they give.
        job: Describes the run.
        main: Whether this machine writes the record: of several machines the first.

    Returns:
        The exit code of the first trial that fails, else 0.

    Raises:
        UserError: For a finished trial of another run.
    """
    out, first = Path(cfg.OUTPUT_DIR), seed_of_first(cfg)
    settings = job.settings() | {"eval_only": False}
    expected = as_read(make_record(cfg, job.config_name, {}, cfg.MODEL.WEIGHTS, job.data, settings, 0))
    records = []
    for number in range(1, count + 1):
        folder, seed = out / f"trial_{number}", first + number - 1
        if not (folder / "record.json").is_file():
            print(f"trial {number} of {count}, seed {seed}: {folder}", flush=True)
            code = start(trial_arguments(argv, folder, seed))
            if code:
                return code
        if main:
            records.append(load_record(folder / "record.json"))
            check_same_run(records[-1], expected, seed, folder)
    if main:
        summary = summarise(records)
        print("\n".join(describe(summary.scores)))
        print(f"record of {count} trials: {summary.write(out / 'record.json')}")
    return 0


def start(arguments: Sequence[str]) -> int:
    """Run train_net.py in a process of its own and return its exit code."""
    return subprocess.run([sys.executable, str(SCRIPT), *arguments]).returncode


def seed_of_first(cfg: CfgNode) -> int:
    """The config's SEED, or 1 when that asks for a random seed: trials are always seeded."""
    return max(cfg.SEED, 1)


def trial_arguments(argv: Sequence[str], folder: Path, seed: int) -> list[str]:
    """The arguments of one trial: its folder and seed instead of --trials, and --resume when it was started before."""
    rest, skip = [], False
    for item in argv:
        if not skip and item != "--resume" and item != "--trials" and not item.startswith("--trials="):
            rest.append(item)
        skip = not skip and item == "--trials"
    resume = ["--resume"] if (folder / "last_checkpoint").is_file() else []
    return [*resume, *rest, "SEED", str(seed), "OUTPUT_DIR", str(folder)]


def check_same_run(record: Record, expected: Record, seed: int, folder: Path) -> None:
    """Compare a finished trial with the present run. Raises UserError that names the first difference."""
    for part in ("protocol", "checkpoint", "data"):
        if getattr(record, part) != getattr(expected, part):
            raise UserError(f"{folder}: its record has another {part}; choose another OUTPUT_DIR")
    then = common(record.settings) | {"seed": record.settings["seed"]}
    now = common(expected.settings) | {"seed": seed}
    for key in sorted(then.keys() | now.keys()):
        if then.get(key) != now.get(key):
            change = f"{key} {then.get(key)}, now {now.get(key)}"
            raise UserError(f"{folder}: its record is of another run ({change}); choose another OUTPUT_DIR")


def as_read(record: Record) -> Record:
    """The record as it would be read from its file."""
    return record_of(json.loads(json.dumps(plain(record))), "record")


def common(settings: Mapping[str, object]) -> dict[str, object]:
    """The settings that all trials of a run have in common."""
    return {key: value for key, value in settings.items() if key not in OWN}


def summarise(records: Sequence[Record]) -> Record:
    """One record of all trials: the mean and deviation of each score; the settings have those of each trial."""
    names = records[0].scores
    scores = {name: Score.over_trials([r.scores[name] for r in records if name in r.scores]) for name in names}
    trials = [{key: record.settings.get(key) for key in OWN} | {"scores": values(record)} for record in records]
    first = records[0]
    fresh = Record(first.protocol, scores, first.checkpoint, first.data)
    return replace(
        fresh,
        settings=common(first.settings) | {"trials": len(records), "each_trial": trials},
        duration_seconds=round(sum(record.duration_seconds for record in records), 2),
        hardware=first.hardware,
        versions=first.versions,
        commit=first.commit,
    )


def values(record: Record) -> dict[str, float]:
    """The scores of a record as numbers."""
    return {name: score.value for name, score in record.scores.items()}


def describe(scores: Mapping[str, Score]) -> list[str]:
    """A line `AP 12.34 +- 0.56` for each score that is not of one class."""
    whole = {name: score for name, score in scores.items() if not re.search(r"\bAP\d*/", name)}
    return [f"{name} {score:.2f} +- {score.std or 0:.2f}" for name, score in whole.items()]
