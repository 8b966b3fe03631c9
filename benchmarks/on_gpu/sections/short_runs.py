"""Short training runs, whose losses and weights the checks of sections 1 and 9 compare."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from adco.config.schema import (
    BankConfig,
    CheckpointConfig,
    DataConfig,
    EncoderConfig,
    MoCHiConfig,
    OptimizerConfig,
    PretrainConfig,
    SwAVConfig,
    ViewConfig,
)
from adco.data.batch import Batch
from adco.data.loader import ViewDataset, batches, requests
from adco.data.sources import open_images
from adco.train.trainer import Trainer
from benchmarks.speed.photographs import write_photographs

CPU = torch.device("cpu")
STEPS = 3
# A random network's gradient is large, and where rounding moves a value over the corner of a ReLU it jumps by about
# 1e-3 of its norm. So steps are compared at a learning rate at which such differences do not grow from step to step.
LR = 1e-5

Steps = tuple[list[float], list[Tensor], list[Tensor]]  # losses, weights before and after


def write_images(root: Path, small: bool = False) -> Path:
    """Draw `root/train` and `root/val`: photographs of 96 x 72 pixels in two classes, four batches to train on."""
    for split, count in (("train", 32 if small else 128), ("val", 32)):
        write_photographs(root / split, count, classes=2, width=96, height=72)
    return root


def small_recipe(method: str, root: Path, small: bool = False) -> PretrainConfig:
    """A recipe of a ResNet-18 at 64 px with batch 32, in which MoCHi mixes and SwAV uses its queue from the first step.

    Args:
        method: The method's name.
        root: The folder of `write_images`.
        small: For a CPU: 24 px and batch 8.
    """
    px, batch = (24, 8) if small else (64, 32)
    stem = "small" if small else "imagenet"
    return PretrainConfig(
        method=method,
        epochs=1,
        batch=batch,
        data=DataConfig(root=str(root), workers=2),
        views=[ViewConfig(px=px, scale=[0.3, 1.0])] * 2,
        encoder=EncoderConfig(arch="resnet18", stem=stem, dim=64, head_norm=True, predictor_width=32),
        bank=BankConfig(size=1024, init="random"),
        mix=MoCHiConfig(hard=64, pairs=32, with_query=16, from_epoch=0),
        swap=SwAVConfig(prototypes=48, queue=batch, queue_from_epoch=0, frozen_epochs=0.0),
        optimizer=OptimizerConfig(lr=LR, final_lr=0.0, schedule_by="step"),
        checkpoint=CheckpointConfig(every_steps=2, keep=10),
    )


def views_of(recipe: PretrainConfig, steps: int = STEPS) -> list[tuple[Tensor, ...]]:
    """The loader's views of the first steps, on the CPU: for each step V tensors (B, 3, S, S)."""
    index = open_images(recipe.data.root)
    wanted = requests(recipe.seed, len(index), recipe.batch, 0, steps)
    made = batches(ViewDataset(index, recipe.views, recipe.seed, 0), wanted, 0, CPU)
    return [tuple(batch.to_views(CPU)) for batch in made]


def with_compute(recipe: PretrainConfig, **changes) -> PretrainConfig:
    """The recipe with some options of `compute` changed."""
    return replace(recipe, compute=replace(recipe.compute, **changes))


@contextmanager
def trainer(recipe: PretrainConfig, device: torch.device) -> Iterator[Trainer]:
    """A Trainer with a temporary output folder."""
    with tempfile.TemporaryDirectory() as folder:
        yield Trainer(recipe, Path(folder), device)


def train(run: Trainer, images: Iterable[Sequence[Tensor]]) -> list[float]:
    """Run one step for each batch of views; returns the losses."""
    return [run.train_step(on_device(views, run.device)).loss.item() for views in images]


def on_device(views: Sequence[Tensor], device: torch.device) -> Batch:
    """Views (B, 3, S, S) as a batch on the device."""
    return Batch(tuple(view.to(device) for view in views), None, {})


def weights(run: Trainer) -> list[Tensor]:
    """The parameters of the trained encoder as one vector, and where there is a bank its entries as another."""
    bank = [] if run.method.bank is None else [[run.method.bank.rows]]
    return [flat(tensors) for tensors in (run.method.encoder.parameters(), *bank)]


def flat(tensors: Iterable[Tensor]) -> Tensor:
    """All values of the tensors, (N,) float64 on the CPU, in an order that no memory format changes."""
    return torch.cat([tensor.detach().cpu().double().flatten() for tensor in tensors])


def relative(a: Sequence[Tensor], b: Sequence[Tensor], start: Sequence[Tensor]) -> float:
    """The distance between a and b relative to that between b and the start; of several vectors the largest."""
    return max(((x - y).norm() / (y - z).norm()).item() for x, y, z in zip(a, b, start, strict=True))


def loss_difference(a: Sequence[float], b: Sequence[float]) -> float:
    """The largest difference, relative to b where that is above 1; infinite where one is not finite."""
    x, y = torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)
    return ((x - y).abs() / y.abs().clamp(min=1)).nan_to_num(torch.inf, torch.inf).max().item()


def steps_of(recipe: PretrainConfig, device: torch.device) -> Steps:
    """The losses of a few steps, and the weights before and after them."""
    with trainer(recipe, device) as run:
        start = weights(run)
        return train(run, views_of(recipe)), start, weights(run)
