"""What a checkpoint costs: the time training stands still while one is made, and the time to read one and go on.

    python benchmarks/run.py resume [--quick]

`in_step` writes and hashes the file before training goes on, as the released code does (which does not hash); `ours`
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
    """A ResNet-50 with 65536 adversaries (quick: ResNet-18, 8192): state, optimizer and digest."""
    arch, size = ("resnet18", 8192) if options.quick else ("resnet50", 65536)
    recipe = PretrainConfig(encoder=EncoderConfig(arch=arch), bank=BankConfig(size=size))
    method = build_method(recipe).to(options.device)
    optimizer = build_optimizer(recipe.optimizer, method.encoder, fused=False)
    for parameter in method.encoder.parameters():
        parameter.grad = parameter.detach().clone()
    optimizer.step()  # momentum buffers exist

    def state(step: int) -> checkpoint.State:
        return checkpoint.State(step, {}, method.state_dict(), optimizer.state_dict(), {}, "", {}, 0.0)

    with tempfile.TemporaryDirectory() as folder:
        writer = checkpoint.Writer(Path(folder), keep=1)
        checkpoint.save(Path(folder), state(1), keep=1)

        def ours() -> float:
            start = time.perf_counter()
            writer.save(state(1))
            stood = time.perf_counter() - start
            writer.wait()  # the next checkpoint is a long way off in a real run
            return stood

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
