"""A whole training step, pictures in memory, against the released code's way of doing one.

    python benchmarks/run.py step [--quick] [--device cuda]

On a GPU: ResNet-50, 224 px, batch 256, bf16 for both. On the CPU: ResNet-18, 64 px, batch 64, float32. `released` is
our re-statement of the released AdCo's step: contiguous tensors, one multiply-add a parameter for the key encoder,
plain SGD, the loss of benchmarks/bank.py with its `.item()` calls. `bare` is the network alone: query forward and
backward, key forward. The other contestants change one option of `compute` from its default.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from adco.batch import Batch
from adco.config import Bank, Compute, Contrast, Data, Encoder, Monitor, Recipe, View
from adco.encoder import Encoder as Network
from adco.trainer import Trainer
from benchmarks.bank import released_update
from benchmarks.race import Options, Outcome, race, ratio

GOALS = {"cuda": (1.5, 0.85), "cpu": (1.0, 0.85)}  # against the released step; share of the bare network's speed


def run(options: Options) -> Outcome:
    """Race the default step against the released one, the bare network, and each option changed alone."""
    device, big = options.device, options.device.type == "cuda"
    recipe = recipe_for(device)
    changes = {"contiguous": {"channels_last": False}, "unfused": {"fused_optimizer": False}}
    if big:
        changes["graphs"] = {"cuda_graphs": True}
    if big or not options.quick:
        changes |= {"compiled": {"compile": True}, "bf16": {"precision": "bf16"}}
    with tempfile.TemporaryDirectory() as folder:
        batch = _batch(recipe, device)
        contestants = {"ours": _ours(recipe, batch, device, Path(folder))}
        for name, change in changes.items():
            changed = replace(recipe, compute=replace(recipe.compute, **change))
            contestants[name] = _ours(changed, batch, device, Path(folder))
        released, views = released_step(recipe, device), batch.to_views(device)
        contestants["released"] = lambda: released(views)
        contestants["bare"] = _bare(recipe, batch.to_views(device), device)
        found = race(contestants, options.rounds, recipe.batch, device)
    against_released, of_bare = GOALS[device.type]
    ratios = [ratio(f"step_default_vs_{name}", found[name], found["ours"], 1.0) for name in changes]
    ratios.append(ratio("step_share_of_bare_network", found["bare"], found["ours"], of_bare))
    ratios.append(ratio("step_vs_released", found["released"], found["ours"], against_released))
    notes = () if big else ("a GPU's figures: not run on this machine",)
    settings = {"arch": recipe.encoder.arch, "px": recipe.views[0].px, "batch": recipe.batch}
    settings |= {"precision": recipe.compute.precision, "threads": torch.get_num_threads()}
    return Outcome("image", list(found.values()), ratios, {}, "random pixels", settings, notes)


def recipe_for(device: torch.device) -> Recipe:
    """What is raced on this device: the released AdCo's ResNet-50 on a GPU, a small one on a CPU."""
    big = device.type == "cuda"
    return Recipe(
        epochs=1000,
        batch=256 if big else 64,
        views=[View(px=224 if big else 64)] * 2,
        encoder=Encoder(arch="resnet50" if big else "resnet18"),
        contrast=Contrast(),
        bank=Bank(size=65536 if big else 8192, init="random"),
        compute=Compute(precision="bf16" if big else "float32"),
        monitor=Monitor(every_steps=0),
        data=Data(workers=0),
    )


def _batch(recipe: Recipe, device: torch.device) -> Batch:
    generator = torch.Generator().manual_seed(0)
    pixels = tuple(torch.randn(recipe.batch, 3, view.px, view.px, generator=generator) for view in recipe.views)
    return Batch(pixels, None, {}).to(device)


def _ours(recipe: Recipe, batch: Batch, device: torch.device, folder: Path) -> Callable[[], object]:
    images = folder / "images"
    images.mkdir(exist_ok=True)
    for number in range(recipe.batch):
        Image.new("RGB", (8, 8)).save(images / f"{number}.png")
    trainer = Trainer(replace(recipe, data=replace(recipe.data, root=str(images))), folder / "output", device)
    return lambda: trainer.train_step(batch)


def released_step(recipe: Recipe, device: torch.device) -> Callable[[list[Tensor]], None]:
    """A network of its own and the step that trains it on two views, query and key."""
    query = Network(recipe.encoder).to(device)
    key = copy.deepcopy(query).requires_grad_(False)
    optimizer = torch.optim.SGD(query.parameters(), 0.03, momentum=0.9, weight_decay=1e-4)
    precision = torch.bfloat16 if recipe.compute.precision == "bf16" else None
    query.precision = key.precision = precision
    step_of_bank = released_update(recipe.bank.size, device)

    def step(views: list[Tensor]) -> None:
        images = [view.contiguous() for view in views]
        q = query([images[0]])[0]
        with torch.no_grad():
            for k, p in zip(key.parameters(), query.parameters(), strict=True):
                k.data = k.data * 0.999 + p.data * 0.001
            order = torch.randperm(len(images[1]), device=device)
            k = key([images[1][order]])[0][order.argsort()]
        optimizer.zero_grad()
        step_of_bank(q, k)
        optimizer.step()

    return step


def _bare(recipe: Recipe, views: list[Tensor], device: torch.device) -> Callable[[], None]:
    query = Network(recipe.encoder).to(device, memory_format=torch.channels_last)
    key = copy.deepcopy(query).requires_grad_(False)
    query.precision = key.precision = torch.bfloat16 if recipe.compute.precision == "bf16" else None

    def step() -> None:
        q = query([views[0]])[0]
        with torch.no_grad():
            k = key([views[1]])[0]
        query.zero_grad()
        F.mse_loss(q, k).backward()

    return step
