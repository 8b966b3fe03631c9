"""A step in micro-batches, under torch.compile."""

from dataclasses import replace
from unittest import mock

import torch
from torch import Tensor, nn

from adco.methods import build_method
from adco.methods.base import TrainingProgress
from adco.train.gradient_cache import backward, split
from tests.adco.methods.test_many_ranks import N, recipe, tiny_backbone


class Backbone(nn.Module):
    """torch.compile makes one graph of it; of an nn.Sequential it makes one of each layer."""

    def __init__(self, arch: str, stem: str):
        super().__init__()
        self.layers = tiny_backbone(arch, stem)

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


def test_micro_batches_compile_in_the_first_step_and_their_graphs_take_tensors_alone():
    """A number that a graph takes is a tensor of the CPU, copied to the GPU at each call; CUDA graphs refuse it."""
    options = recipe("adco", norm_splits=2)
    options = replace(options, compute=replace(options.compute, accumulate=2))
    with mock.patch("adco.models.encoder.build_resnet", Backbone):
        method = build_method(options)
    inputs, counts = [], []

    def backend(graph, given):
        inputs.append(given)
        return graph.forward

    torch._dynamo.reset()
    for encoder in (method.encoder, method.key_encoder):
        encoder.backbone.compile(backend=backend)
    for number in range(3):
        views = [torch.randn(N, 3, 10, 10).contiguous(memory_format=torch.channels_last) for _ in options.views]
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        backward(method, method.encoder, split(views, 2), TrainingProgress(number, 3, 3), scaler)
        counts.append(len(inputs))
    torch._dynamo.reset()
    assert counts == [3, 3, 3]  # the key encoder's, and the encoder's without gradient and with it
    assert all(isinstance(value, Tensor) for given in inputs for value in given)
    assert {value.dtype for given in inputs for value in given if not value.dim()} == {torch.int64}  # batches seen
