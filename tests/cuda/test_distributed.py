"""NCCL with one rank: the checks of benchmarks/on_gpu/sections/nccl.py."""

import pytest
import torch.distributed as dist

from benchmarks.on_gpu.sections import correctness, nccl

pytestmark = pytest.mark.skipif(not dist.is_nccl_available(), reason="this build of torch has no NCCL")


@pytest.fixture
def rank(gpu, tmp_path):
    with nccl.one_rank(gpu, tmp_path):
        yield


def test_every_exchange_of_one_rank_is_the_identity(rank, gpu):
    finding = nccl.exchanges(gpu)
    assert finding.passed, finding.facts
    assert finding.facts["backend"] == "nccl"


def test_gradients_through_exchanges_and_ddp(rank, gpu):
    finding = nccl.gradients(gpu)
    assert finding.passed, finding.facts


@pytest.mark.parametrize("method", ["adco", "simclr"])
def test_accumulated_steps_through_ddp_are_those_without_ranks(method, gpu, tmp_path):
    images = correctness.write_images(tmp_path / "images", small=True)
    recipe = correctness.with_compute(correctness.small_recipe(method, images, small=True), accumulate=2)
    alone = correctness.steps_of(recipe, gpu)
    with nccl.one_rank(gpu, tmp_path):
        finding = nccl.trained(recipe, alone, gpu)
    assert finding.passed, finding.facts


def test_a_rank_that_fails_ends_within_seconds_with_one_line(gpu, tmp_path):
    finding = nccl.error_exit(gpu, tmp_path)
    assert finding.passed, finding.facts
