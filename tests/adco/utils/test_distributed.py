"""On one process distribution is invisible; on several gloo ranks each exchange is what its name says."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from adco.utils import distributed
from adco.utils.errors import UserError, command
from tests.ranks import run_ranks


def test_one_process_is_the_identity():
    rows = torch.randn(3, 2)
    for exchange in (
        distributed.all_gather,
        distributed.all_reduce_sum,
        distributed.all_reduce_mean,
        distributed.all_reduce_max,
        distributed.reduce_scatter_sum,
    ):
        assert torch.equal(exchange(rows), rows)
    assert distributed.all_gather_with_gradient(rows) is rows
    assert (distributed.rank(), distributed.world_size(), distributed.all_gather_objects("a")) == (0, 1, ["a"])
    assert distributed.any_rank(True)
    assert not distributed.any_rank(False)
    layer = torch.nn.Linear(2, 2)
    assert distributed.parallel(layer) is layer


def exchanged() -> dict:
    rank = distributed.rank()
    mine = torch.full((2, 3), float(rank))
    weight = torch.tensor([1.0 + rank], requires_grad=True)
    ours = distributed.all_gather_with_gradient(weight.view(1, 1))  # [[1], [2]]
    (ours.squeeze() * torch.tensor([3.0, 5.0]) * (rank + 1)).sum().backward()
    summed = torch.tensor(2.0 + rank, requires_grad=True)
    (distributed.all_reduce_sum_with_gradient(summed) * (rank + 1)).backward()
    results = {
        "ranks": (rank, distributed.world_size()),
        "gather": distributed.all_gather(mine)[:, 0].tolist(),
        "own": distributed.local_shard(torch.arange(4)).tolist(),
        "mean": distributed.all_reduce_mean(mine)[0, 0].item(),
        "largest": distributed.all_reduce_max(mine)[0, 0].item(),
        "reduce_scatter_sum": distributed.reduce_scatter_sum(torch.arange(4.0).view(4, 1)).flatten().tolist(),
        "anywhere": (distributed.any_rank(rank == 1), distributed.any_rank(False)),
        "objects": distributed.all_gather_objects({"rank": rank}),
        "gather_gradient": weight.grad.item(),
        "total_gradient": summed.grad.item(),
    }
    assert torch.equal(mine, torch.full((2, 3), float(rank)))  # nothing is changed in place
    return results


@pytest.mark.parametrize("failure", [None, UserError("no such folder"), ValueError("odd"), KeyboardInterrupt()])
def test_a_rank_that_fails_under_nccl_reports_first_and_then_aborts(monkeypatch, capsys, failure):
    """`destroy_process_group` waits for collectives that a failed rank never joins: it is for an end without error."""
    calls, running = [], []
    world = SimpleNamespace(abort=lambda: calls.append(("abort", capsys.readouterr().err)))
    fake = SimpleNamespace(
        rendezvous=lambda *_, **__: iter([(dist.HashStore(), 0, 2)]),
        PrefixStore=dist.PrefixStore,
        DistError=dist.DistError,
        init_process_group=lambda backend, **_: (calls.append(backend), running.append(1)),
        new_group=lambda **_: None,
        destroy_process_group=lambda: calls.append("destroy"),
        is_available=lambda: True,
        is_initialized=lambda: bool(running),
        group=SimpleNamespace(WORLD=world),
    )
    monkeypatch.setattr(distributed, "dist", fake)
    monkeypatch.setattr(distributed, "_fresh_store", lambda store, *_: store)
    monkeypatch.setattr(distributed, "_lost_ranks", lambda *_: [1])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", calls.append)
    monkeypatch.setattr(distributed.signal, "signal", lambda *_: None)
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)

    @command
    def tool(argv):
        with distributed.started(torch.device("cuda")) as device:
            assert device == torch.device("cuda", 0)
            if failure is not None:
                raise failure

    code = tool([])
    assert calls[:2] == [torch.device("cuda", 0), "nccl"]
    if failure is None:
        assert (code, calls[2:]) == (0, ["destroy"])
        return
    ((name, printed),) = calls[2:]
    assert name == "abort" and code == {UserError: 2, ValueError: 1, KeyboardInterrupt: 130}[type(failure)]
    if isinstance(failure, Exception):
        assert str(failure) in printed and printed.count("\n") == 1  # before the abort, and not once more
        assert capsys.readouterr().err == ""


def test_two_ranks():
    same = {"gather": [0, 0, 1, 1], "mean": 0.5, "largest": 1, "anywhere": (True, False)}
    same |= {"objects": [{"rank": 0}, {"rank": 1}], "total_gradient": 3}
    first = same | {"ranks": (0, 2), "own": [0, 1], "reduce_scatter_sum": [0, 2], "gather_gradient": 3 * (1 + 2)}
    second = same | {"ranks": (1, 2), "own": [2, 3], "reduce_scatter_sum": [4, 6], "gather_gradient": 5 * (1 + 2)}
    assert run_ranks(exchanged, 2) == [first, second]
