"""The tests below this folder need an NVIDIA GPU: they are marked `cuda`, and skipped with that reason without one.

`pytest tests/cuda` runs them with torch and pytest alone: they import nothing that a stock PyTorch image lacks but what
`adco` itself needs.
"""

from pathlib import Path

import pytest
import torch

HERE = Path(__file__).resolve().parent
NO_GPU = "needs an NVIDIA GPU, and none is visible"


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.cuda)
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason=NO_GPU))


@pytest.fixture
def gpu() -> torch.device:
    return torch.device("cuda")
