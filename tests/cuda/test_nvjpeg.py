"""What nvJPEG makes, against torchvision's decoder on the CPU."""

import pytest
import torch

from adco.data.images import index_folder
from adco.data.loader import ViewDataset, batches, requests
from benchmarks.speed.photographs import jpeg, photograph, write_photographs
from tests.adco.data.test_nvjpeg import CPU, SPECS, level_differences, made


def photograph_of(root, number, width, height):
    root.mkdir(exist_ok=True)
    (root / f"{number:03d}.jpg").write_bytes(jpeg(photograph(number, width, height)))


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


def test_batches_made_under_load_are_those_of_a_synchronous_run(tmp_path, gpu):
    """Images of many sizes, so that the allocator hands memory on, while matrix products keep the GPU busy: every
    batch is what it is when nothing else runs and the CPU waits for it."""
    for number in range(96):
        photograph_of(tmp_path / "photographs", number, 200 + 7 * (number % 13), 150 + 5 * (number % 11))
    index = index_folder(tmp_path / "photographs")
    dataset = ViewDataset(index, SPECS, 0, 0, "nvjpeg")

    def made(load: bool):
        square, found = torch.randn(4096, 4096, device=gpu), []
        for batch in batches(dataset, requests(0, len(index), 32, 0, 30), 2 if load else 0, gpu):
            if load:
                for _ in range(20):
                    square @ square
            else:
                torch.cuda.synchronize()
            found.append([pixels.long().sum(dim=(1, 2, 3)) for pixels in batch.pixels])
        return found

    for calm, loaded in zip(made(False), made(True), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(calm, loaded, strict=True))
