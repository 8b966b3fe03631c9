"""The papers' claims in small, measured with our own code: a plan of resumable jobs, the most informative first.

    python benchmarks/evidence.py --budget MINUTES [--only SECTION ...] [--device ...] [--data DIR]

The plan is experiments/evidence.yaml. The same command resumes, also after kill -9; at the end it prints which jobs are
left and their expected time. Records go to results/evidence; docs/evidence.md describes the results.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import yaml

from adco.data.images import index_folder
from adco.launch.jobs import Outcome, run_jobs
from adco.utils.device import has_half_precision, resolve_device
from adco.utils.errors import command
from adco.utils.files import atomic_write, output_folder
from benchmarks.experiments.holdout import held_out_split
from benchmarks.experiments.plan import EvidenceStage, ExperimentDirs, chosen_only, measured_rate, runnable
from benchmarks.experiments.stages import build

ROOT = Path(__file__).resolve().parent.parent
PLAN = Path(__file__).with_name("experiments") / "evidence.yaml"


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Run the jobs that fit the budget, collect their records, and print what is left."""
    args = _parser().parse_args(argv)
    dirs, plan = _dirs(args), yaml.safe_load(args.plan.read_text())
    stages = chosen_only(build(plan, dirs, args.rate or measured_rate(plan, dirs.output)), args.only)
    if args.list:
        for stage in stages:
            print(_line(stage))
        return 0
    if args.collect:
        print(f"records: {collect(stages, args.results)} in {args.results}")
        return 0
    _prepare(dirs)
    jobs = runnable(stages)
    devices = tuple(str(number) for number in range(args.gpus)) * args.jobs if dirs.device == "cuda" else ()
    try:
        outcomes = run_jobs(jobs, dirs.output / "logs", at_once=args.jobs * max(1, args.gpus), devices=devices,
                            budget_minutes=args.budget)  # fmt: skip
    finally:
        print(f"records: {collect(stages, args.results)} in {args.results}")
    print("\n".join(reported(stages, outcomes)))
    return 1 if any(outcome.status == "failed" for outcome in outcomes.values()) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add(
        "--budget",
        type=float,
        metavar="MINUTES",
        help="start no job that is expected to end later, and stop then (default: no limit)",
    )
    add("--only", nargs="+", default=[], metavar="NAME", help="sections or jobs, with those that must run before")
    add("--device", default="auto", help="auto, cpu, cuda (auto)")
    add("--gpus", type=int, default=1, help="how many GPUs are used (1)")
    add(
        "--jobs",
        type=int,
        default=2,
        help="how many run at a time, on each GPU, or on the CPU with one thread each (2)",
    )
    add("--data", type=Path, default=Path("data"), metavar="DIR",
        help="holds imagenette160, voc07_subset, coco_mini; jobs without their data are not run (data)")  # fmt: skip
    add("--output-dir", type=Path, default=Path("output/evidence"), help="runs, logs, features (%(default)s)")
    add("--results", type=Path, default=ROOT / "results/evidence", help="where records are collected")
    add("--rate", type=float, help="images a second of single-crop AdCo (default: measured by earlier runs)")
    add("--plan", type=Path, default=PLAN, metavar="FILE.yaml", help="another plan than experiments/evidence.yaml")
    add("--list", action="store_true", help="print the jobs and their expected minutes, run nothing")
    add("--collect", action="store_true", help="copy the records that exist, also while jobs run; run nothing")
    return parser


def _dirs(args: argparse.Namespace) -> ExperimentDirs:
    """The folders, relative to the project's root, which becomes the working folder, and the device."""
    device = resolve_device(args.device)
    data, output = (Path(os.path.relpath(path, ROOT)) for path in (args.data, args.output_dir))
    args.results = args.results.absolute()
    os.chdir(ROOT)
    train = data / "imagenette160" / "train"
    images = len(index_folder(train)) if train.is_dir() else 0
    if device.type == "cpu":
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    return ExperimentDirs(device.type, data, output, images, "bf16" if has_half_precision(device) else "float32")


def _prepare(dirs: ExperimentDirs) -> None:
    """Write the held-out split and detectron2's datasets, as links."""
    output_folder(dirs.output)
    if dirs.images:
        held_out_split(dirs.data / "imagenette160", dirs.output / "holdout")
    for name, source in (("VOC2007", "voc07_subset/VOCdevkit/VOC2007"), ("coco", "coco_mini")):
        link = output_folder(dirs.output / "datasets") / name
        if (dirs.data / source).is_dir() and not link.is_symlink():
            link.symlink_to((dirs.data / source).absolute())


def collect(stages: Sequence[EvidenceStage], results: Path) -> int:
    """Copy every record and image that has been written to its name below `results`; returns their number."""
    count = 0
    for stage in stages:
        for name, path in stage.records.items():
            if path.is_file():
                count += 1
                target, content = results / name, path.read_bytes()
                if not target.is_file() or target.read_bytes() != content:
                    with atomic_write(target) as file:
                        file.write(content)
    return count


def reported(stages: Sequence[EvidenceStage], outcomes: Mapping[str, Outcome]) -> list[str]:
    """A line for every job that has not ended well, and the expected minutes of those that are left."""
    lines, minutes = [], 0.0
    for stage in stages:
        outcome = outcomes.get(stage.job.name)
        if stage.not_run:
            lines.append(f"{stage.job.name}: {stage.not_run}")
        elif outcome is None:
            lines.append(f"{stage.job.name}: not run: comes after one that is not run")
        elif outcome.status == "left":
            lines.append(f"left: {_line(stage)}")
            minutes += stage.job.minutes or 0
        elif not outcome.good:
            lines.append(f"{stage.job.name}: {outcome.status}: {outcome.why}")
    if minutes:
        lines.append(f"left in all: about {minutes:.0f} min of jobs, one after another; the same command resumes")
    return lines or ["everything was run"]


def _line(stage: EvidenceStage) -> str:
    job = stage.job
    return f"{job.name}, expected {job.minutes or 0:g} min" + (f" ({stage.not_run})" if stage.not_run else "")


if __name__ == "__main__":
    sys.exit(main())
