"""A whole training step, images in memory, against the released code's way of doing one.

    python benchmarks/run.py step [--quick] [--device cuda]

On a GPU: ResNet-50, 224 px, batch 256, four steps in succession a round. On the CPU: ResNet-18, 64 px, batch 64. `ours`
is the default: bf16 on a GPU, float32 on a CPU; other contestants change one option of `compute`.

`released` is our re-statement of the released AdCo's step: contiguous tensors, one multiply-add a parameter for the key
encoder, plain SGD, the loss of bank.py with its `.item()` calls, in the precision of `ours`, although the
released code has float32 alone, which `released, tf32` is. `bare` is the network alone, in the precision and memory
format of `ours`: query forward and backward, key forward.

torch's flags of arithmetic are global, so every contestant sets its own before each step: the released one torch's
defaults (convolutions in TF32) and cudnn.benchmark, which the released code sets.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from adco.config.schema import (
    BankConfig,
    ComputeConfig,
    DataConfig,
    EncoderConfig,
    LossConfig,
    MonitorConfig,
    PretrainConfig,
    ViewConfig,
)
from adco.data.batch import Batch
from adco.methods.base import PRECISION, allow_graphs
from adco.models.encoder import Encoder as Network
from adco.train.trainer import Trainer
from adco.utils.device import set_arithmetic
from benchmarks.speed.bank import released_update
from benchmarks.speed.race import Options, Outcome, race, ratio, repeated

GOALS = {"cuda": (1.5, 0.85), "cpu": (1.0, 0.85)}  # against the released step; share of the bare network's speed
STEPS_A_ROUND = {"cuda": 4, "cpu": 1}
RELEASED_ARITHMETIC = "tf32"  # torch's own defaults, and cudnn.benchmark

Step = Callable[[], object]


def run(options: Options) -> Outcome:
    """Race the default step against the released one, the bare network, and each option changed alone."""
    device, big = options.device, options.device.type == "cuda"
    recipe, steps = recipe_for(device), STEPS_A_ROUND[device.type]
    with tempfile.TemporaryDirectory() as folder:
        makers = contestants(recipe, device, Path(folder))
        if not big and options.quick:
            makers = {name: make for name, make in makers.items() if name not in ("compiled", "bf16")}
        found = race(
            {name: repeated(make(), steps) for name, make in makers.items()},
            options.rounds, steps * recipe.batch, device,
        )  # fmt: skip
    against_released, of_bare = GOALS[device.type]
    changed = [name for name in found if name in changes(device)]
    ratios = [ratio(f"step_default_vs_{name}", found[name], found["ours"], 1.0) for name in changed]
    if big:
        ratios.append(ratio("step_vs_released_tf32", found["released, tf32"], found["ours"], against_released))
    ratios.append(ratio("step_share_of_bare_network", found["bare"], found["ours"], of_bare))
    ratios.append(ratio("step_vs_released", found["released"], found["ours"], against_released))
    notes = () if big else ("a GPU's figures: not run on this machine",)
    settings = {"arch": recipe.encoder.arch, "px": recipe.views[0].px, "batch": recipe.batch}
    settings |= {"precision": recipe.compute.precision, "threads": torch.get_num_threads(), "steps_a_round": steps}
    return Outcome("image", list(found.values()), ratios, {}, "random pixels", settings, notes)


def recipe_for(device: torch.device, small: bool = False) -> PretrainConfig:
    """The recipe for a device: the released AdCo's ResNet-50 on a GPU, a small one on a CPU; small: a tiny one."""
    big = device.type == "cuda" and not small
    return PretrainConfig(
        epochs=1000,
        batch=256 if big else 8 if small else 64,
        views=[ViewConfig(px=224 if big else 32 if small else 64)] * 2,
        encoder=EncoderConfig(arch="resnet50" if big else "resnet18"),
        contrast=LossConfig(),
        bank=BankConfig(size=65536 if big else 8192, init="random"),
        compute=ComputeConfig(precision="bf16" if big else "float32"),
        monitor=MonitorConfig(every_steps=0),
        data=DataConfig(workers=0),
    )


def changes(device: torch.device) -> dict[str, dict[str, object]]:
    """The contestants that differ from the default in one option of `compute`, with that option."""
    found = {"contiguous": {"channels_last": False}, "unfused": {"fused_optimizer": False}}
    if device.type == "cuda":
        found = {name: {"precision": name} for name in ("fp16", "tf32", "float32")} | found
    else:
        found["bf16"] = {"precision": "bf16"}
    found["compiled"] = {"compile": True}
    return found | ({"graphs": {"cuda_graphs": True}} if device.type == "cuda" else {})


def contestants(recipe: PretrainConfig, device: torch.device, folder: Path) -> dict[str, Callable[[], Step]]:
    """For each contestant a call that makes its step, quick ones first. folder: for the trainers' output."""
    makers: dict[str, Callable[[], Step]] = {
        "ours": partial(our_step, recipe, device, folder),
        "bare": partial(bare_step, recipe, device),
        "released": partial(_released, recipe, device),
    }
    if device.type == "cuda":
        float32 = replace(recipe, compute=replace(recipe.compute, precision="tf32"))
        makers["released, tf32"] = partial(_released, float32, device)
    for name, change in changes(device).items():
        changed = replace(recipe, compute=replace(recipe.compute, **change))
        makers[name] = partial(our_step, changed, device, folder)
        if name == "compiled" and device.type == "cuda":
            makers["bare, compiled"] = partial(bare_step, changed, device)
    return makers


def our_trainer(recipe: PretrainConfig, device: torch.device, folder: Path) -> Trainer:
    """A trainer on one batch of tiny images, which are never read."""
    images = folder / "images"
    images.mkdir(exist_ok=True)
    for number in range(recipe.batch):
        if not (images / f"{number}.png").is_file():
            Image.new("RGB", (8, 8)).save(images / f"{number}.png")
    return Trainer(replace(recipe, data=replace(recipe.data, root=str(images))), folder / "output", device)


def our_step(recipe: PretrainConfig, device: torch.device, folder: Path) -> Step:
    """The trainer's whole step on the same views each time."""
    trainer, batch = our_trainer(recipe, device, folder), random_batch(recipe, device)
    return with_arithmetic(lambda: trainer.train_step(batch), device, recipe.compute.precision)


def released_step(recipe: PretrainConfig, device: torch.device) -> Callable[[list[Tensor]], None]:
    """Make a network; returns the released step that trains it on two views (B, 3, S, S), query and key."""
    query = Network(recipe.encoder).to(device)
    key = copy.deepcopy(query).requires_grad_(False)
    optimizer = torch.optim.SGD(query.parameters(), 0.03, momentum=0.9, weight_decay=1e-4)
    query.precision = key.precision = PRECISION[recipe.compute.precision]
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

    return with_arithmetic(step, device, RELEASED_ARITHMETIC)


def bare_step(recipe: PretrainConfig, device: torch.device) -> Step:
    """The network alone, with `recipe.compute`'s precision, memory format and compilation."""
    compute, views = recipe.compute, random_batch(recipe, device).pixels
    memory_format = torch.channels_last if compute.channels_last else torch.contiguous_format
    query = Network(recipe.encoder).to(device, memory_format=memory_format)
    key = copy.deepcopy(query).requires_grad_(False)
    query.precision = key.precision = PRECISION[compute.precision]
    if compute.compile:
        allow_graphs(2)
        query.backbone.compile(dynamic=False)
        key.backbone.compile(dynamic=False)

    def step() -> None:
        q = query([views[0]])[0]
        with torch.no_grad():
            k = key([views[1]])[0]
        query.zero_grad()
        F.mse_loss(q, k).backward()

    return with_arithmetic(step, device, compute.precision)


def random_batch(recipe: PretrainConfig, device: torch.device) -> Batch:
    """Random views (B, 3, S, S) on the device, in the memory format of the recipe's network."""
    generator = torch.Generator(device).manual_seed(0)
    sizes = [(recipe.batch, 3, view.px, view.px) for view in recipe.views]
    drawn = Batch(tuple(torch.randn(size, device=device, generator=generator) for size in sizes), None, {})
    return replace(drawn, pixels=tuple(drawn.to_views(device, recipe.compute.channels_last)))


def with_arithmetic(step: Callable, device: torch.device, precision: str) -> Callable:
    """A call that sets torch's global flags for a precision and then runs the step."""

    def work(*views: object) -> object:
        set_arithmetic(device, precision)
        return step(*views)

    return work


def _released(recipe: PretrainConfig, device: torch.device) -> Step:
    contiguous = replace(recipe, compute=replace(recipe.compute, channels_last=False))
    step, views = released_step(recipe, device), list(random_batch(contiguous, device).pixels)
    return lambda: step(views)
