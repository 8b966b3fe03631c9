"""The growth of a long run: memory, threads and open files of the real trainer on a toy model, by step.

    python benchmarks/speed/soak.py [--steps 20000] [--ranks 1] [--output FILE.json]

A leak depends on steps, epochs, checkpoints or log lines, not on hours: the toy model makes many of each a second.
Everything is enabled: threads that make views, monitoring, kNN probe, checkpoints, logs. The growth is the slope of the
resident memory over the second half of the steps, times DAY_STEPS; in the first half allocators, caches and buffers
fill.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from adco.evaluation.records import Record
from adco.utils import distributed
from adco.utils.errors import Requeue, UserError, command
from adco.utils.files import write_text
from tests.conftest import write_pictures
from tests.faults import toy

DAY_STEPS = 288_000  # 24 hours at 0.3 s a step: ImageNet at batch 256 on eight GPUs of 2021
SAMPLES = 2000  # of a run; keeping more of them would itself be growth
PAGE_MIB = os.sysconf("SC_PAGE_SIZE") / 2**20
EVERYTHING = (
    "epochs=1000000", "data.workers=2", "monitor.every_steps=50", "probe.every_epochs=25", "probe.px=16", "probe.k=5",
    "checkpoint.every_steps=0", "checkpoint.every_epochs=10", "checkpoint.keep=2",
)  # fmt: skip


@dataclass(frozen=True)
class Sample:
    """A process after a step: its resident memory in MiB, threads and open files."""

    step: int
    mib: float
    threads: int
    files: int

    @classmethod
    def now(cls, step: int) -> Sample:
        """A sample of this process (Linux)."""
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return cls(step, pages * PAGE_MIB, threading.active_count(), len(os.listdir("/proc/self/fd")))


@dataclass(frozen=True)
class Growth:
    """The growth of a process.

    Attributes:
        steps: How many steps it has run.
        mib: Its resident memory at the end.
        mib_a_day: The growth of that in DAY_STEPS steps.
        threads: How many threads there are more than halfway.
        files: How many open files there are more than halfway.
    """

    steps: int
    mib: float
    mib_a_day: float
    threads: int
    files: int


def growth(samples: Sequence[Sample]) -> Growth:
    """The growth over the second half of the samples."""
    half = samples[len(samples) // 2 :]
    slope = np.polyfit([sample.step for sample in half], [sample.mib for sample in half], 1)[0]
    first, last = half[0], half[-1]
    return Growth(last.step, last.mib, float(slope) * DAY_STEPS, last.threads - first.threads, last.files - first.files)


def soak(folder: Path, steps: int, ranks: int = 1) -> list[Growth]:
    """Train the toy model, each rank in a process of its own; returns the growth of each, rank 0's first."""
    images, recipe = write_pictures(folder / "images" / "train", 3, 16).parent, folder / "toy.yaml"
    write_pictures(images / "val", 3, 6)
    recipe.write_text(toy.RECIPE)
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        port = opened.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    arguments = [(rank, ranks, port, str(recipe), str(folder), f"data.root={images}", steps) for rank in range(ranks)]
    processes = [context.Process(target=_train, args=each) for each in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise RuntimeError(f"ranks ended with {[process.exitcode for process in processes]}")
    files = (folder / f"samples{rank}.json" for rank in range(ranks))
    return [growth([Sample(**sample) for sample in json.loads(file.read_text())]) for file in files]


def _train(rank: int, ranks: int, port: int, recipe: str, folder: str, data: str, steps: int) -> None:
    """One rank; its samples go to a file."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    multiprocessing.set_start_method("fork", force=True)  # as in a run of its own; a spawned process spawns
    samples: list[Sample] = []
    with distributed.started(toy.CPU), suppress(Requeue), toy.small():
        run = toy.trainer(recipe, Path(folder) / "run", data, *EVERYTHING)
        step, every = run.train_step, max(1, steps // SAMPLES)

        def sampled(batch):
            done = step(batch)
            if run.step % every == 0:
                samples.append(Sample.now(run.step))
            if run.step == steps:
                run.stops.number = signal.SIGTERM
            return done

        run.train_step = sampled
        run.fit()
    write_text(Path(folder) / f"samples{rank}.json", json.dumps([asdict(sample) for sample in samples]))


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Train, print the growth, and with --output write a record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20_000, help=f"how many, {DAY_STEPS} is a day (default: 20000)")
    parser.add_argument("--ranks", type=int, default=1, help="gloo ranks on this machine (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="also write a record")
    args = parser.parse_args(argv)
    for name in ("steps", "ranks"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)}: expected a positive number")
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        growths = soak(Path(folder), args.steps, args.ranks)
    for rank, grown in enumerate(growths):
        print(f"rank {rank}: {grown}")
    if args.output:
        worst = max(growths, key=lambda grown: grown.mib_a_day)
        settings = {"ranks": args.ranks, "steps_a_day": DAY_STEPS}
        seconds, data = time.monotonic() - start, {"name": "generated"}
        Record("benchmark/soak", asdict(worst), {}, data, settings, seconds).write(args.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
