"""A run that is resumed on a GPU goes on as if it had never stopped: the check of
benchmarks/on_gpu/sections/correctness.py, with smaller images."""

import pytest

from benchmarks.on_gpu.sections import correctness


@pytest.mark.parametrize("compute", [{}, {"channels_last": False}], ids=["same", "contiguous"])
@pytest.mark.parametrize("method", ["adco", "moco"])
def test_resumed_equals_uninterrupted(method, compute, tmp_path, gpu):
    images = correctness.write_images(tmp_path / "images", small=True)
    finding = correctness.resumed(correctness.small_recipe(method, images, small=True), gpu, **compute)
    assert finding.passed, finding.facts
