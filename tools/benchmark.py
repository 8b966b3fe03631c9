"""From checkpoints to the whole table: run every stage of a suite that the data on disk allow.

A stage that ended for the same checkpoint, protocol, data and code is reused; after an interruption the same command
resumes. Everything goes to OUTPUT_DIR: results/CHECKPOINT/PROTOCOL.json, report/, jobs/STAGE.log, stages/.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from adco.data.datasets.locate import find_all, linked
from adco.launch.jobs import Outcome, last_line, run_jobs
from adco.launch.slurm import SubmittedCommand, job_parameters, submit
from adco.suite.checkpoints import read_checkpoints
from adco.suite.commands import jobs_of
from adco.suite.estimates import Rates
from adco.suite.plan import RunDirs, Task, describe, make_plan, reusable
from adco.suite.results import collect, measured
from adco.suite.stages import load_suite, only
from adco.utils.device import parse_workers, usable_cores
from adco.utils.errors import UserError, command
from adco.utils.files import output_folder

CPUS_PER_GPU = 10  # as tools/submit.py

EXAMPLES = """\
examples:
  # print what would run, how long it would take, and which data are missing
  python tools/benchmark.py --checkpoint zoo://moco-v2-r50-200ep mine.pth --data-root DATA --output-dir out --dry-run
  # run all of it, side by side on the GPUs of this machine; after an interruption the same command resumes
  python tools/benchmark.py --checkpoint zoo://moco-v2-r50-200ep mine.pth --data-root DATA --output-dir out
  # some minutes on small data at 64 px; the names of the protocols then say so
  python tools/benchmark.py --checkpoint mine.pth --suite quick --set image_px=64 --data-root DATA --output-dir out
  # a SLURM job for each stage, requeued until it is done
  python tools/benchmark.py --checkpoint mine.pth --data-root DATA --output-dir out --submit slurm --gpus 8
Exit code: 0 when every stage that the data allow has ended or was reused, 1 when one failed, 2 for mistakes.
"""


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Plan, run, collect the records and print the table."""
    args = _parser().parse_args(argv)
    suite = only(load_suite(args.suite, args.set), [name for text in args.stages for name in text.split(",")])
    gpus = devices(args)
    dirs = RunDirs(args.output_dir, gpus, args.device, threads(args.workers, len(gpus)), args.trials)
    given = data_given(args)
    print("reading checkpoints and data sets ...", flush=True)
    checkpoints = read_checkpoints(args.checkpoint, download=not args.dry_run)
    available, missing = find_all(args.data_root, given, [name for stage in suite.stages for name in stage.data])
    tasks = make_plan(suite, checkpoints, available, missing, dirs, Rates(args.device, dirs.workers, args.measure))
    print(describe(suite, tasks, dirs), flush=True)
    if args.dry_run:
        return 0
    if all(task.obstacle for task in tasks):
        raise UserError("no stage can run; the plan above says what each is missing")
    output_folder(dirs.out)
    datasets = linked(available, dirs.stages / "datasets")
    if args.submit:
        outcomes = submitted(args, tasks, dirs)
        if not args.wait:
            return 0
    else:
        outcomes = run_jobs(
            jobs_of(tasks, dirs, datasets), dirs.out / "jobs" / args.part,
            at_once=args.jobs or max(1, len(dirs.devices)), devices=dirs.devices, budget_minutes=args.budget_minutes,
        )  # fmt: skip
    wrong = collect(tasks, outcomes, dirs)
    if not args.part:
        show(tasks, dirs, datasets)
    for name, problem in wrong.items():
        print(f"error: {name}: {problem}", file=sys.stderr)
    return 1 if wrong else 0


def show(tasks: Sequence[Task], dirs: RunDirs, datasets: Path) -> None:
    """Print the table of all checkpoints and write the report, with drawn detections where there are some."""
    from adco.report.text_table import as_text, table_rows

    records = measured(tasks, dirs)
    print(f"\n{as_text(table_rows(records), list(records))}")
    report, log = dirs.out / "report", dirs.out / "jobs" / "report.log"
    folders = {task.checkpoint.short: dirs.results / task.checkpoint.label for task in tasks if not task.obstacle}
    words = [sys.executable, str(ROOT / "tools" / "report.py"), "-o", str(report), "--title", dirs.out.resolve().name]
    words += [f"{name}={folder}" for name, folder in folders.items() if folder.is_dir()]
    drawn = [word for task in detectors(tasks) for word in ("--detections", f"{task.checkpoint.short}={task.detector}")]
    for more in (drawn, []) if drawn else ([],):
        with log.open("w") as file:
            reported = os.environ | {"DETECTRON2_DATASETS": str(datasets)}
            code = subprocess.run([*words, *more], stdout=file, stderr=subprocess.STDOUT, env=reported).returncode
        if code == 0:
            print(f"\nreport: {report / 'report.html'}")
            return
        print(f"\nno report{' with detections' if more else ''}: {last_line(log)}", file=sys.stderr)


def detectors(tasks: Sequence[Task]) -> list[Task]:
    """The tasks of the first stage that has written detections."""
    written = [
        task for task in tasks if task.stage.config and not task.obstacle and (task.detector / "inference").is_dir()
    ]
    return [task for task in written if task.stage == written[0].stage]


def submitted(args: argparse.Namespace, tasks: Sequence[Task], dirs: RunDirs) -> dict[str, Outcome]:
    """Submit a job for each task that has to run; with --wait, wait for them and return how they ended."""
    jobs = {}
    for task in tasks:
        if task.runs:
            gpus = min(task.devices, len(dirs.devices))
            parameters = job_parameters(task.name, 1, 1, gpus, cpus(args.workers, gpus), args.hours, args.partition,
                                   args.account)  # fmt: skip
            command = SubmittedCommand(part_words(args, task, gpus), task.name, ranks=False)
            jobs[task.name] = submit(command, args.submit, dirs.out / "submitit", parameters)
            print(f"submitted {task.name}: job {jobs[task.name].job_id}", flush=True)
    print("the same command without --submit shows their state (--dry-run), and prints the table when they have ended")
    if not args.wait:
        return {}
    for job in jobs.values():
        job.wait()
    logs = {task.name: dirs.out / "jobs" / task.name / f"{task.name}.log" for task in tasks}
    return {task.name: Outcome("ended") if reusable(task) else Outcome("failed", last_line(logs[task.name]))
            for task in tasks if not task.obstacle}  # fmt: skip


def threads(workers: int | str, gpus: int) -> int | str:
    """Threads that read images for each rank. With several GPUs `auto` is one less than a GPU's share of the cores."""
    return max(1, usable_cores() // gpus - 1) if workers == "auto" and gpus > 1 else workers


def cpus(workers: int | str, gpus: int) -> int:
    """Cores of a cluster's job: its reading threads and one more; with `auto` 10 for each GPU."""
    return CPUS_PER_GPU * max(1, gpus) if isinstance(workers, str) else workers * max(1, gpus) + 1


def part_words(args: argparse.Namespace, task: Task, gpus: int) -> tuple[str, ...]:
    """The command line of this tool for one task alone."""
    words = [sys.executable, str(ROOT / "tools" / "benchmark.py"), "--part", task.name, "--no-measure"]
    words += ["--checkpoint", task.checkpoint.given, "--stages", task.stage.name, "--gpus", str(gpus)]
    for name in ("suite", "data_root", "output_dir", "device", "workers", "trials"):
        if getattr(args, name) is not None:
            words += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    return (*words, *(word for name in ("set", "data") for text in getattr(args, name) for word in (f"--{name}", text)))


def devices(args: argparse.Namespace) -> tuple[str, ...]:
    """CUDA_VISIBLE_DEVICES of each GPU that stages may use; with --submit, of the GPUs of a job. Raises UserError."""
    import torch

    if args.submit:
        return tuple(map(str, range(args.gpus if args.gpus is not None else args.submit == "slurm")))
    count = 0 if args.device == "cpu" or not torch.cuda.is_available() else torch.cuda.device_count()
    if args.gpus is not None and args.gpus > count:
        raise UserError(f"--gpus {args.gpus}: {count} can be used here")
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name] or map(str, range(count))
    return tuple(visible)[: count if args.gpus is None else args.gpus]


def data_given(args: argparse.Namespace) -> dict[str, Path]:
    """The folders of --data by the dataset's name. Raises UserError."""
    if args.data_root is None and not args.data:
        raise UserError("--data-root FOLDER (or --data NAME=FOLDER) is needed: where the data sets are")
    if wrong := [text for text in args.data if "=" not in text]:
        raise UserError(f"--data {wrong[0]}: expected NAME=FOLDER, e.g. imagenet=/data/imagenet")
    return {name: Path(path) for name, _, path in (text.partition("=") for text in args.data)}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--checkpoint", required=True, nargs="+", action="extend", metavar="C",
        help="what is evaluated: files, zoo://NAME or a zoo model's name, random:ARCH[:SEED]")  # fmt: skip
    add("--suite", default="table4", help="table4, quick, or a YAML file (docs/benchmark.md) (default: %(default)s)")
    add("--stages", action="append", default=[], metavar="NAME,...", help="only these stages of the suite")
    add("--set", action="append", default=[], metavar="KEY=N",
        help="image_px, epochs or iterations of all stages, or STAGE.KEY=N; part of the protocols' names")  # fmt: skip
    add(
        "--data-root",
        type=Path,
        metavar="FOLDER",
        help="where VOC2007, VOC2012, coco, places205, imagenet are looked for",
    )
    add(
        "--data",
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="where one of these is instead, e.g. imagenet=X",
    )
    add("--output-dir", type=Path, required=True, metavar="FOLDER", help="where everything goes")
    add("--dry-run", action="store_true", help="print the plan and do nothing")
    add("--measure", action=argparse.BooleanOptionalAction, default=True,
        help="measure a rate for a few seconds if no record tells how long a stage takes (default: yes)")  # fmt: skip
    add("--jobs", type=_positive, metavar="N", help="stages at a time (default: the number of GPUs, 1 on a CPU)")
    add("--gpus", type=int, metavar="N", help="how many GPUs are used (default: all; with --submit slurm 1 a stage)")
    add("--device", default="auto", help="auto, cpu or cuda (default: %(default)s)")
    add("--workers", type=parse_workers, default="auto", metavar="N",
        help="threads that read images, of each rank (default: auto, the cores but one)")  # fmt: skip
    add("--trials", type=_positive, metavar="N", help="seeds of each detector (default: the suite's)")
    add("--budget-minutes", type=float, metavar="M", help="stop after so long; the same command resumes")
    add("--submit", choices=("slurm", "local"), help="a job for each stage, through submitit; local: on this machine")
    add("--wait", action="store_true", help="with --submit: wait for the jobs, then draw the table")
    add("--hours", type=float, default=24, help="a job's time limit before it is requeued (default: %(default)s)")
    add("--partition", help="SLURM's partition")
    add("--account", help="SLURM's account")
    add("--part", default="", help=argparse.SUPPRESS)  # in a job of --submit: the name of its task
    return parser


def _positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected at least 1")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
