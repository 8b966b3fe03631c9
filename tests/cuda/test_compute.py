"""On a GPU `compute.` changes how fast and how exactly a step is computed, not what it is."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from adco.config.schema import BankConfig, ComputeConfig, EncoderConfig, PretrainConfig, ViewConfig
from adco.methods import build_method
from adco.methods.base import TrainingProgress
from adco.train.failures import is_out_of_memory
from adco.train.gradient_cache import backward, split
from adco.train.knn_probe import KnnProbe
from adco.utils.device import resolve_device, set_arithmetic
from tests.adco.train.test_compute import losses
from tests.conftest import write_pictures


@pytest.mark.parametrize(
    "compute",
    [
        ComputeConfig(cuda_graphs=True),
        ComputeConfig(compile=True),
        ComputeConfig(channels_last=False),
        ComputeConfig(precision="tf32"),
    ],
)
def test_options_compute_the_same(gpu, compute):
    assert losses(compute, gpu, 6) == pytest.approx(losses(ComputeConfig(), gpu, 6), rel=1e-2)


def test_float32_is_float32_and_tf32_is_not(gpu):
    """Against float64, in units of the largest value: float32 is good to some 1e-6 (fast algorithms: 1e-5), TF32's ten
    bits to some 4e-4."""
    torch.manual_seed(0)
    images, weight = torch.randn(8, 64, 28, 28), torch.randn(64, 64, 3, 3)
    exact = F.conv2d(images.double(), weight.double())

    def error(precision: str) -> float:
        set_arithmetic(gpu, precision)
        found = F.conv2d(images.to(gpu), weight.to(gpu)).cpu().double()
        return ((found - exact).abs().max() / exact.abs().max()).item()

    assert error("float32") < 3e-5
    if torch.cuda.get_device_capability() >= (8, 0):  # older ones have no TF32
        assert 1e-4 < error("tf32") < 5e-3
    assert error("float32") < 3e-5  # and back


def test_matrix_products_are_float32_in_every_precision(gpu):
    a, b = torch.randn(256, 512), torch.randn(512, 256)
    for precision in ("float32", "tf32", "bf16", "fp16"):
        set_arithmetic(gpu, precision)
        found = (a.to(gpu) @ b.to(gpu)).cpu().double()
        exact = a.double() @ b.double()
        assert (found - exact).abs().max() / exact.abs().max() < 5e-6


@pytest.mark.parametrize(
    "compute", [ComputeConfig(compile=True, accumulate=2), ComputeConfig(cuda_graphs=True, accumulate=2)]
)
def test_compiled_micro_batches_of_many_sizes_make_no_graph_after_the_first_step(gpu, compute):
    from torch._dynamo.utils import counters

    views = [ViewConfig(px=px) for px in (32, 48, 64, 80)]
    encoder = EncoderConfig(arch="resnet18", stem="small", dim=16, key_batch_norm="local")
    recipe = PretrainConfig(batch=16, views=views, encoder=encoder, bank=BankConfig(size=32, init="random"))
    method = build_method(recipe).to_device(compute, gpu)
    images = [torch.randn(16, 3, v.px, v.px, device=gpu).contiguous(memory_format=torch.channels_last) for v in views]
    graphs = []
    for number in range(3):
        step = backward(
            method,
            method.encoder,
            split(images, 2),
            TrainingProgress(number, 3, 3),
            torch.amp.GradScaler("cuda", enabled=False),
        )
        assert step.loss.isfinite()
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] == graphs[1] == graphs[2]


def test_the_probe_leaves_compiled_graphs_alone(gpu, tmp_path):
    from torch._dynamo.utils import counters

    for part, each in (("train", 16), ("val", 6)):
        write_pictures(tmp_path / part, 3, each)
    recipe = PretrainConfig(encoder=EncoderConfig(arch="resnet18", stem="small", dim=16), bank=BankConfig(size=32))
    method = build_method(recipe).to_device(ComputeConfig(cuda_graphs=True), gpu)
    images = torch.randn(8, 3, 32, 32, device=gpu).contiguous(memory_format=torch.channels_last)
    for _ in range(3):
        torch.compiler.cudagraph_mark_step_begin()
        method.encoder([images])[0].sum().backward()
    before, probe = counters["stats"]["unique_graphs"], KnnProbe(tmp_path, 24, 5, 0.07, 30, 2)
    first = probe(method.encoder.backbone, gpu)
    assert counters["stats"]["unique_graphs"] == before
    assert probe(method.encoder.backbone, gpu) == first


def test_a_full_memory_is_known_as_such(gpu):
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50, dtype=torch.uint8, device=gpu)
    assert is_out_of_memory(caught.value)


def test_a_gpu_by_its_index_is_the_current_one(gpu):
    last = torch.cuda.device_count() - 1
    try:
        resolve_device(f"cuda:{last}")
        assert torch.cuda.current_device() == last
    finally:
        torch.cuda.set_device(0)
