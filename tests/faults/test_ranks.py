"""A rank that dies, hangs or is wrong: the others end soon, one line names it, and a restart continues bit for bit."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from adco.train import checkpoint
from tests import ROOT
from tests.faults import toy
from tests.faults.table import fault
from tests.waiting import wait_until


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


def start_ranks(ranks: int, folder: Path, timeout_seconds: float, *arguments: str) -> list:
    port, logs = free_port(), [folder / f"log{number}" for number in range(ranks)]
    return [
        toy.start(toy.rank, number, ranks, port, timeout_seconds, str(log), list(arguments))
        for number, log in enumerate(logs)
    ]


def reported(folder: Path) -> list[str]:
    """The errors that the ranks printed, without warnings of libraries and progress."""
    lines = [line for log in sorted(folder.glob("log*")) for line in log.read_text().splitlines()]
    return [line for line in lines if line.startswith(("error", "failed", "Traceback"))]


def wait_for_step(folder: Path, step: int, alive: Callable[[], bool]) -> None:
    """Wait until a checkpoint of the step, or a later one, is finished."""

    def finished() -> bool:
        newest = max(folder.glob("*.sha256"), default=None)
        return newest is not None and int(newest.name[11:19]) >= step

    wait_until(finished, f"the checkpoint of step {step}", alive, interval=0.01)


@pytest.mark.parametrize(("sent", "victim"), [(signal.SIGKILL, 1), (signal.SIGKILL, 0), (signal.SIGSTOP, 1)])
@fault(
    "rank-lost",
    "Training",
    "one of two gloo ranks, either of them, is killed, or hangs (SIGSTOP) with a time-out of 5 s; without torchrun",
    "the other exits with 1 and one line that names the lost rank; an intact checkpoint remains",
)
def test_a_lost_rank_is_named_and_ends_the_others(recipe, data, tmp_path, sent, victim, seen):
    run = tmp_path / "run"
    arguments = "--config-file", recipe, "--output-dir", str(run), data, "epochs=500"
    processes = start_ranks(2, tmp_path, 5.0, *arguments)
    try:
        wait_for_step(run, 3, lambda: all(process.is_alive() for process in processes))
        os.kill(processes[victim].pid, sent)
        start, other = time.monotonic(), processes[1 - victim]
        other.join(240)
        assert other.exitcode == 1, "it hangs, or its exit code is wrong"
        seen.figures["seconds until the other ended"] = round(time.monotonic() - start, 1)
    finally:
        for process in processes:
            process.kill()
            process.join()
    (line,) = reported(tmp_path)
    assert line.startswith(f"failed: rank {victim} of 2 died, or hung for 0:00:05")
    assert checkpoint.newest_intact(run)


WORDS = {"optimiser.lr=3": "unknown key", "batch=7": "batch=7 does not divide", "data.max_bad_share=0": "004.png"}


@pytest.mark.parametrize("mistake", WORDS)
@fault(
    "told-once",
    "Training",
    "a mistake that all ranks find, before or after they connect, or that one rank finds in training (a broken image)",
    "one line for all ranks, exit code 2 from the rank that reports it, no hang",
)
def test_an_error_is_reported_once(recipe, data, tmp_path, images, mistake):
    root = shutil.copytree(images / "train", tmp_path / "images")
    if mistake == "data.max_bad_share=0":
        (root / "class1" / "004.png").write_bytes(b"")
    arguments = "--config-file", recipe, "--output-dir", str(tmp_path / "run"), f"data.root={root}", mistake
    processes = start_ranks(2, tmp_path, 30.0, *arguments)
    for process in processes:
        process.join(240)
    codes = [process.exitcode for process in processes]
    assert 2 in codes and set(codes) <= {1, 2}
    (line,) = reported(tmp_path)
    assert line.startswith("error: ")
    assert WORDS[mistake] in line


@pytest.mark.parametrize(("sent", "code", "words"), [(signal.SIGTERM, 75, "SIGTERM"), (signal.SIGINT, 130, "interr")])
@fault(
    "ranks-put-down",
    "Training",
    "SIGTERM or Ctrl-C reaches one of two gloo ranks, not the first",
    "both stop after the same step with a checkpoint and exit code 75 or 130, one line for both",
)
def test_ranks_stop_together_and_one_reports_it(recipe, data, tmp_path, sent, code, words, seen):
    run = tmp_path / "run"
    processes = start_ranks(2, tmp_path, 30.0, "--config-file", recipe, "--output-dir", str(run), data, "epochs=500")
    wait_for_step(run, 3, lambda: all(process.is_alive() for process in processes))
    os.kill(processes[1].pid, sent)
    for process in processes:
        process.join(240)
    assert [process.exitcode for process in processes] == [code, code]
    logs = [(tmp_path / f"log{number}").read_text() for number in range(2)]
    assert (logs[0].count(words), logs[1].count(words)) == (1, 0)
    assert checkpoint.newest_intact(run)


def torchrun(restarts: int, log: Path, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [f"--max-restarts={restarts}", "-m", "tests.faults.toy", *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=log.open("w"), start_new_session=True)


@pytest.mark.slow
@pytest.mark.timeout(3600)  # torchrun starts six processes one after another that import torch
@fault(
    "rank-killed-under-torchrun",
    "Training",
    "SIGKILL to a rank under torchrun, at random moments, rank 0 and rank 1 in turn, --max-restarts 2",
    "torchrun restarts all ranks, they continue from the last checkpoint, the end is bit-identical",
)
def test_torchrun_restarts_the_ranks(recipe, data, tmp_path, seen):
    arguments = "--config-file", recipe, data, "epochs=15"
    assert torchrun(0, tmp_path / "log", *arguments, "--output-dir", str(tmp_path / "whole")).wait(900) == 0
    part, chance = tmp_path / "part", random.Random(0)
    process = torchrun(2, tmp_path / "log", *arguments, "--output-dir", str(part))
    seen.tries, seen.survived, seen.lost_steps = 2, 0, 0
    for kill in range(2):
        wait_for_step(part, 3 + 20 * kill, lambda: process.poll() is None)
        time.sleep(0.2 * chance.random())
        workers = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True).stdout
        os.kill(int(workers.split()[kill % 2]), signal.SIGKILL)
        seen.survived += 1
    assert process.wait(900) == 0
    assert toy.identical(toy.weights(tmp_path / "whole"), toy.weights(part))


@pytest.mark.slow
@fault(
    "rank-killed-without-restarts",
    "Training",
    "SIGKILL to a rank under torchrun with --max-restarts 0",
    "torchrun ends with an error, no hang, no traceback of this project; at most one line of it",
)
def test_torchrun_without_restarts_ends(recipe, data, tmp_path, seen):
    run = tmp_path / "run"
    process = torchrun(0, tmp_path / "log", "--config-file", recipe, data, "epochs=500", "--output-dir", str(run))
    wait_for_step(run, 3, lambda: process.poll() is None)
    workers = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True).stdout
    os.kill(int(workers.split()[1]), signal.SIGKILL)
    start = time.monotonic()
    assert process.wait(240) == 1
    seen.figures["seconds until torchrun ended"] = round(time.monotonic() - start, 1)
    assert len([line for line in (tmp_path / "log").read_text().splitlines() if line.startswith("failed: ")]) <= 1
    assert "adco/train/trainer.py" not in (tmp_path / "log").read_text()
    assert checkpoint.newest_intact(run)
