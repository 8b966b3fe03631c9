"""Whole runs on several ranks: the same as on one, killed at random and resumed bit for bit, on any number of ranks."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import pytest
import torch

from adco.config.loading import load_recipe
from adco.data.batch import Batch
from adco.methods import Method
from adco.train.logger import read_metrics
from adco.train.trainer import Trainer
from tests.adco.train.test_trainer import ROOT, TINY, identical, weights
from tests.faults import toy
from tests.ranks import run_ranks
from tests.waiting import wait_until

SYNCED = ("encoder.batch_norm=sync", "encoder.key_batch_norm=sync")
CPU = torch.device("cpu")


@pytest.fixture
def tiny(tmp_path, images):
    """The tiny recipe and the override that points it at the images."""
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return str(path), f"data.root={images}"


def fitted(recipe: str, output: Path, resume: bool, *overrides: str) -> None:
    """A whole run of a small network on this rank."""
    with toy.small():
        Trainer(load_recipe(recipe, overrides), output, CPU, resume).fit()


def fitted_in_float64(*arguments) -> None:
    """`fitted`, in the precision in which another order of summing does not show after some steps."""
    to_device, to_views = Method.to_device, Batch.to_views
    with (
        mock.patch.object(Method, "to_device", lambda *a: to_device(*a).double()),
        mock.patch.object(Batch, "to_views", lambda *a: [view.double() for view in to_views(*a)]),
    ):
        fitted(*arguments)


def assert_near(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-7, atol=1e-8, msg=name)


def test_two_ranks_train_as_one_process_does(tiny, tmp_path):
    path, data = tiny
    options = data, *SYNCED, "bank.init=train_and_fill", "monitor.every_steps=2", "epochs=1"
    fitted_in_float64(path, tmp_path / "one", False, *options)
    run_ranks(fitted_in_float64, 2, path, tmp_path / "two", False, *options)
    assert_near(weights(tmp_path / "one"), weights(tmp_path / "two"))
    rows = [read_metrics(tmp_path / run / "metrics.jsonl") for run in ("one", "two")]
    for row, other in zip(*rows, strict=True):
        assert row.keys() == other.keys()
        for name in ("loss", "effective_rank", "bank_entropy"):
            assert row.get(name, 0) == pytest.approx(other.get(name, 0), rel=1e-5)


def test_two_ranks_resume_bit_for_bit_and_another_number_of_ranks_goes_on(tiny, tmp_path):
    path, data = tiny
    options = data, *SYNCED, "checkpoint.every_steps=1", "checkpoint.keep=100"
    whole = tmp_path / "whole"
    run_ranks(fitted_in_float64, 2, path, whole, False, *options)
    for step, ranks in ((5, 2), (6, 1)):
        part = tmp_path / f"from{step}on{ranks}"
        part.mkdir()
        for end in ("", ".sha256"):
            shutil.copy(whole / f"checkpoint_{step:08d}.pth{end}", part)
        if ranks == 2:
            run_ranks(fitted_in_float64, 2, path, part, True, *options)
            assert identical(weights(whole), weights(part))
        else:
            fitted_in_float64(path, part, True, *options)
            assert_near(weights(whole), weights(part))


def launched(ranks: int, *arguments: str, restarts: int = 0) -> subprocess.Popen:
    """The tool as a user starts it, in a process group of its own."""
    tool = [str(ROOT / "tools" / "train_adco.py"), *arguments]
    torchrun = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={ranks}",
        f"--max-restarts={restarts}",
    ]
    command = [sys.executable, *(torchrun if ranks > 1 else []), *tool]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, cwd=ROOT, start_new_session=True, **quiet)


def wait_for_step(folder: Path, step: int, process: subprocess.Popen) -> None:
    def reached() -> bool:
        return any(int(path.stem[-8:]) >= step for path in folder.glob("checkpoint_*.pth"))

    wait_until(reached, f"step {step}", lambda: process.poll() is None)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_killed_ten_times_at_random_steps_ends_bit_identical(tiny, tmp_path, ranks):
    path, data = tiny
    arguments = "--config-file", path, data, "epochs=15", "checkpoint.every_steps=1", "checkpoint.keep=2"
    steps = 15 * 4
    assert launched(ranks, *arguments, "--output-dir", str(tmp_path / "whole")).wait(600) == 0
    part, chance = tmp_path / "part", random.Random(0)
    for kill in sorted(chance.sample(range(1, steps - 4), 10)):
        process = launched(ranks, *arguments, "--output-dir", str(part), "--resume")
        wait_for_step(part, kill, process)
        time.sleep(0.05 * chance.random())  # anywhere in the steps after, also while a checkpoint is written
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert launched(ranks, *arguments, "--output-dir", str(part), "--resume").wait(600) == 0
    assert identical(weights(tmp_path / "whole"), weights(part))


@pytest.mark.slow
def test_torchrun_restarts_a_rank_that_died_from_the_last_checkpoint(tiny, tmp_path):
    path, data = tiny
    arguments = "--config-file", path, data, "epochs=15", "checkpoint.every_steps=1"
    assert launched(2, *arguments, "--output-dir", str(tmp_path / "whole")).wait(600) == 0
    part = tmp_path / "part"
    process = launched(2, *arguments, "--output-dir", str(part), restarts=1)
    wait_for_step(part, 7, process)
    workers = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True).stdout
    os.kill(int(workers.split()[-1]), signal.SIGKILL)
    assert process.wait(600) == 0
    assert identical(weights(tmp_path / "whole"), weights(part))
