"""A checkpoint is whole or absent, and only an intact one is resumed from."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest
import torch

from adco.train import checkpoint
from adco.utils.errors import UserError
from adco.utils.files import atomic_write


def state(step: int) -> checkpoint.State:
    method = {"weight": torch.full((100,), float(step))}
    return checkpoint.State(step, {"epochs": 1}, method, {"lr": 0.1}, {}, "5eed", {"a.jpg": "gone"}, 2.5)


def test_what_is_saved_is_loaded(tmp_path):
    loaded = checkpoint.load(checkpoint.save(tmp_path, state(7), keep=1))
    assert torch.equal(loaded.method.pop("weight"), torch.full((100,), 7.0))
    assert loaded == checkpoint.State(7, {"epochs": 1}, {}, {"lr": 0.1}, {}, "5eed", {"a.jpg": "gone"}, 2.5)


def test_the_last_n_are_kept_with_their_digests(tmp_path):
    for step in (1, 2, 10, 11):
        checkpoint.save(tmp_path, state(step), keep=2)
    names = [f"checkpoint_{step:08d}.pth{end}" for step in (10, 11) for end in ("", ".sha256")]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


@pytest.mark.parametrize("damage", ["truncate", "flip", "no digest", "empty digest"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path, damage):
    good = checkpoint.save(tmp_path, state(1), keep=3)
    bad = checkpoint.save(tmp_path, state(2), keep=3)
    assert checkpoint.newest_intact(tmp_path) == bad
    content = bytearray(bad.read_bytes())
    digest = bad.with_name(bad.name + ".sha256")
    if damage == "truncate":
        bad.write_bytes(content[:-10])
    elif damage == "flip":
        content[len(content) // 2] ^= 1
        bad.write_bytes(content)
    elif damage == "no digest":
        digest.unlink()
    else:
        digest.write_text("")
    assert checkpoint.newest_intact(tmp_path) == good


def test_another_schema_is_refused(tmp_path):
    path = tmp_path / "checkpoint_00000001.pth"
    torch.save({"schema": 99}, path)
    with pytest.raises(UserError, match="schema 99, expected 2"):
        checkpoint.load(path)


def test_a_failed_write_leaves_nothing_and_keeps_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), atomic_write(path) as file:
        file.write(b"half")
        1 / 0  # noqa: B018
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_no_space_is_one_line_and_leaves_nothing(tmp_path):
    with pytest.raises(UserError, match="cannot be written"), atomic_write(tmp_path / "file"):
        raise OSError(28, "No space left on device")
    assert not list(tmp_path.iterdir())


WRITER = """
import sys, torch
from pathlib import Path
from adco.train import checkpoint
for step in range(1, 10_000):
    method = {"weight": torch.full((200_000,), float(step))}
    checkpoint.save(Path(sys.argv[1]), checkpoint.State(step, {}, method, {}, {}, "", {}, 0.0), keep=2)
    print(step, flush=True)
"""


def test_killing_the_writer_never_leaves_less_than_one_intact_checkpoint(tmp_path):
    for round_number in range(4):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        process.stdout.readline()
        time.sleep(0.013 * (1 + round_number))
        process.send_signal(signal.SIGKILL)
        written = [int(line) for line in process.communicate()[0].split()]
        assert process.returncode == -signal.SIGKILL
        newest = checkpoint.newest_intact(tmp_path)
        loaded = checkpoint.load(newest)
        assert torch.equal(loaded.method["weight"], torch.full((200_000,), float(loaded.step)))
        if round_number == 0 and written:
            assert loaded.step >= written[-1]


def test_a_writer_takes_the_state_as_it_was_when_asked(tmp_path):
    writer, weight = checkpoint.Writer(tmp_path, keep=2), torch.ones(100)
    for step in (1, 2):
        now = checkpoint.State(step, {}, {"weight": weight}, {"groups": [{"lr": 0.1}]}, {}, "", {}, 0.0)
        writer.save(now)
        weight.add_(1)  # training goes on at once
    writer.wait()
    kept = [checkpoint.load(tmp_path / f"checkpoint_{step:08d}.pth").method["weight"][0].item() for step in (1, 2)]
    assert kept == [1, 2]


def test_a_writer_tells_what_went_wrong_on_its_thread(tmp_path):
    (tmp_path / "file").write_text("")
    writer = checkpoint.Writer(tmp_path / "file", keep=1)
    writer.save(state(1))
    with pytest.raises(UserError, match="file"):
        writer.wait()
    writer.wait()  # reported once
