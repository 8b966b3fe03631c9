"""CUDA graphs change how fast a step is, not what it computes."""

import pytest

from adco.config import Compute
from tests.test_compute import losses


def test_cuda_graphs_compute_the_same(gpu):
    assert losses(Compute(cuda_graphs=True), gpu, 6) == pytest.approx(losses(Compute(), gpu, 6), rel=1e-2)
