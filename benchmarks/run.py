"""Speed and memory, each against a reference in the same run.

    python benchmarks/run.py [input|step|training|bank|svm|resume|all] [--quick] [--reference CLONE] [--data FOLDER]

Prints a table, writes a record, and warns when a ratio is more than a fifth below that of the committed record. The
last lines of a benchmark are `RATIO name value goal`, the most important one last.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from adco.utils.device import resolve_device
from adco.utils.errors import UserError, command
from adco.utils.files import output_folder
from benchmarks.speed.race import Options, regressions

NAMES = ("input", "step", "training", "bank", "svm", "resume")
SCRIPTS = Path(__file__).resolve().parent / "speed"
COMMITTED = SCRIPTS.parent.parent / "results" / "benchmarks"


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Run one benchmark, or all."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("name", nargs="?", default="all", choices=(*NAMES, "all"), help="which benchmark")
    parser.add_argument("--quick", action="store_true", help="a minute each on two cores, with fewer rounds")
    parser.add_argument("--reference", type=Path, help="a clone of the released AdCo, timed beside our re-statement")
    parser.add_argument("--data", type=Path, help="a folder of images (default: generated ones)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:INDEX")
    parser.add_argument("--output-dir", type=Path, default=Path("output/benchmarks"), help="where the records go")
    args = parser.parse_args(argv)
    for option in ("reference", "data"):
        folder = getattr(args, option)
        if folder is not None and not folder.is_dir():
            raise UserError(f"--{option} {folder}: no such folder")
    options = Options(args.quick, args.reference, args.data, resolve_device(args.device))
    output = output_folder(args.output_dir)
    for name in NAMES if args.name == "all" else (args.name,):
        if not (SCRIPTS / f"{name}.py").is_file():
            if args.name != "all":
                raise UserError(f"{name}: benchmarks/speed/{name}.py is not there; choose another benchmark")
            print(f"{name}: benchmarks/speed/{name}.py is not there; not run")
            continue
        run_one(name, options, output)
    return 0


def run_one(name: str, options: Options, output: Path) -> None:
    """Run benchmarks/speed/NAME.py, print its table and ratios, and write output/NAME.json (or NAME-quick.json)."""
    print(f"== {name}{' (quick)' if options.quick else ''}", flush=True)
    start = time.perf_counter()
    outcome = importlib.import_module(f"benchmarks.speed.{name}").run(options)
    file = f"{name}-quick.json" if options.quick else f"{name}.json"
    worse = regressions(outcome, COMMITTED / file)  # before a new record may replace it
    record = outcome.record(name, round(time.perf_counter() - start, 1))
    print(outcome.table())
    print(f"{record.hardware}; {record.duration_seconds} s; record: {record.write(output / file)}")
    for line in outcome.notes:
        print(f"note: {line}")
    for line in worse:
        print(f"warning: {line}")
    for ratio in outcome.ratios:
        print(ratio.line(), flush=True)


if __name__ == "__main__":
    sys.exit(main())
