"""`compute.` changes how fast a step is, not what it computes."""

import pytest
import torch

from adco.accumulate import backward
from adco.config import Bank, Compute, Encoder, Recipe, View
from adco.errors import UserError
from adco.methods import build_method
from adco.methods.base import Moment


def losses(compute: Compute, device: torch.device, steps: int = 3) -> list[float]:
    """The losses of a few steps of AdCo with two query crops, all on the same views."""
    torch.manual_seed(0)
    encoder = Encoder(arch="resnet18", stem="small", dim=16)
    recipe = Recipe(batch=8, views=[View(px=16)] * 3, encoder=encoder, bank=Bank(size=32, init="random"))
    method = build_method(recipe).prepared(compute, device)
    solver = torch.optim.SGD(method.encoder.parameters(), 0.05)
    scaler = torch.amp.GradScaler(device.type, enabled=False)
    views = [torch.randn(8, 3, 16, 16).to(device, memory_format=torch.channels_last) for _ in range(3)]
    found = []
    for number in range(steps):
        moment = Moment(number, steps, steps)
        solver.zero_grad()
        step = backward(method, method.encoder, [views], moment, scaler)
        solver.step()
        method.update(step, moment, 3.0)
        found.append(step.loss.item())
    return found


def test_contiguous_memory_changes_nothing():
    cpu = torch.device("cpu")
    assert losses(Compute(channels_last=False), cpu) == pytest.approx(losses(Compute(), cpu), rel=1e-4)


@pytest.mark.slow
def test_a_compiled_step_computes_the_same():
    cpu = torch.device("cpu")
    assert losses(Compute(compile=True), cpu) == pytest.approx(losses(Compute(), cpu), rel=1e-3)


def test_cuda_graphs_need_a_gpu():
    with pytest.raises(UserError, match="compute.cuda_graphs=true needs an NVIDIA GPU"):
        losses(Compute(cuda_graphs=True), torch.device("cpu"))
