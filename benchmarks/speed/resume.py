"""The cost of a checkpoint: how long training is stalled while one is written, and how long it takes to load one.

    python benchmarks/run.py resume [--quick]

`in_step` writes and hashes the file before training continues, as the released code does (which does not hash); `ours`
copies the state and writes it on a thread of its own.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from adco.config.schema import BankConfig, EncoderConfig, PretrainConfig
from adco.methods import build_method
from adco.train import checkpoint
from adco.train.optimizer import build_optimizer
from benchmarks.speed.race import Options, Outcome, Ratio, race, ratio

GOAL = 2.0


def run(options: Options) -> Outcome:
    """Race them with a ResNet-50 and a bank of 65536 (quick: ResNet-18, 8192): state, optimizer and sha256."""
    arch, size = ("resnet18", 8192) if options.quick else ("resnet50", 65536)
    recipe = PretrainConfig(encoder=EncoderConfig(arch=arch), bank=BankConfig(size=size))
    method = build_method(recipe).to(options.device)
    optimizer = build_optimizer(recipe.optimizer, method.encoder, fused=False)
    for parameter in method.encoder.parameters():
        parameter.grad = parameter.detach().clone()
    optimizer.step()  # makes the momentum buffers

    def state(step: int) -> checkpoint.State:
        return checkpoint.State(step, {}, method.state_dict(), optimizer.state_dict(), {}, "", {}, 0.0)

    with tempfile.TemporaryDirectory() as folder:
        writer = checkpoint.Writer(Path(folder), keep=1)
        checkpoint.save(Path(folder), state(1), keep=1)

        def ours() -> float:
            start = time.perf_counter()
            writer.save(state(1))
            stalled = time.perf_counter() - start
            writer.wait()  # in a real run the next checkpoint comes much later
            return stalled

        def read() -> None:
            loaded = checkpoint.load(checkpoint.newest_intact(Path(folder)))
            method.load_state_dict(loaded.method)
            optimizer.load_state_dict(loaded.optimizer)

        found = race(
            {"in_step": lambda: checkpoint.save(Path(folder), state(1), 1), "ours": ours, "read_and_verify": read},
            options.rounds,
        )
        mib = checkpoint.newest_intact(Path(folder)).stat().st_size / 2**20
    ratios: list[Ratio] = [ratio("checkpoint_stall", found["in_step"], found["ours"], GOAL)]
    return Outcome("checkpoint", list(found.values()), ratios, {"MiB": mib}, "", {"arch": arch, "rows": size})
