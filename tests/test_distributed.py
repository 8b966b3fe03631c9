"""On one process distribution is invisible; on two gloo ranks gather, mean and rank are what their names say."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from adco import distributed


def test_one_process_is_the_identity():
    rows = torch.randn(3, 2)
    assert distributed.gather(rows) is rows
    assert distributed.mean(rows) is rows
    assert (distributed.rank(), distributed.ranks()) == (0, 1)


def _rank(rank: int, rendezvous: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    mine = torch.full((2, 3), float(rank))
    assert (distributed.rank(), distributed.ranks()) == (rank, 2)
    assert distributed.gather(mine)[:, 0].tolist() == [0, 0, 1, 1]
    assert torch.equal(distributed.mean(mine), torch.full((2, 3), 0.5))
    assert torch.equal(mine, torch.full((2, 3), float(rank)))
    dist.destroy_process_group()


def test_two_ranks(tmp_path):
    mp.spawn(_rank, args=(str(tmp_path / "rendezvous"),), nprocs=2)
