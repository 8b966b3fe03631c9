"""Measure and check this project on a GPU within minutes: sections, each in a process of its own.

    python benchmarks/gpu.py --out OUT [--minutes 9] [--only SECTION ...] [--device cuda] [--data DATA]
    python benchmarks/gpu.py --pack PACK [--data DATA] [--python 3.12]     on a machine with the project and a network
    python benchmarks/gpu.py --packed PACK --out OUT                       on one with only PyTorch and a GPU

OUT gets figures.jsonl (each figure as it is known; a second call appends), table.txt (the newest figure of each name),
record.json (the same as a result record) and log.txt (the output of the sections). docs/gpu.md describes them.
Exit code: 0 when every section that ran ended well, 1 when one failed, 2 for a mistake in the arguments.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

# Only modules that need no more than the standard library and torch: other packages may have to be unpacked first.
from adco.utils.device import resolve_device
from adco.utils.errors import Failure, UserError, command, one_line
from adco.utils.files import lock_output_dir, output_folder, write_text
from benchmarks.on_gpu.figures import Result, append, read_lines, table, write_record
from benchmarks.on_gpu.pack import check_data, pack
from benchmarks.on_gpu.process import BoundedLog, run_process, uninterrupted
from benchmarks.on_gpu.sections import SECTIONS, Section
from benchmarks.on_gpu.unpack import Unpacked, unpack

ROOT = Path(__file__).resolve().parent.parent
STARTUP_SECONDS = 4.0  # of a section's process, in addition to the section's own time
RESERVE_SECONDS = 5.0  # for the last table
SLACK_SECONDS = 15.0  # a section is killed so long after one and a half times its time
MINIATURE_SECONDS = 3.0  # of a section on a CPU: its first figures, and more if there is time
OLD_LOG_BYTES = 4 << 20  # of earlier calls' logs that are kept


@dataclass(frozen=True)
class Run:
    """The options of a call.

    Attributes:
        out: The folder of the results.
        work: The folder that is kept between calls.
        device: Where the sections run.
        data: The folder of images; None for drawn ones.
        sections: The sections to run.
        packed: The unpacked pack; None without one.
        minutes: The time of all sections together.
        deadline: When they must have ended, by time.monotonic().
    """

    out: Path
    work: Path
    device: str
    data: Path | None
    sections: tuple[Section, ...]
    packed: Unpacked | None
    minutes: float
    deadline: float

    @property
    def figures(self) -> Path:
        """The file of the figures."""
        return self.out / "figures.jsonl"

    @property
    def small(self) -> bool:
        """Whether sections run in miniature. Each should run then, so none is skipped while time is left."""
        return not self.device.startswith("cuda")

    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()


def parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    lines = "\n".join(f"  {s.number:2} {s.module:12} {s.seconds:4g} s  {s.title}" for s in SECTIONS)
    usage, _, files = __doc__.partition("\n\n")[2].partition("\n\n")
    parser = argparse.ArgumentParser(
        "gpu.py",
        description=__doc__.split("\n\n")[0] + "\n\n" + usage,
        epilog=f"{files}\nsections, and about what they take:\n{lines}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage=argparse.SUPPRESS,
    )
    add = parser.add_argument
    add("--out", type=Path, help="a new folder, or an earlier call's")
    add("--minutes", type=float, default=9.0, help="for everything together (default: 9)")
    add("--only", nargs="+", action="extend", default=[], metavar="SECTION", help="these, by number or name")
    add("--device", default="cuda", help="cuda, cuda:INDEX, or cpu: the same in miniature (default: cuda)")
    add("--data", type=Path, help="a folder with train/CLASS and val/CLASS (default: the pack's, else drawn images)")
    add("--work", type=Path, default=Path("output/gpu-work"), help="kept between calls (default: output/gpu-work)")
    add("--pack", type=Path, help="write a folder with all that a machine with stock PyTorch needs, and end")
    add("--python", default="{}.{}".format(*sys.version_info), help="the Python to pack for (default: this one)")
    add("--packed", type=Path, help="use what --pack wrote")
    return parser


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Run the sections, or pack."""
    begin = time.monotonic()
    args = parser().parse_args(argv)
    if args.pack:
        print(pack(args.pack, args.data, args.python))
        return 0
    run = prepare(args, begin)
    with lock_output_dir(run.out) or contextlib.nullcontext(), interruptible():
        results = run_sections(run)
    print(f"figures, table, record and log: {run.out}")
    bad = [section.module for section, result in results.items() if result.result in ("failed", "killed")]
    if bad:
        raise Failure(f"{len(bad)} of {len(results)} sections: {', '.join(bad)}; see {run.out / 'log.txt'}")
    return 0


def prepare(args: argparse.Namespace, begin: float) -> Run:
    """Check the arguments before any work. Raises UserError."""
    if args.out is None:
        raise UserError("--out is missing: name a folder for the figures")
    if not (args.minutes > 0 and math.isfinite(args.minutes)):
        raise UserError(f"--minutes {args.minutes:g}: expected a number above 0")
    sections = chosen(args.only)
    device = str(resolve_device(args.device))
    if args.data:
        check_data(args.data)
    out, work = output_folder(args.out).resolve(), output_folder(args.work).resolve()
    packed = unpack(args.packed, work) if args.packed else None
    data = args.data.resolve() if args.data else packed and packed.images
    return Run(out, work, device, data, sections, packed, args.minutes, begin + 60 * args.minutes)


def chosen(only: Sequence[str]) -> tuple[Section, ...]:
    """The sections with these numbers or names, in the usual order; all when none is named. Raises UserError."""
    known = {word: s for s in SECTIONS for word in (str(s.number), s.module)}
    for word in only:
        if word not in known:
            names = ", ".join(f"{s.number} {s.module}" for s in SECTIONS)
            raise UserError(f"--only {word}: no such section; there are {names}")
    wanted = {known[word] for word in only}
    return tuple(s for s in SECTIONS if not wanted or s in wanted)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Treat SIGTERM, which a time limit sends, like Ctrl-C."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def scale(sections: Sequence[Section], left: float) -> float:
    """The factor, 0 to 1, by which the sections' times are multiplied so that they fit into `left` seconds. The last
    section gets what is left, so only half of its time must fit."""
    need = sum(_least(section) for section in sections)
    return min(1.0, max(0.0, (left - STARTUP_SECONDS * len(sections)) / need))


def seconds_for(sections: Sequence[Section], left: float) -> float:
    """The seconds of the first of the sections when there are `left` seconds for all of them."""
    if sections[0] == SECTIONS[-1]:
        return max(0.0, 0.9 * (left - STARTUP_SECONDS))
    return sections[0].seconds * scale(sections, left)


def _least(section: Section) -> float:
    return section.seconds / 2 if section == SECTIONS[-1] else section.seconds


def run_sections(run: Run) -> dict[Section, Result]:
    """Run the sections one after the other. The table is written after each; table and record also on an exception."""
    results: dict[Section, Result] = {}
    at_first = scale(run.sections, run.left() - RESERVE_SECONDS)
    _cut(run.out / "log.txt", OLD_LOG_BYTES)
    try:
        for number, section in enumerate(run.sections):
            left = run.left() - RESERVE_SECONDS
            seconds = MINIATURE_SECONDS if run.small else seconds_for(run.sections[number:], left)
            enough = 0.0 if run.small else _least(section) * at_first / 2
            print(f"{section.number:2} {section.module}: {section.title}; {seconds:.0f} of {left:.0f} s", flush=True)
            if left < STARTUP_SECONDS or seconds < enough or not seconds:
                result = Result("skipped", reason=f"{max(left, 0):.0f} s are left, less than half of what it needs")
            else:
                slack = SLACK_SECONDS * (2 if run.small else 1)
                result = run_section(run, section, seconds, min(1.5 * seconds + STARTUP_SECONDS + slack, left))
            results[section] = result
            append(run.figures, {"section": section.number, **asdict(result)})
            print(f"{section.number:2} {section.module}: {result.line()}", flush=True)
            write_text(run.out / "table.txt", table(read_lines(run.figures)) + "\n")
            if result.result == "interrupted":
                raise KeyboardInterrupt
    finally:
        with uninterrupted():
            print(f"\n{summarize(run)}", flush=True)
    return results


def run_section(run: Run, section: Section, seconds: float, limit: float) -> Result:
    """Run a section in a process group of its own. seconds: what it should take; limit: when it is killed."""
    words = [sys.executable, "-m", "benchmarks.on_gpu.sections", str(section.number), "--seconds", f"{seconds:.1f}"]
    words += ["--device", run.device, "--work", str(run.work), "--file", str(run.figures)]
    words += ["--data", str(run.data)] if run.data else []
    with (run.out / "log.txt").open("ab", buffering=0) as file:
        file.write(f"== {section.number} {section.module}\n".encode())
        with contextlib.closing(BoundedLog(file)) as log:
            return run_process(words, ROOT, environment(run, section), limit, log.write)


def environment(run: Run, section: Section) -> dict[str, str]:
    """The environment of a section's process: that of this one, and the folders of the modules."""
    packed = run.packed.python_path(section.module) if run.packed else []
    before = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    return dict(os.environ, PYTHONPATH=os.pathsep.join(map(str, [ROOT, *packed, *before])), PYTHONUNBUFFERED="1")


def summarize(run: Run) -> str:
    """Write table.txt and record.json from figures.jsonl; returns the table."""
    lines = read_lines(run.figures)
    text = table(lines)
    asked, data = {"device": run.device, "minutes": run.minutes}, run.data.name if run.data else "drawn images"
    try:
        write_record(run.out / "record.json", lines, asked, data, run.packed.commit if run.packed else "unknown")
    except Exception as error:  # the figures and the table are more important than the record
        text += f"\nrecord.json: not written ({type(error).__name__}: {one_line(error)})"
    write_text(run.out / "table.txt", text + "\n")
    return text


def _cut(path: Path, most: int) -> None:
    """Keep the last `most` bytes of a file."""
    if path.is_file() and path.stat().st_size > most:
        path.write_bytes(path.read_bytes()[-most:])


if __name__ == "__main__":
    sys.exit(main())
