"""What nvJPEG makes, against torchvision's decoder on the CPU."""

import pytest

from adco.images import index_folder
from adco.loader import ViewDataset, batches, requests
from benchmarks.photographs import write_photographs
from tests.test_nvjpeg import CPU, SPECS, level_differences, made


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    return write_photographs(tmp_path_factory.mktemp("photographs"), 24, classes=2, width=80, height=60)


def test_the_gpu_makes_what_the_cpu_makes(photographs, gpu):
    for difference in level_differences(made(photographs, gpu), made(photographs, CPU)):
        assert difference.mean() < 2  # nvJPEG's chroma is interpolated in another way
    index = index_folder(photographs)
    dataset = ViewDataset(index, SPECS, 0, 0, "nvjpeg")
    arrived = list(batches(dataset, requests(0, len(index), 8, 0, 6), 2, gpu))
    assert len(arrived) == 6 and all(pixels.is_cuda for batch in arrived for pixels in batch.pixels)

