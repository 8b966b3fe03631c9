"""The papers' claims in small, measured by our own code: one plan of resumable jobs, cheapest and most telling first.

    python benchmarks/evidence.py --budget MINUTES [--only SECTION ...] [--device ...] [--data DIR]

What the plan holds is in experiments/evidence.yaml. The same command again goes on, after kill -9 too; it ends with
what it left and what that is expected to take. Records go to results/evidence, docs/evidence.md says what came of it.
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
from benchmarks.experiments.plan import chosen_only, measured_rate, runnable
from benchmarks.experiments.stages import EvidenceStage, ExperimentDirs, build

ROOT = Path(__file__).resolve().parent.parent
PLAN = Path(__file__).with_name("experiments") / "evidence.yaml"


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Run what fits the budget, collect records, say what was left."""
    args = _parser().parse_args(argv)
    place, plan = _place(args), yaml.safe_load(args.plan.read_text())
    stages = chosen_only(build(plan, place, args.rate or measured_rate(plan, place.output)), args.only)
    if args.list:
        for stage in stages:
            print(_line(stage))
        return 0
    if args.collect:
        print(f"records: {collect(stages, args.results)} in {args.results}")
        return 0
    _prepare(place)
    jobs = runnable(stages)
    devices = tuple(str(number) for number in range(args.gpus)) * args.jobs if place.device == "cuda" else ()
    try:
        outcomes = run_jobs(jobs, place.output / "logs", at_once=args.jobs * max(1, args.gpus), devices=devices,
                            budget_minutes=args.budget)  # fmt: skip
    finally:
        print(f"records: {collect(stages, args.results)} in {args.results}")
    print("\n".join(reported(stages, outcomes)))
    return 1 if any(outcome.status == "failed" for outcome in outcomes.values()) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--budget", type=float, metavar="MINUTES", help="start nothing expected to end later, stop at it (no limit)")
    add("--only", nargs="+", default=[], metavar="NAME", help="sections or jobs, with what must come before them")
    add("--device", default="auto", help="auto, cpu, cuda (auto)")
    add("--gpus", type=int, default=1, help="how many GPUs the jobs are dealt to (1)")
    add("--jobs", type=int, default=2, help="so many at once, on each GPU or on the CPU with a thread each (2)")
    add("--data", type=Path, default=Path("data"), metavar="DIR",
        help="holds imagenette160, voc07_subset and coco_mini; what is absent is not run (data)")  # fmt: skip
    add("--output-dir", type=Path, default=Path("output/evidence"), help="runs, logs, features (%(default)s)")
    add("--results", type=Path, default=ROOT / "results/evidence", help="where records are collected")
    add("--rate", type=float, help="images a second of single-crop AdCo (default: of the runs there are)")
    add("--plan", type=Path, default=PLAN, metavar="FILE.yaml", help="another plan than experiments/evidence.yaml")
    add("--list", action="store_true", help="print the jobs and their expected minutes, run nothing")
    add("--collect", action="store_true", help="copy the records that there are, also of a plan at work; run nothing")
    return parser


def _place(args: argparse.Namespace) -> ExperimentDirs:
    """The machine and the folders, relative to the project, from whose root the jobs run."""
    device = resolve_device(args.device)
    data, output = (Path(os.path.relpath(path, ROOT)) for path in (args.data, args.output_dir))
    args.results = args.results.absolute()
    os.chdir(ROOT)
    train = data / "imagenette160" / "train"
    images = len(index_folder(train)) if train.is_dir() else 0
    if device.type == "cpu":
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    return ExperimentDirs(device.type, data, output, images, "bf16" if has_half_precision(device) else "float32")


def _prepare(place: ExperimentDirs) -> None:
    """The held-out split and detectron2's datasets, as links."""
    output_folder(place.output)
    if place.images:
        held_out_split(place.data / "imagenette160", place.output / "holdout")
    for name, source in (("VOC2007", "voc07_subset/VOCdevkit/VOC2007"), ("coco", "coco_mini")):
        link = output_folder(place.output / "datasets") / name
        if (place.data / source).is_dir() and not link.is_symlink():
            link.symlink_to((place.data / source).absolute())


def collect(stages: Sequence[EvidenceStage], results: Path) -> int:
    """Copy every record and image that has been written to its name below `results`; how many there are."""
    found = 0
    for stage in stages:
        for name, path in stage.records.items():
            if path.is_file():
                found += 1
                target, content = results / name, path.read_bytes()
                if not target.is_file() or target.read_bytes() != content:
                    with atomic_write(target) as file:
                        file.write(content)
    return found


def reported(stages: Sequence[EvidenceStage], outcomes: Mapping[str, Outcome]) -> list[str]:
    """A line for everything that did not end well, and what is left in minutes."""
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
        lines.append(f"left in all: about {minutes:.0f} min of jobs, one after another; the same command goes on")
    return lines or ["everything was run"]


def _line(stage: EvidenceStage) -> str:
    job = stage.job
    return f"{job.name}, expected {job.minutes or 0:g} min" + (f" ({stage.not_run})" if stage.not_run else "")


if __name__ == "__main__":
    sys.exit(main())
