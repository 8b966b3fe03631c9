"""Views arrive on a GPU as they are on the CPU."""

import pytest
import torch

from adco.data.images import index_folder
from adco.data.loader import ViewDataset, batches, requests
from benchmarks.speed.photographs import write_photographs
from tests.adco.data.test_loader import SPECS, loaded

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    return write_photographs(tmp_path_factory.mktemp("photographs"), 24, classes=2, width=80, height=60)


@pytest.mark.parametrize("backend", ["native", "device", "reference"])
def test_views_arrive_on_the_gpu_as_they_are_on_the_cpu(photographs, backend, gpu):
    index = index_folder(photographs)
    dataset = ViewDataset(index, SPECS, 0, 0, backend)
    there = [b.to_views(gpu) for b in batches(dataset, requests(0, len(index), 8, 0, 6), 2, gpu)]
    here = loaded(photographs, 0, 6, 0, batch=8, backend=backend)
    for step, batch in enumerate(here):
        for a, b in zip(there[step], batch.to_views(CPU), strict=True):
            assert (a.cpu() - b).abs().max() < 0.02  # a level is 0.017 apart
