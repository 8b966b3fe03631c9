"""A run small enough to be killed a hundred times: the real trainer on a real folder, with a small network.

Child processes are forked from the test, which has imported everything, so that a start costs milliseconds.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from unittest import mock

import torch
from torch import nn

from adco.config.loading import load_recipe
from adco.config.schema import PretrainConfig
from adco.train import checkpoint
from adco.train.trainer import Trainer
from adco.utils import distributed
from tools import train_adco

CPU = torch.device("cpu")
RECIPE = """
method: adco
epochs: 6
batch: 12
data: {workers: 0}
bank: {size: 24, init: random}
encoder: {arch: resnet18, stem: small, dim: 8, head_width: 16, key_momentum: 0.9}
optimizer: {lr: 0.05, schedule_by: step}
views: [{px: 16}, {px: 16}]
compute: {channels_last: false}
monitor: {every_steps: 0}
checkpoint: {every_steps: 1, keep: 1}
"""


def backbone(arch: str = "", stem: str = "") -> nn.Module:
    """(B, 3, S, S) -> (B, 512), as a resnet18 gives them, in a thousand parameters."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(8), nn.Flatten()
    )


@contextlib.contextmanager
def small() -> Iterator[None]:
    """Use the small network, one thread, and a fixed commit."""
    torch.set_num_threads(1)
    with (
        mock.patch("adco.models.encoder.build_resnet", backbone),
        mock.patch("adco.train.trainer.commit", lambda: "toy"),
    ):
        yield


def trainer(recipe: Path | str | PretrainConfig, output: Path, *overrides: str, resume: bool = False) -> Trainer:
    """A trainer of the small network."""
    loaded = recipe if isinstance(recipe, PretrainConfig) else load_recipe(str(recipe), overrides)
    with small():
        return Trainer(loaded, output, CPU, resume)


def tool(recipe: Path | str, output: Path, *arguments: str) -> tuple[int, str]:
    """tools/train_adco.py with the small network: (exit code, stderr)."""
    with small(), contextlib.redirect_stderr(io.StringIO()) as errors, contextlib.redirect_stdout(io.StringIO()):
        code = train_adco.main(["--config-file", str(recipe), "--output-dir", str(output), *arguments])
    return code, errors.getvalue().strip()


def resume_run(recipe: PretrainConfig, output: Path, steps: Path) -> None:
    """Resume the run and train to the end, unless killed. `steps` gets a byte for every finished step."""
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    run = trainer(recipe, output, resume=True)
    counter, step = os.open(steps, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), run.train_step
    os.write(counter, b"." * run.step)

    def counted(batch):
        done = step(batch)
        os.write(counter, b".")
        return done

    run.train_step = counted
    run.fit()


def start(function: Callable, *args) -> multiprocessing.Process:
    """Call a module-level function in a child process."""
    process = multiprocessing.get_context("fork").Process(target=function, args=args, daemon=True)
    process.start()
    return process


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """All trained tensors of the newest intact checkpoint, and its step."""
    state = checkpoint.load(checkpoint.newest_intact(folder))
    return state.method | {"step": torch.tensor(state.step)}


def identical(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def one_line(text: str) -> str:
    """The text, after asserting that it is one line and not a traceback."""
    assert "\n" not in text, text
    assert "Traceback" not in text
    return text


def rank(number: int, ranks: int, port: int, timeout_seconds: float, log: str, arguments: list[str]) -> None:
    """tools/train_adco.py with the small network as one of several ranks, started as by `srun`; exits with its code."""
    os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(ranks)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    distributed.TIMEOUT = timedelta(seconds=timeout_seconds)
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT), 2)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    with small():
        os._exit(train_adco.main(arguments))


if __name__ == "__main__":
    with small():
        sys.exit(train_adco.main())
