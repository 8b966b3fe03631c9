"""Every method on a GPU: the steps of the CPU, numbers in every precision, and no hidden wait for the GPU.

The checks are those of benchmarks/on_gpu/sections/correctness.py, with smaller images.
"""

import pytest
import torch

from adco.methods import METHODS
from benchmarks.on_gpu.sections import correctness


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return correctness.write_images(tmp_path_factory.mktemp("images"), small=True)


@pytest.mark.parametrize("method", METHODS)
def test_float32_steps_are_those_of_the_cpu(method, images, gpu):
    finding = correctness.equals_the_cpu(correctness.small_recipe(method, images, small=True), gpu)
    assert finding.passed, finding.facts


@pytest.mark.parametrize("method", METHODS)
def test_a_step_never_waits_for_the_gpu(method, images, gpu):
    finding = correctness.does_not_wait(correctness.small_recipe(method, images, small=True), gpu)
    assert finding.passed, finding.facts


@pytest.mark.parametrize("compute", [{"precision": "fp16"}, {"precision": "bf16", "accumulate": 2}])
def test_neither_does_a_scaled_one_nor_one_of_micro_batches(compute, images, gpu):
    finding = correctness.does_not_wait(correctness.small_recipe("adco", images, small=True), gpu, **compute)
    assert finding.passed, finding.facts


def test_augmentation_never_waits_for_the_gpu(images, gpu):
    finding = correctness.augmentation_does_not_wait(correctness.small_recipe("adco", images, small=True), gpu)
    assert finding.passed, finding.facts


@pytest.mark.parametrize("precision", ["tf32", "bf16", "fp16"])
@pytest.mark.parametrize("method", ["adco", "byol", "swav"])
def test_losses_in_every_precision_are_numbers_close_to_float32(method, precision, images, gpu):
    finding = correctness.finite(correctness.small_recipe(method, images, small=True), gpu, precision)
    assert finding.passed, finding.facts


def test_micro_batches_are_one_batch_with_split_statistics(images, gpu):
    finding = correctness.micro_batches_equal_parts(correctness.small_recipe("adco", images, small=True), gpu)
    assert finding.passed, finding.facts


def test_a_wait_is_noticed(gpu):
    """By the same check, or it would prove nothing."""
    finding = correctness.without_waiting(lambda: torch.ones(3, device=gpu).nonzero())
    assert finding.passed is False and finding.facts["place"]
