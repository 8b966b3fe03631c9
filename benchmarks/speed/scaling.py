"""A cost model of one AdCo step on R ranks, checked on this machine's gloo ranks and used to predict larger clusters.

    python benchmarks/speed/scaling.py [--quick]

Measures at 1, 2 and 4 ranks what the model is made of (the network alone, the bank, the exchanges), prints measured
beside modelled, then the predictions of docs/scaling.md. The model's compute is fitted at one rank and its link at two;
four ranks are a prediction that is then measured.
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
    """What one rank does in a second.

    images: through the network, queries and keys, forward and backward; decoded: images that the loader makes;
    bank_flops: of the bank's three products; link: bytes between ranks; latency: seconds a collective;
    cores: ranks that really run at the same time (0: each has its own device)
    """

    images: float
    decoded: float
    bank_flops: float
    link: float
    latency: float
    cores: int = 0

    def slowdown(self, ranks: int) -> float:
        """How much slower a rank computes because others share its cores."""
        return max(1.0, ranks / self.cores) if self.cores else 1.0


@dataclass(frozen=True)
class Job:
    """One recipe: images a rank and step, query views and pairs, bank and embedding, parameters of the network."""

    batch_per_rank: int
    rows: int = 65536
    dim: int = 128
    views: int = 1
    parameters: int = 27_966_656  # ResNet-50 with AdCo's head


def exchanged(job: Job, ranks: int) -> float:
    """Bytes that one rank receives in a step for a sharded bank, whatever its size: queries, pulls, keys, sums."""
    others = (ranks - 1) * job.batch_per_rank
    return FLOAT * others * (job.views * (2 * job.dim + 4) + job.dim)


def replicated(job: Job, ranks: int) -> float:
    """The same where every rank holds the whole bank: keys, and a ring all-reduce of its gradient."""
    ring = 2 * (ranks - 1) / ranks
    return FLOAT * ((ranks - 1) * job.batch_per_rank * job.dim + ring * job.rows * job.dim)


def seconds(job: Job, machine: Machine, ranks: int, sharded: bool = True) -> dict[str, float]:
    """Where a step's time goes: input runs beside the rest, two thirds of the network's time hide the all-reduce."""
    slow = machine.slowdown(ranks)
    network = slow * job.batch_per_rank / machine.images
    bank = slow * 6 * job.batch_per_rank * job.views * job.rows * job.dim / machine.bank_flops
    collectives = 7 if ranks > 1 else 0
    bank_link = (exchanged if sharded else replicated)(job, ranks) / machine.link + collectives * machine.latency
    reduce = 2 * (ranks - 1) / ranks * FLOAT * job.parameters / machine.link
    exposed = max(0.0, reduce - 2 / 3 * network)
    found = {"input": slow * job.batch_per_rank / machine.decoded, "network": network, "bank": bank}
    found |= {"bank_link": bank_link, "gradients_exposed": exposed}
    return found | {"step": max(found["input"], network + bank + bank_link + exposed)}


def bank_step(job: Job, rounds: int, sharded: bool) -> float:
    """Median seconds of the loss and the bank's step on this rank, all ranks together."""
    torch.manual_seed(distributed.rank())
    options = BankOptions(job.rows, placement="auto" if sharded else "replicated")
    bank = MemoryBank(options, job.dim)
    q, k = (F.normalize(torch.randn(job.batch_per_rank, job.dim), dim=1) for _ in range(2))
    taken = []
    for _ in range(rounds + 1):
        queries = {0: q.clone().requires_grad_()}
        distributed.any_rank(False)  # all start together
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
    """Median seconds to sum so many floats over the ranks."""
    tensor, taken = torch.randn(numbers), []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        distributed.all_reduce_sum(tensor)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Measure, compare, predict."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smaller bank and fewer rounds")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # as the ranks do
    job = Job(64, rows=8192 if args.quick else 65536, parameters=0)
    rounds, cores = 5 if args.quick else 9, len(os.sched_getaffinity(0))
    alone = bank_step(job, rounds, True)
    flops = 6 * job.batch_per_rank * job.rows * job.dim / alone
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
            found = alone if ranks == 1 else max(run_ranks(bank_step, ranks, job, rounds, sharded))
            modelled = seconds(job, machine, ranks, sharded)
            modelled = modelled["bank"] + modelled["bank_link"]
            name = "sharded" if sharded else "replicated"
            print(f"{ranks:>5}  {name:<10}  {1e3 * found:>11.1f}  {1e3 * modelled:>11.1f}")
    print("\n" + predictions())
    return 0


ASSUMED = Machine(images=2300, decoded=9000, bank_flops=2e13, link=4e10, latency=3e-5)


def predictions() -> str:
    """docs/scaling.md's table: ResNet-50, batch 32 a rank, assumed H100-like ranks with 16 cores each."""
    lines = [
        "| GPUs | batch | step ms | images/s | efficiency | bank's link ms | replicated ms | KB | replicated KB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    job = Job(32)
    one = seconds(job, ASSUMED, 1)["step"]
    for ranks in (1, 8, 64, 512):
        found = seconds(job, ASSUMED, ranks)
        other = seconds(job, ASSUMED, ranks, sharded=False)
        rate = ranks * job.batch_per_rank / found["step"]
        traffic = f"{exchanged(job, ranks) / 1e3:.0f} | {replicated(job, ranks) / 1e3:.0f}"
        links = f"{1e3 * found['bank_link']:.2f} | {1e3 * other['bank_link']:.2f}"
        lines.append(
            f"| {ranks} | {ranks * job.batch_per_rank} | {1e3 * found['step']:.1f} | {rate:.0f} | "
            f"{100 * one / found['step']:.0f}% | {links} | {traffic} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
