"""The cost model of docs/scaling.md: its bytes are the bytes that are sent, its bounds behave as bounds."""

from __future__ import annotations

from unittest import mock

import pytest

from adco.utils import distributed
from benchmarks.speed.scaling import ASSUMED, FLOAT, Machine, Workload, bank_step, exchanged, replicated, seconds
from tests.ranks import run_ranks


def received(load: Workload, sharded: bool) -> float:
    """Bytes that this rank receives in one step of the bank, as rings move them."""
    ranks, bytes_ = distributed.world_size(), 0.0
    names = {"all_gather_into_tensor": 1.0, "all_reduce": 2.0}

    def counted(name: str):
        function = getattr(distributed.dist, name)

        def call(first, *args, **kwargs):
            nonlocal bytes_
            if kwargs.get("group") is None:  # not the CPUs' own words
                bytes_ += names[name] * (ranks - 1) / ranks * first.numel() * first.element_size()
            return function(first, *args, **kwargs)

        return mock.patch.object(distributed.dist, name, call)

    def own_total(rows):  # a GPU's reduce-scatter moves half of what gloo's all-reduce does
        nonlocal bytes_
        before = bytes_
        found = distributed.local_shard(distributed.all_reduce_sum(rows))
        bytes_ = before + (bytes_ - before) / 2
        return found

    with (
        counted("all_gather_into_tensor"),
        counted("all_reduce"),
        mock.patch.object(distributed, "reduce_scatter_sum", own_total),
    ):
        bank_step(load, 1, sharded)
    return bytes_ / 2  # a warm step and a timed one


@pytest.mark.parametrize("ranks", [2, 4])
def test_the_models_bytes_are_those_that_are_sent(ranks):
    load = Workload(8, rows=512, dim=32)
    for sharded, modelled in ((True, exchanged), (False, replicated)):
        for found in run_ranks(received, ranks, load, sharded):
            assert modelled(load, ranks) == pytest.approx(found, rel=0.1)


def test_a_step_is_never_faster_than_its_input_or_its_network():
    starved = Machine(images=2000, decoded=500, bank_flops=1e13, link=1e10, latency=0)
    assert seconds(Workload(32), starved, 8)["step"] == pytest.approx(32 / 500)
    for ranks in (1, 8, 512):
        found = seconds(Workload(32), ASSUMED, ranks)
        assert found["step"] >= found["network"] + found["bank"]
        assert found["step"] >= found["input"]


def test_sharded_traffic_does_not_know_the_bank_and_replicated_does():
    small, large = Workload(32, rows=8192), Workload(32, rows=2**20)
    assert exchanged(small, 8) == exchanged(large, 8)
    assert replicated(large, 8) - replicated(small, 8) == pytest.approx(FLOAT * 2 * 7 / 8 * 128 * (2**20 - 8192))
    assert exchanged(small, 1) == replicated(small, 1) == 0


def test_cores_that_are_shared_slow_every_rank_alike():
    two_cores = Machine(images=100, decoded=1e9, bank_flops=1e12, link=1e9, latency=0, cores=2)
    load = Workload(16, parameters=0)
    assert seconds(load, two_cores, 4)["network"] == 2 * seconds(load, two_cores, 2)["network"]
    assert two_cores.slowdown(1) == 1
