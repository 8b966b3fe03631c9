"""A training step never makes the CPU wait for the GPU: no method, no augmentation; and what would is noticed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import DynamicOutputShapeException
from torch.nn import functional as F

from adco.config.schema import (
    BankConfig,
    EncoderConfig,
    LossConfig,
    MoCHiConfig,
    OptimizerConfig,
    PretrainConfig,
    SwAVConfig,
    ViewConfig,
)
from adco.data.transforms import functional, parameters
from adco.methods import METHODS, build_method
from adco.methods.base import TrainingProgress
from adco.models.batch_norm import frozen_statistics
from adco.train.gradient_cache import split
from adco.train.optimizer import build_optimizer
from adco.utils.device import constant, upload
from tests.adco.methods.synchronisations import waits

CUDA = torch.device("cuda")
ENCODER = EncoderConfig(arch="resnet18", stem="small", dim=16, predictor_width=8)
LATE = PretrainConfig(  # MoCHi mixes, SwAV's queue is full and its prototypes are trained
    batch=8, views=[ViewConfig(px=16)] * 2, encoder=ENCODER, bank=BankConfig(size=32, init="random"),
    mix=MoCHiConfig(hard=8, pairs=4, with_query=2, from_epoch=1), 
    swap=SwAVConfig(prototypes=6, queue=8, queue_from_epoch=0),
)  # fmt: skip
PAPER = LossConfig(in_batch_negatives=False, tau_bank=0.008)  # so sharp that it is computed in float64
SPLIT = replace(LATE, encoder=replace(ENCODER, norm_splits=2))  # shuffled keys
RECIPES = {method: replace(LATE, method=method) for method in METHODS} | {
    "adco, symmetric": replace(LATE, contrast=LossConfig(symmetric=True)),
    "adco, objective J": replace(LATE, bank=replace(LATE.bank, objective="J")),
    "adco, paper's bank": replace(LATE, contrast=PAPER, bank=replace(LATE.bank, renormalize=True)),
    "adco, many crops": replace(LATE, views=[ViewConfig(px=16), ViewConfig(px=12), ViewConfig(px=12)]),
    "caco, many crops": replace(LATE, method="caco", views=[ViewConfig(px=16)] * 3),
    "adco, shuffled keys": SPLIT,
    "moco, shuffled keys": replace(SPLIT, method="moco"),
    "simclr, joined views": replace(LATE, method="simclr", encoder=replace(ENCODER, join_views=True)),
    "byol, momentum to one": replace(LATE, method="byol", encoder=replace(ENCODER, key_momentum_to_one=True)),
}


def step(method, images, moment, parts=1):
    """What a training step does beside the backward pass, which torch cannot run on such tensors."""
    micro_batches = split(images, parts)
    targets = method.targets(micro_batches, moment)
    rows = [method.encoder([part[view] for view in method.query_views]) for part in micro_batches]
    outputs = dict(zip(method.query_views, map(torch.cat, zip(*rows, strict=True)), strict=True))
    found = method.compute_loss(outputs, targets, moment)
    method.update(found, moment, 3.0)
    return found


@pytest.mark.parametrize("name", RECIPES)
def test_no_method_waits_for_the_gpu(name):
    recipe = RECIPES[name]
    with waits() as noted:
        with CUDA:
            method = build_method(recipe)
        images = [torch.zeros(8, 3, view.px, view.px, device=CUDA) for view in recipe.views]
        for number in (4, 5):  # the first makes constants
            noted.found.clear()
            found = step(method, images, TrainingProgress(number, 10, 2))
        assert found.loss.is_cuda and found.loss.requires_grad
        if name == "adco":
            step(method.filling(), images, TrainingProgress(6, 10, 2))  # bank.init=train_and_fill
            method.bank.fill(found.keys, 4)
            method.sync_key_encoder()
            step(method, images, TrainingProgress(7, 10, 2), parts=2)
            with torch.no_grad(), frozen_statistics(method.encoder):
                method.encoder(images)
    assert noted.found == []


@pytest.mark.parametrize("kind", ["sgd", "lars"])
def test_no_optimizer_waits_for_the_gpu(kind):
    with waits() as noted:
        with CUDA:
            layer = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
        solver = build_optimizer(OptimizerConfig(kind=kind), layer, fused=False)  # torch's fused kernels need a GPU
        for _ in range(2):
            noted.found.clear()  # also of building the layer
            for parameter in layer.parameters():
                parameter.grad = torch.zeros_like(parameter)
            solver.step()
    assert noted.found == []


def test_augmentation_does_not_wait_for_the_gpu():
    spec = ViewConfig(px=16, jitter_p=0.8, gray_p=0.2, blur_p=0.5, solarize_p=0.3)
    choices = parameters.sample_params(spec, 0, 0, np.arange(32), 0).choices
    with waits() as noted:
        pixels = torch.zeros(32, 3, 16, 16, dtype=torch.uint8, device=CUDA)
        for _ in range(2):  # the first makes constants
            noted.found.clear()
            made = functional.augment(pixels, choices), functional.from_uint8(pixels)
        assert all(view.is_cuda and view.shape == (32, 3, 16, 16) and view.dtype == torch.float32 for view in made)
    assert noted.found == []


HERE = torch.from_numpy(np.array([2, 0]))  # on the CPU
GPU, CPU, SHAPE, VALUE, PINNED = "copies to the GPU", "copies to the CPU", "has a shape", "reads a value", "not pinned"


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda x: x.sum().item(), VALUE),
        (lambda x: bool(x.sum() > 0), VALUE),
        (lambda x: float(x[0, 0]), VALUE),
        (lambda x: x[0, 0].tolist(), VALUE),
        (lambda x: 1 if (x > 0).any() else 0, VALUE),
        (lambda x: x.cpu(), CPU),
        (lambda x: HERE.clone().copy_(x[:2, 0]), CPU),
        (lambda x: (x > 0).nonzero(), SHAPE),
        (lambda x: x[x > 0], SHAPE),
        (lambda x: x.masked_select(x > 0), SHAPE),
        (lambda x: x.unique(), SHAPE),
        (lambda x: x.repeat_interleave(torch.ones(4, dtype=torch.long, device=CUDA), dim=0), SHAPE),
        (lambda x: torch.tensor([1.0, 2.0], device=CUDA), GPU),
        (lambda x: torch.as_tensor(np.ones(3), device=CUDA), GPU),
        (lambda x: x.new_tensor([1.0, 2.0]), GPU),
        (lambda x: HERE.to(CUDA), GPU),
        (lambda x: HERE.cuda(), GPU),
        (lambda x: HERE.pin_memory().to(CUDA), GPU),
        (lambda x: x[0, :2].copy_(HERE), GPU),
        (lambda x: x.__setitem__((0, slice(2)), HERE), GPU),
        (lambda x: x[[0, 2]], GPU),
        (lambda x: x[HERE], "copies an index to the GPU"),
        (lambda x: HERE.to(CUDA, non_blocking=True), PINNED),
    ],
)
def test_what_waits_is_noted_with_its_line(call, reason):
    with waits() as noted:
        x = torch.zeros(4, 3, device=CUDA)
        try:
            call(x)
        except DynamicOutputShapeException:  # a shape that nobody knows
            assert reason is SHAPE
    assert len(noted.found) == 1
    assert reason in noted.found[0] and noted.found[0].startswith("tests/adco/methods/test_synchronisations.py:")


@pytest.mark.parametrize(
    "call",
    [
        lambda x: upload(HERE, CUDA),
        lambda x: x[upload(HERE, CUDA)],
        lambda x: x.__setitem__(x > 0, 1.0),  # torch fills it where the mask is
        lambda x: x * 2 + torch.arange(3, device=x.device),
        lambda x: x * torch.from_numpy(np.array(2.0)),  # a number
        lambda x: F.cross_entropy(x, torch.zeros(4, dtype=torch.long, device=CUDA)),
        lambda x: x[HERE[0]],  # a number that the CPU knows
        lambda x: x[HERE.tolist()[0] :],
        lambda x: (HERE > 1).nonzero().flatten().tolist(),
    ],
)
def test_what_does_not_wait_is_not(call):
    with waits() as noted:
        call(torch.zeros(4, 3, device=CUDA))
    assert noted.found == []


def test_the_cpu_computes_what_it_computes():
    with waits():
        assert (HERE * 3).tolist() == [6, 0] and torch.full((2,), 7).sum().item() == 14
        assert upload(HERE, CUDA).shape == (2,)


def test_constants_outside_are_tensors_again():
    with waits():
        assert constant((1.0, 2.0), CUDA).is_cuda
    assert constant((1.0, 2.0), torch.device("cpu")).tolist() == [1.0, 2.0]
