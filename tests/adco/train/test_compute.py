"""`compute.` changes how fast a step is, not what it computes."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from adco.config.schema import BankConfig, ComputeConfig, EncoderConfig, PretrainConfig, ViewConfig
from adco.config.validation import check_recipe
from adco.data.batch import Batch
from adco.methods import build_method
from adco.methods.base import TrainingProgress
from adco.train.gradient_cache import backward, split
from adco.train.knn_probe import KnnProbe
from adco.utils.errors import UserError
from tests.faults import toy

CPU = torch.device("cpu")


def losses(compute: ComputeConfig, device: torch.device, steps: int = 3) -> list[float]:
    """The losses of a few steps of AdCo with two query crops, all on the same views."""
    torch.manual_seed(0)
    encoder = EncoderConfig(arch="resnet18", stem="small", dim=16)
    recipe = PretrainConfig(
        batch=8, views=[ViewConfig(px=16)] * 3, encoder=encoder, bank=BankConfig(size=32, init="random")
    )
    method = build_method(recipe).to_device(compute, device)
    solver = torch.optim.SGD(method.encoder.parameters(), 0.05)
    scaler = torch.amp.GradScaler(device.type, enabled=False)
    views = [torch.randn(8, 3, 16, 16).to(device, memory_format=torch.channels_last) for _ in range(3)]
    found = []
    for number in range(steps):
        moment = TrainingProgress(number, steps, steps)
        solver.zero_grad()
        step = backward(method, method.encoder, [views], moment, scaler)
        solver.step()
        method.update(step, moment, 3.0)
        found.append(step.loss.item())
    return found


def test_contiguous_memory_changes_nothing():
    cpu = torch.device("cpu")
    assert losses(ComputeConfig(channels_last=False), cpu) == pytest.approx(losses(ComputeConfig(), cpu), rel=1e-4)


@pytest.mark.slow
def test_a_compiled_step_computes_the_same():
    cpu = torch.device("cpu")
    assert losses(ComputeConfig(compile=True), cpu) == pytest.approx(losses(ComputeConfig(), cpu), rel=1e-3)


@pytest.mark.parametrize(
    ("compute", "key"),
    [(ComputeConfig(cuda_graphs=True), "cuda_graphs=true"), (ComputeConfig(precision="tf32"), "precision=tf32")],
)
def test_what_only_a_gpu_has_needs_one(compute, key):
    with pytest.raises(UserError, match=f"compute.{key} needs an NVIDIA GPU"):
        losses(compute, torch.device("cpu"))


@pytest.mark.parametrize("key", ["batch_norm", "key_batch_norm"])
@pytest.mark.parametrize("compute", [ComputeConfig(compile=True), ComputeConfig(cuda_graphs=True)])
def test_synchronized_statistics_are_not_compiled(key, compute):
    encoder = EncoderConfig(**{"key_batch_norm": "local", key: "sync"})
    with pytest.raises(UserError, match="compute.c.*=True is out of range; expected false with sync statistics"):
        check_recipe(PretrainConfig(encoder=encoder, compute=compute))
    check_recipe(PretrainConfig(encoder=encoder))


def counted(monkeypatch) -> list[list[torch.Size]]:
    """Instead of kernels, note the sizes of each graph that is made; a size that is a symbol is an error."""
    made = []

    def backend(graph: torch.fx.GraphModule, inputs: list) -> Callable:
        assert not [value for value in inputs if isinstance(value, (torch.SymInt, float, int))]
        made.append(
            [value.shape for value in inputs if value.dim() == 4 and value.shape[1] == 3 and value.shape[0] > 4]
        )
        return graph.forward

    def compile_(module: nn.Module, mode: str | None, dynamic: bool) -> None:
        module._compiled_call_impl = torch.compile(module._call_impl, backend=backend, dynamic=dynamic)

    monkeypatch.setattr(nn.Module, "compile", compile_)
    torch._dynamo.reset()
    return made


@pytest.mark.parametrize("accumulate", [1, 2])
def test_multi_crop_makes_a_graph_for_each_size_and_encoder_once(monkeypatch, accumulate):
    made = counted(monkeypatch)
    encoder = EncoderConfig(arch="resnet18", stem="small", dim=16, norm_splits=1)
    views = [ViewConfig(px=px) for px in (16, 24, 32, 40, 48, 16)]
    recipe = PretrainConfig(batch=16, views=views, encoder=encoder, bank=BankConfig(size=32, init="random"))
    monkeypatch.setattr("adco.models.encoder.build_resnet", toy.backbone)
    method = build_method(recipe).to_device(ComputeConfig(compile=True), CPU)
    images = [torch.randn(16, 3, v.px, v.px).contiguous(memory_format=torch.channels_last) for v in views]
    scaler, counts = torch.amp.GradScaler("cpu", enabled=False), []
    for number in range(3):
        backward(method, method.encoder, split(images, accumulate), TrainingProgress(number, 3, 3), scaler)
        counts.append(len(made))
    assert counts[0] == counts[1] == counts[2]
    queries, keys = 5, 1  # sizes of the query views and of the key view; micro-batches: without gradient as well
    assert counts[0] == (queries if accumulate == 1 else 2 * queries) + keys


def test_the_probe_calls_the_network_itself_and_not_what_was_compiled(monkeypatch, images):
    made = counted(monkeypatch)
    encoder = EncoderConfig(arch="resnet18", stem="small", dim=16)
    method = build_method(PretrainConfig(encoder=encoder, bank=BankConfig(size=32))).to_device(
        ComputeConfig(compile=True), CPU
    )
    probe = KnnProbe(images, 16, 5, 0.07, 30, 0)
    assert 0 <= probe(method.encoder.backbone, CPU) <= 100
    assert not made
    method.encoder.backbone(torch.randn(8, 3, 16, 16))
    assert len(made) == 1  # which would have been counted


def test_views_and_network_are_in_the_memory_format_that_is_asked_for():
    pixels = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    batch = Batch((pixels, pixels), None, {})
    for channels_last, stride in ((True, (768, 1, 48, 3)), (False, (768, 256, 16, 1))):
        views = batch.to_views(CPU, channels_last)
        assert [view.stride() for view in views] == [stride] * 2
        recipe = PretrainConfig(
            encoder=EncoderConfig(arch="resnet18", stem="small", dim=16, join_views=True), bank=BankConfig(size=32)
        )
        method = build_method(recipe).to_device(ComputeConfig(channels_last=channels_last), CPU)
        seen = []
        method.encoder.backbone.conv1.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
        method.encoder(views)  # joined into one batch
        wanted = torch.channels_last if channels_last else torch.contiguous_format
        assert seen[0].shape[0] == 8 and seen[0].is_contiguous(memory_format=wanted)
        assert method.encoder.backbone.layer1[0].conv1.weight.is_contiguous(memory_format=wanted)
