"""The time that a GPU waits for images is the gap in its own queue."""

import time

import torch

from adco.train.throughput import Throughput


def test_on_a_gpu_only_the_time_in_which_it_is_idle_counts_as_waiting(gpu):
    square = torch.randn(4096, 4096, device=gpu)

    def share(wait: float, products: int) -> float:
        rate = Throughput(gpu)
        for _ in rate.waiting(time.sleep(wait) for _ in range(5)):
            for _ in range(products):
                square @ square
        torch.cuda.synchronize()
        return rate.scalars(5)["loader_wait_share"]

    share(0, 10)  # the first products are slow
    assert share(0.2, 1) > 0.5
    assert share(0.001, 100) < 0.3
