"""Faults of the machine: no space, no permission, no memory, a clock that jumps, a second run in the same folder."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import random
import time
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import pytest
import torch

from adco.train import checkpoint, failures
from adco.train.logger import read_metrics
from adco.train.trainer import Trainer
from adco.utils.errors import UserError
from adco.utils.files import lock_output_dir
from tests.faults import toy
from tests.faults.mounts import mounted
from tests.faults.table import SLOW, fault
from tests.faults.toy import one_line


@pytest.mark.parametrize("free_kib", [range(0, 300, 60), pytest.param(range(0, 300, 4), marks=SLOW)])
@fault(
    "disk-full",
    "Training",
    "a small disk (tmpfs) that is full after 0, 4, 8 ... KiB of what a run writes; then space is freed",
    "one line that names the file, exit code 2, no partly written file, the last checkpoint intact; --resume ends "
    "bit-identical",
)
def test_the_disk_is_full_at_every_write(recipe, data, tmp_path, free_kib, seen):
    toy.trainer(recipe, tmp_path / "whole", data, "epochs=1").fit()
    seen.tries, seen.survived, seen.lost_steps = len(free_kib), 0, 0
    for kib in free_kib:
        with mounted(tmp_path / "small", "size=2m") as disk:
            filler, free = disk / "filler", os.statvfs(disk)
            filler.write_bytes(bytes(free.f_bavail * free.f_frsize - 1024 * kib))
            code, stderr = toy.tool(recipe, disk / "run", data, "epochs=1")
            if code:
                assert code == 2
                assert "cannot be written (No space left on device)" in one_line(stderr)
                assert str(disk / "run") in stderr
            assert not list((disk / "run").glob(".*.tmp"))
            finished = sorted(path.name[:-7] for path in (disk / "run").glob("*.sha256") if path.stat().st_size)
            kept = checkpoint.newest_intact(disk / "run")
            assert (kept.name if kept else None) == (finished[-1] if finished else None)
            filler.unlink()
            assert toy.tool(recipe, disk / "run", data, "epochs=1", "--resume")[0] == 0
            assert toy.identical(toy.weights(tmp_path / "whole"), toy.weights(disk / "run"))
        seen.survived += 1


@fault(
    "read-only",
    "Training",
    "the output folder is read-only from the start, or becomes read-only during the run",
    "one line that names the folder or file, exit code 2; before the first step if read-only from the start",
)
def test_the_output_is_read_only(recipe, data, tmp_path, seen):
    seen.tries = 2
    with mounted(tmp_path / "fixed", "ro") as disk:
        code, stderr = toy.tool(recipe, disk / "run", data)
        assert (code, "the output folder cannot be written (Read-only file system)" in one_line(stderr)) == (2, True)
    run = toy.trainer(recipe, tmp_path / "run", data)
    step = run.train_step

    def then_read_only(batch):
        if run.step == 7:
            run.writer.wait()  # a disk cannot become read-only while a file on it is open for writing
            stack.enter_context(mounted(tmp_path / "run", "ro"))  # hides what is there
        return step(batch)

    run.train_step = then_read_only
    with (
        ExitStack() as stack,
        pytest.raises(UserError, match="run.*cannot be written .Read-only file system"),
        failures.explained(run.recipe, 1, tmp_path / "run"),
    ):
        run.fit()
    assert checkpoint.newest_intact(tmp_path / "run").name in ("checkpoint_00000006.pth", "checkpoint_00000007.pth")


@fault(
    "clock-jumps",
    "Training",
    "the system's clock jumps by up to a year, forwards and back, each time it is read",
    "the same weights, schedules and metrics; speeds above 0",
)
def test_the_clock_jumps(recipe, data, tmp_path, seen):
    chance, real = random.Random(0), time.time

    def jumping() -> float:
        return real() + chance.uniform(-1, 1) * 365 * 86400

    toy.trainer(recipe, tmp_path / "steady", data).fit()
    with mock.patch("time.time", jumping), mock.patch("tqdm.std.time", jumping):
        toy.trainer(recipe, tmp_path / "jumping", data).fit()
    assert toy.identical(toy.weights(tmp_path / "steady"), toy.weights(tmp_path / "jumping"))
    steady, jumped = (
        [row for row in read_metrics(tmp_path / name / "metrics.jsonl") if "loss" in row]  # others hold words
        for name in ("steady", "jumping")
    )
    assert [(row["step"], row["loss"], row["lr"]) for row in steady] == [
        (row["step"], row["loss"], row["lr"]) for row in jumped
    ]
    assert jumped
    assert all(row["images_per_second"] > 0 and 0 <= row["loader_wait_share"] <= 1 for row in jumped)
    assert json.loads((tmp_path / "jumping" / "record.json").read_text())["duration_seconds"] > 0
    seen.lost_steps = 0


NO_MEMORY = {
    "CUDA": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "cuBLAS": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "cuDNN without a workspace": RuntimeError("GET was unable to find an engine to execute this computation"),
    "cuDNN": RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    "cuDNN 9": RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    "Python": MemoryError(),
}


@fault(
    "out-of-memory",
    "Training",
    "a step needs more memory than there is: really, on the CPU; simulated, with the errors of CUDA, cuBLAS, cuDNN and "
    "Python",
    "one line with the images at a time, views and bank, and what to lower; exit code 2; the last checkpoint intact",
)
def test_out_of_memory_says_what_to_lower(recipe, data, tmp_path, seen):
    def too_much() -> None:
        torch.empty(2**62, dtype=torch.uint8)

    seen.tries, descend = 1 + len(NO_MEMORY), Trainer._descend
    for name, error in {"CPU": None, **NO_MEMORY}.items():
        run, fit = tmp_path / name, mock.Mock(side_effect=error) if error else too_much

        def hungry(self, method, parts, moment, fit=fit):
            if self.step == 5:
                fit()
            return descend(self, method, parts, moment)

        with mock.patch.object(Trainer, "_descend", hungry):
            code, stderr = toy.tool(recipe, run, data)
        assert code == 2
        for words in (
            "out of memory: 12 images at a time (batch=12",
            "2 views of up to 16 px",
            "bank of 24 rows",
            "lower",
        ):
            assert words in one_line(stderr)
        assert checkpoint.newest_intact(run).name == "checkpoint_00000005.pth"


def hold(folder: str, ready) -> None:
    """Lock a folder, as a run does, and never end; a forked child outlives it, as a data worker might."""
    held = lock_output_dir(Path(folder))
    if os.fork() == 0:
        time.sleep(15)
        os._exit(0)
    ready.set()
    time.sleep(600)
    held.close()


@fault(
    "two-runs",
    "Training",
    "a second run is started in the output folder of a running one; then the first is killed with SIGKILL, while a "
    "process that it forked is still alive",
    "the second ends with one line that names the first; after the kill it starts at once",
)
def test_two_runs_do_not_share_a_folder(recipe, data, tmp_path, seen):
    folder = tmp_path / "run"
    folder.mkdir()
    ready = multiprocessing.get_context("fork").Event()
    process = toy.start(hold, str(folder), ready)
    assert ready.wait(300)
    before = sorted(folder.iterdir())
    code, stderr = toy.tool(recipe, folder, data, "--resume")
    assert (code, f"process {process.pid} on " in one_line(stderr)) == (2, True)
    assert sorted(folder.iterdir()) == before
    process.kill()
    process.join()
    assert toy.tool(recipe, folder, data, "--resume", "epochs=1")[0] == 0


@fault(
    "no-locks",
    "Training",
    "an output folder on a file system without locks",
    "the run continues without a lock",
)
def test_a_file_system_without_locks_is_used_all_the_same(tmp_path):
    with mock.patch.object(fcntl, "lockf", side_effect=OSError(38, "Function not implemented")):
        assert lock_output_dir(tmp_path) is None
