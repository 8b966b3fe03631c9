"""One command from checkpoints to the whole table: every stage of a suite that the data on disk allow.

A stage that ended for the same checkpoint, protocol, data and code is reused; whatever is interrupted goes on with the
same command. Everything lands below OUTPUT_DIR: results/CHECKPOINT/PROTOCOL.json, report/, jobs/STAGE.log, work/.
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

from adco.errors import UserError, command
from adco.files import output_folder
from adco.jobs import last_line, run_jobs
from adco.report.terminal import as_text, table_rows
from adco.suite.data import find_all, linked
from adco.suite.plan import Place, Task, describe, jobs_of, make_plan
from adco.suite.results import collect, measured
from adco.suite.stages import Suite, load_suite, only
from adco.suite.subjects import read_subjects

EXAMPLES = """\
examples:
  # what would run, what it would take, what data is missing
  python tools/benchmark.py --checkpoint zoo://moco-v2-200ep mine.pth --data-root DATA --output-dir out --dry-run
  # two stages at a time, one GPU each (stages that can use all GPUs do)
  python tools/benchmark.py --checkpoint mine.pth --data-root DATA --output-dir out --jobs 2
  # minutes on small data, at 64 px: protocols then carry it in their names
  python tools/benchmark.py --checkpoint mine.pth --suite quick --set image_px=64 --data-root DATA --output-dir out
Exit code: 0 when every stage that the data allow has ended or was reused, 1 when one failed, 2 for mistakes.
"""


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    suite = only(load_suite(args.suite, args.set), [name for text in args.stages for name in text.split(",")])
    place = Place(args.output_dir, _devices(args.device), args.device, args.workers, args.trials)
    tasks, found = plan(args, suite, place)
    print(describe(suite, tasks, place), flush=True)
    if args.dry_run:
        return 0
    if all(task.why_not for task in tasks):
        raise UserError("no stage can run; the plan above says what each is missing")
    output_folder(place.out)
    jobs = jobs_of(tasks, place, linked(found, place.work / "datasets"))
    print()
    outcomes = run_jobs(jobs, place.out / "jobs" / args.part, at_once=args.jobs or max(1, len(place.devices)),
                        devices=place.devices, budget_minutes=args.budget_minutes)  # fmt: skip
    wrong = collect(tasks, outcomes, place)
    for name, problem in wrong.items():
        print(f"error: {name}: {problem}", file=sys.stderr)
    if not args.part:
        show(tasks, place)
    return 1 if wrong else 0


def plan(args: argparse.Namespace, suite: Suite, place: Place):
    """(tasks, data sets found); reads every checkpoint and every list of pictures first. Raises UserError."""
    given = {}
    for text in args.data:
        name, mark, path = text.partition("=")
        if not mark:
            raise UserError(f"--data {text}: expected NAME=FOLDER, e.g. imagenet=/data/imagenet")
        given[name] = Path(path)
    if args.data_root is None and not given:
        raise UserError("--data-root FOLDER (or --data NAME=FOLDER) is needed: where the data sets are")
    subjects = read_subjects(args.checkpoint, download=not args.dry_run)
    found, missing = find_all(args.data_root, given, [name for stage in suite.stages for name in stage.data])
    rates: dict[tuple[str, int], float | None] = {}

    def rate(checkpoint: str, image_px: int) -> float | None:
        architecture = next(s.arch for s in subjects if s.given == checkpoint)
        if (architecture, image_px) not in rates:
            rates[architecture, image_px] = measure(args, architecture, image_px, found) if args.measure else None
        return rates[architecture, image_px]

    return make_plan(suite, subjects, found, missing, place, rate), found


def measure(args: argparse.Namespace, architecture: str, image_px: int, found) -> float | None:
    """Pictures per second, measured for a few seconds in a process of its own; None when that fails."""
    words = [sys.executable, str(ROOT / "transfer" / "rate.py"), "--checkpoint", f"random:{architecture}", "--data",
             str(next(iter(found.values())).path), "--image-px", str(image_px), "--device", args.device, "--workers",
             str(args.workers)]  # fmt: skip
    run = subprocess.run(words, capture_output=True, text=True)
    return float(run.stdout.split()[-1]) if run.returncode == 0 else None


def show(tasks: Sequence[Task], place: Place) -> None:
    """The table of all checkpoints side by side, and the report."""
    records = measured(tasks, place)
    print(f"\n{as_text(table_rows(records), list(records))}")
    report, log = place.out / "report", place.out / "jobs" / "report.log"
    words = [sys.executable, str(ROOT / "tools" / "report.py"), str(place.results), "-o", str(report)]
    with log.open("w") as file:
        code = subprocess.run(words, stdout=file, stderr=subprocess.STDOUT).returncode
    print(f"\nreport: {report}" if code == 0 else f"\nno report: {last_line(log)} ({log})")


def _devices(device: str) -> tuple[str, ...]:
    """CUDA_VISIBLE_DEVICES of each GPU that stages may use."""
    import torch

    count = 0 if device == "cpu" or not torch.cuda.is_available() else torch.cuda.device_count()
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return tuple(visible[:count] or map(str, range(count)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--checkpoint", required=True, nargs="+", action="extend", metavar="C",
        help="what is judged, side by side: files, zoo://NAME or a zoo model's name, random:ARCH[:SEED]")  # fmt: skip
    add("--suite", default="table4", help="table4, quick, or a YAML file (docs/benchmark.md) (default: %(default)s)")
    add("--stages", action="append", default=[], metavar="NAME,...", help="only these stages of the suite")
    add("--set", action="append", default=[], metavar="KEY=N",
        help="image_px, epochs or iterations of every stage that has them, or STAGE.KEY=N; protocols say so in their names")  # fmt: skip
    add(
        "--data-root",
        type=Path,
        metavar="FOLDER",
        help="below it VOC2007, VOC2012, coco, places205, imagenet are looked for",
    )
    add("--data", action="append", default=[], metavar="NAME=FOLDER", help="where one of these is, instead")
    add("--output-dir", type=Path, required=True, metavar="FOLDER", help="where everything goes")
    add("--dry-run", action="store_true", help="print the plan and do nothing")
    add("--measure", action=argparse.BooleanOptionalAction, default=True,
        help="measure a rate for a few seconds where no record says how long a stage takes")  # fmt: skip
    add("--jobs", type=int, metavar="N", help="stages at a time (default: the number of GPUs, 1 on a CPU)")
    add("--trials", type=int, metavar="N", help="seeds of each detector (default: the suite's)")
    add("--device", default="auto", help="auto, cpu or cuda (default: %(default)s)")
    add("--workers", type=int, default=2, metavar="N", help="reading processes of a stage (default: %(default)s)")
    add("--budget-minutes", type=float, metavar="M", help="stop after so long; the same command goes on")
    add("--part", default="", help=argparse.SUPPRESS)  # one stage of many, in a job of a cluster
    return parser


if __name__ == "__main__":
    sys.exit(main())
