"""A cost model of one AdCo step on R ranks, compared with gloo ranks of this machine and used to predict clusters.

    python benchmarks/speed/scaling.py [--quick]

Measures the parts of the model (the bank, the collectives) at 1, 2 and 4 ranks, prints measured beside modelled times,
then the predictions of docs/scaling.md. The model's compute is fitted at one rank and its link at two; four ranks are
predicted and then measured.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import torch
from torch.nn import functional as F

from adco.config.schema import BankConfig as BankOptions
from adco.losses.adco import adversarial_contrast
from adco.losses.pairs import make_pairs
from adco.models.memory_bank import MemoryBank
from adco.utils import distributed
from adco.utils.errors import command
from tests.ranks import run_ranks

FLOAT = 4  # bytes


@dataclass(frozen=True)
class Machine:
    """The speed of one rank.

    Attributes:
        images: Images a second through the network: queries and keys, forward and backward.
        decoded: Images a second that the loader makes.
        bank_flops: Floating-point operations a second in the bank's three products.
        link: Bytes a second between ranks.
        latency: Seconds of a collective without data.
        cores: How many ranks really run at the same time (0: each has its own device).
    """

    images: float
    decoded: float
    bank_flops: float
    link: float
    latency: float
    cores: int = 0

    def slowdown(self, ranks: int) -> float:
        """How many times slower a rank computes because others share its cores."""
        return max(1.0, ranks / self.cores) if self.cores else 1.0


@dataclass(frozen=True)
class Workload:
    """The sizes of a step.

    Attributes:
        batch_per_rank: Images of a rank.
        rows: Entries of the bank.
        dim: Dimensions of an embedding.
        views: Query views of an image.
        parameters: Parameters of the network.
    """

    batch_per_rank: int
    rows: int = 65536
    dim: int = 128
    views: int = 1
    parameters: int = 27_966_656  # ResNet-50 with AdCo's head


def exchanged(load: Workload, ranks: int) -> float:
    """Bytes that a rank receives in a step with a sharded bank of any size: queries, gradients, keys, sums."""
    others = (ranks - 1) * load.batch_per_rank
    return FLOAT * others * (load.views * (2 * load.dim + 4) + load.dim)


def replicated(load: Workload, ranks: int) -> float:
    """Bytes that a rank receives in a step when each has the whole bank: keys, and an all-reduce of its gradient."""
    ring = 2 * (ranks - 1) / ranks
    return FLOAT * ((ranks - 1) * load.batch_per_rank * load.dim + ring * load.rows * load.dim)


def seconds(load: Workload, machine: Machine, ranks: int, sharded: bool = True) -> dict[str, float]:
    """The modelled seconds of a step and of its parts.

    The input runs beside the rest. Two thirds of the network's time, its backward pass, hide the all-reduce.

    Args:
        load: The sizes of the step.
        machine: The speed of a rank.
        ranks: How many ranks there are.
        sharded: Whether each rank has a part of the bank, or all of it.
    """
    slow = machine.slowdown(ranks)
    network = slow * load.batch_per_rank / machine.images
    bank = slow * 6 * load.batch_per_rank * load.views * load.rows * load.dim / machine.bank_flops
    collectives = 7 if ranks > 1 else 0
    bank_link = (exchanged if sharded else replicated)(load, ranks) / machine.link + collectives * machine.latency
    reduce = 2 * (ranks - 1) / ranks * FLOAT * load.parameters / machine.link
    exposed = max(0.0, reduce - 2 / 3 * network)
    input_ = slow * load.batch_per_rank / machine.decoded
    parts = {"input": input_, "network": network, "bank": bank, "bank_link": bank_link, "gradients_exposed": exposed}
    return parts | {"step": max(input_, network + bank + bank_link + exposed)}


def bank_step(load: Workload, rounds: int, sharded: bool) -> float:
    """The median seconds of the loss and the bank's step on this rank while all ranks run it."""
    torch.manual_seed(distributed.rank())
    options = BankOptions(load.rows, placement="auto" if sharded else "replicated")
    bank = MemoryBank(options, load.dim)
    q, k = (F.normalize(torch.randn(load.batch_per_rank, load.dim), dim=1) for _ in range(2))
    taken = []
    for _ in range(rounds + 1):
        queries = {0: q.clone().requires_grad_()}
        distributed.any_rank(False)  # a barrier: all start together
        start = time.perf_counter()
        result = adversarial_contrast(
            queries, {1: k}, make_pairs(2, False), bank.rows, 0.12, 0.02, True, sharded=bank.sharded
        )
        result.loss.backward()
        bank.sgd_ascent_step(result.bank_gradient, 3.0)
        distributed.any_rank(False)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])


def reduce_seconds(numbers: int, rounds: int) -> float:
    """The median seconds to sum so many floats over the ranks."""
    tensor, taken = torch.randn(numbers), []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        distributed.all_reduce_sum(tensor)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Measure, compare with the model, and print the predictions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smaller bank and fewer rounds")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # as the ranks do
    load = Workload(64, rows=8192 if args.quick else 65536, parameters=0)
    rounds, cores = 5 if args.quick else 9, len(os.sched_getaffinity(0))
    alone = bank_step(load, rounds, True)
    flops = 6 * load.batch_per_rank * load.rows * load.dim / alone
    small, large = 1000, 2_000_000
    latency = run_ranks(reduce_seconds, 2, small, rounds)[0]
    link = FLOAT * large / max(1e-9, run_ranks(reduce_seconds, 2, large, rounds)[0] - latency)
    machine = Machine(1e9, 1e9, flops, link, latency, cores)
    print(
        f"fitted: {flops / 1e9:.1f} Gflop/s a rank, {link / 1e6:.0f} MB/s, "
        f"{1e6 * latency:.0f} us a collective, {cores} cores"
    )
    print("ranks  placement   measured ms  modelled ms")
    for ranks in (1, 2, 4):
        for sharded in (True, False) if ranks > 1 else (True,):
            measured = alone if ranks == 1 else max(run_ranks(bank_step, ranks, load, rounds, sharded))
            parts = seconds(load, machine, ranks, sharded)
            modelled = parts["bank"] + parts["bank_link"]
            name = "sharded" if sharded else "replicated"
            print(f"{ranks:>5}  {name:<10}  {1e3 * measured:>11.1f}  {1e3 * modelled:>11.1f}")
    print("\n" + predictions())
    return 0


ASSUMED = Machine(images=2300, decoded=9000, bank_flops=2e13, link=4e10, latency=3e-5)


def predictions() -> str:
    """The table of docs/scaling.md: ResNet-50, 32 images a rank, ranks like an H100 with 16 cores each (assumed)."""
    lines = [
        "| GPUs | batch | step ms | images/s | efficiency | bank's link ms | replicated ms | KB | replicated KB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    load = Workload(32)
    one = seconds(load, ASSUMED, 1)["step"]
    for ranks in (1, 8, 64, 512):
        parts = seconds(load, ASSUMED, ranks)
        other = seconds(load, ASSUMED, ranks, sharded=False)
        rate = ranks * load.batch_per_rank / parts["step"]
        traffic = f"{exchanged(load, ranks) / 1e3:.0f} | {replicated(load, ranks) / 1e3:.0f}"
        links = f"{1e3 * parts['bank_link']:.2f} | {1e3 * other['bank_link']:.2f}"
        lines.append(
            f"| {ranks} | {ranks * load.batch_per_rank} | {1e3 * parts['step']:.1f} | {rate:.0f} | "
            f"{100 * one / parts['step']:.0f}% | {links} | {traffic} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
