"""Faults of a run: killed, an error in a thread, NaN, changed images. It resumes, or reports why it does not."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
import tarfile
import threading
import time
from pathlib import Path
from unittest import mock

import pytest
import torch

from adco.config.loading import load_recipe
from adco.data import loader
from adco.data.images import index_folder
from adco.data.shards import index_shards
from adco.train import checkpoint
from adco.train.trainer import Trainer
from adco.utils.errors import Failure
from adco.utils.files import sha256_of
from tests.faults import toy
from tests.faults.table import SLOW, fault
from tests.faults.toy import one_line
from tests.waiting import wait_until

KILLS = [pytest.param(4, id="4"), pytest.param(100, id="100", marks=SLOW)]


@pytest.mark.parametrize("kills", KILLS)
@fault(
    "sigkill",
    "Training",
    "SIGKILL at random moments; every second one while a checkpoint is being written",
    "an intact checkpoint remains after each; the end is bit-identical to the uninterrupted run's",
)
def test_killed_at_random_moments(recipe, data, tmp_path, kills, seen):
    whole, part, chance = tmp_path / "whole", tmp_path / "part", random.Random(kills)
    tiny = load_recipe(recipe, [data, f"epochs={2 * kills}"])
    toy.trainer(tiny, whole).fit()
    seen.tries, seen.survived, seen.lost_steps, newest, again, writing = kills, 0, 0, 0, 0, 0
    for kill in range(kills):
        process = toy.start(toy.resume_run, tiny, part, tmp_path / "steps")
        wait_for_a_new_checkpoint(part, newest, process)
        time.sleep(0.1 * chance.random())
        while kill % 2 and not list(part.glob(".checkpoint_*.tmp")):
            assert process.is_alive(), "the run ended before it could be killed: it needs more epochs"
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        writing += bool(list(part.glob(".checkpoint_*.tmp")))
        kept = checkpoint.newest_intact(part)
        assert kept is not None, "no intact checkpoint is left"
        step = int(kept.stem[-8:])
        seen.lost_steps += max(0, newest - step)
        newest, again = step, max(again, (tmp_path / "steps").stat().st_size - step)
        seen.survived += 1
    last = toy.start(toy.resume_run, tiny, part, tmp_path / "steps")
    last.join()
    assert last.exitcode == 0
    assert toy.identical(toy.weights(whole), toy.weights(part))
    assert not list(part.glob(".*.tmp")), "the partly written file of a killed run is still there"
    assert seen.lost_steps == 0
    assert writing >= kills // 4
    seen.figures |= {"killed while writing a checkpoint": writing, "steps since the last checkpoint, at most": again}


def wait_for_a_new_checkpoint(folder: Path, newest: int, process) -> None:
    """Wait until a checkpoint later than step `newest` is finished."""

    def finished() -> bool:
        return any(int(path.name[11:19]) > newest for path in folder.glob("*.sha256"))

    wait_until(finished, "a later checkpoint before the kill; the run needs more epochs", process.is_alive, 0.002)


@fault(
    "later-checkpoint-damaged",
    "Training",
    "a kill between writing a checkpoint and its sha256, then a stop at an earlier step, with checkpoint.keep=1",
    "the intact checkpoint is not removed as the older one",
)
def test_a_damaged_later_checkpoint_does_not_push_out_an_intact_one(recipe, data, tmp_path):
    run = tmp_path / "run"
    toy.trainer(recipe, run, data, "epochs=1").fit()
    (run / "checkpoint_00000009.pth").write_bytes(b"half")
    state = checkpoint.load(run / "checkpoint_00000004.pth")
    checkpoint.save(run, checkpoint.State(**vars(state) | {"step": 5}), keep=1)
    assert checkpoint.newest_intact(run).name == "checkpoint_00000005.pth"


@fault(
    "checkpoint-bit-rot",
    "Training",
    "the newest checkpoint is truncated, has a flipped bit, is empty, or has lost its sha256 file",
    "it is skipped, and the run resumes from the one before, bit for bit",
)
def test_damaged_checkpoints_are_skipped(recipe, data, tmp_path, seen):
    whole = tmp_path / "whole"
    toy.trainer(recipe, whole, data, "epochs=2", "checkpoint.keep=3").fit()
    newest = whole / "checkpoint_00000008.pth"
    content, middle = newest.read_bytes(), newest.stat().st_size // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    seen.tries, seen.lost_steps = 4, 0
    for number, damaged in enumerate((content[:middle], flipped, b"", None)):
        part = shutil.copytree(whole, tmp_path / str(number))
        if damaged is None:
            (part / f"{newest.name}.sha256").unlink()
        else:
            (part / newest.name).write_bytes(damaged)
        again = toy.trainer(recipe, part, data, "epochs=2", "checkpoint.keep=3", resume=True)
        assert again.step == 7
        again.fit()
        assert toy.identical(toy.weights(whole), toy.weights(part))


@pytest.mark.parametrize("backend", ["auto", "reference"])
@fault(
    "worker-thread-error",
    "Training",
    "an unexpected error in one of the threads that make views",
    "the run stops with that error, no hang, and continues bit for bit when resumed",
)
def test_an_error_in_a_data_thread_is_not_swallowed(recipe, data, tmp_path, backend, seen):
    made_by = f"data.backend={backend}"
    toy.trainer(recipe, tmp_path / "whole", data, made_by).fit()
    run = toy.trainer(recipe, tmp_path / "run", data, made_by, "data.workers=2")
    read, calls = type(run.index).read, iter(range(10**6))

    def broken(index, number):
        if next(calls) == 150:
            raise ZeroDivisionError("planted")
        return read(index, number)

    with mock.patch.object(type(run.index), "read", broken), pytest.raises(ZeroDivisionError, match="planted"):
        run.fit()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("views")]
    toy.trainer(recipe, tmp_path / "run", data, made_by, resume=True).fit()
    assert toy.identical(toy.weights(tmp_path / "whole"), toy.weights(tmp_path / "run"))
    seen.lost_steps = 0


@fault(
    "nan-loss",
    "Training",
    "the loss becomes NaN or infinite in the middle of a run",
    "exit code 1; the last good checkpoint is kept, the batch's files are named, the state is saved",
)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run(recipe, data, tmp_path, images, value):
    descend, wanted = Trainer._descend, []

    def poisoned(self, method, parts, moment):
        step = descend(self, method, parts, moment)
        if self.step == 13:
            wanted.append(parts)
            step.loss.data.fill_(value)
            method.bank.rows[3, 2] = value
        return step

    with mock.patch.object(Trainer, "_descend", poisoned):
        code, stderr = toy.tool(recipe, tmp_path / "run", data, "checkpoint.every_steps=3")
    assert code == 1
    assert f"the loss is {value} at step 13" in one_line(stderr)
    study = json.loads((tmp_path / "run" / "diverged_00000013.json").read_text())
    index = toy.trainer(recipe, tmp_path / "other", data).index
    expected = next(loader.requests(0, len(index), 12, 13, 14)).samples
    assert study["files"] == [index.paths[sample] for sample in expected]
    assert "method.bank.rows" in study["not_finite_by_then"]
    assert study["last_good_checkpoint"] == checkpoint.newest_intact(tmp_path / "run").name == "checkpoint_00000012.pth"
    state = checkpoint.load(tmp_path / "run" / "diverged_00000013.pth")
    assert not state.method["bank.rows"].isfinite().all()
    assert not checkpoint.not_finite(vars(checkpoint.load(tmp_path / "run" / "checkpoint_00000012.pth")))


@fault(
    "poisoned-weights",
    "Training",
    "weights become infinite in the step before a checkpoint, while the loss is still finite",
    "that checkpoint is not written, so that --resume never starts from it",
)
def test_a_checkpoint_with_an_infinity_is_never_written(recipe, data, tmp_path):
    run = toy.trainer(recipe, tmp_path / "run", data, "epochs=1")
    run.fit()
    run.method.encoder.head[0].weight.data[0, 0] = math.inf
    run.step = 5
    with pytest.raises(Failure, match="checkpoint_00000005.pth: not written, method.encoder.head.0.weight holds a NaN"):
        run._save()
        run.writer.wait()
    assert checkpoint.newest_intact(tmp_path / "run").name == "checkpoint_00000004.pth"


@fault(
    "data-changed",
    "Training",
    "images added, removed, renamed, moved to another class or replaced under their names between stop and resume",
    "noticed, one line, exit code 2; --force-recipe-change continues",
)
def test_a_data_set_that_changed_is_noticed(recipe, tmp_path, images, seen):
    changes = {
        "added": lambda root: shutil.copy(root / "class0" / "000.png", root / "class0" / "zzz.png"),
        "removed": lambda root: (root / "class1" / "003.png").unlink(),
        "renamed": lambda root: (root / "class1" / "003.png").rename(root / "class1" / "999.png"),
        "replaced": lambda root: shutil.copy(root / "class0" / "000.png", root / "class1" / "003.png"),
        "moved": lambda root: (root / "class1" / "003.png").rename(root / "class2" / "003b.png"),
    }
    seen.tries = len(changes)
    for name, change in changes.items():
        root = shutil.copytree(images / "train", tmp_path / name / "images")
        arguments = recipe, tmp_path / name / "run", f"data.root={root}", "epochs=1"
        assert toy.tool(*arguments)[0] == 0
        change(root)
        code, stderr = toy.tool(*arguments, "--resume")
        assert (code, "the images themselves" in one_line(stderr)) == (2, True)
        assert toy.tool(*arguments, "--resume", "--force-recipe-change")[0] == 0


def test_a_checkpoint_without_sizes_can_be_resumed(recipe, tmp_path, images):
    root = shutil.copytree(images / "train", tmp_path / "images")
    arguments = recipe, tmp_path / "run", f"data.root={root}", "epochs=1"
    assert toy.tool(*arguments)[0] == 0
    path = checkpoint.newest_intact(tmp_path / "run")
    content = torch.load(path, weights_only=True)
    assert content.pop("sizes") == index_folder(root).sizes
    torch.save(content, path)
    path.with_name(f"{path.name}.sha256").write_text(sha256_of(path))
    shutil.copy(root / "class0" / "000.png", root / "class1" / "003.png")
    assert toy.tool(*arguments, "--resume")[0] == 0


def test_sizes_are_of_the_files_wherever_they_lie(tmp_path, images, monkeypatch):
    root = images / "train"
    copied = shutil.copytree(root, tmp_path / "copy")
    os.utime(copied / "class0" / "000.png", (1, 1))
    assert index_folder(copied).sizes == index_folder(root).sizes
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for path in index_folder(root).paths:
            tar.add(root / path, path)
    assert index_shards(str(tmp_path / "x.tar")).sizes == index_folder(root).sizes
    before = [index_folder(copied).sizes]
    monkeypatch.setattr("adco.data.images.SIZED", 20)
    before.append(index_folder(copied).sizes)
    with (copied / "class2" / "015.png").open("ab") as file:  # the last of 48: of 20 evenly spread it is none
        file.write(b"0")
    assert index_folder(copied).sizes == before[1]
    monkeypatch.undo()
    assert index_folder(copied).sizes != before[0]
