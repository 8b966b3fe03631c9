"""Training from JPEG files to updated weights, end to end, against the released AdCo's loader and step.

    python benchmarks/run.py training [--quick] [--device cuda] [--data FOLDER]

On a GPU: ResNet-50, two 224 px crops, batch 256, bf16 for both, as many loader workers as there are cores (16 at most).
On the CPU: ResNet-18, 64 px, batch 64, float32, two workers. `released` is our re-statement of the released transforms
in a DataLoader (benchmarks/input.py) before our re-statement of its step (benchmarks/step.py). Each round starts its
loader anew; the first step of a round, which waits for it to fill, does not count.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler
from torchvision import datasets

from adco.batch import Batch
from adco.config import Data, Recipe, View
from adco.images import ImageIndex, index_folder
from adco.loader import ViewDataset, batches, requests
from adco.monitor import Rate
from adco.trainer import Trainer
from benchmarks.input import Views, released_view
from benchmarks.photographs import write_photographs
from benchmarks.race import Options, Outcome, race, ratio
from benchmarks.step import recipe_for, released_step

GOALS = {"cuda": 2.5, "cpu": 1.0}  # times the released images a second; the project names no goal for a CPU
GPU_HOUR_OF_IMAGES = 3600.0
IMAGENET = 1_281_167


def run(options: Options) -> Outcome:
    """Race the backends of our loader, each before our step, against the released loader before the released step."""
    device, big = options.device, options.device.type == "cuda"
    workers = min(16, os.cpu_count() or 1) if big else 2
    recipe = recipe_for(device)
    steps = (4 if options.quick else 12) if big else (2 if options.quick else 4)
    with tempfile.TemporaryDirectory() as folder:
        root = options.data or write_photographs(Path(folder) / "jpegs", 4 * recipe.batch, 2, 500, 375)
        index, shares = index_folder(root), {}
        backends = ("native", "device", "nvjpeg") if big else ("native",)
        contestants = {
            f"ours, {name}": _ours(recipe, name, index, workers, steps, Path(folder) / name, device, shares)
            for name in backends
        }
        contestants["released"] = _released(recipe, root, workers, steps, device)
        found = race(contestants, options.rounds, steps * recipe.batch, device)
    reference = found["released"]
    ratios = [ratio(f"training_{name}_vs_released", reference, found[f"ours, {name}"], 1) for name in backends[1:]]
    ratios.append(ratio("training_vs_released", reference, found["ours, native"], GOALS[device.type]))
    scores = {f"loader_wait_share/{name}": share for name, share in shares.items()}
    if big:
        rate = max(timing.rate for name, timing in found.items() if name.startswith("ours"))
        scores["gpu_hours_per_imagenet_epoch"] = IMAGENET / rate / GPU_HOUR_OF_IMAGES
    settings = {"arch": recipe.encoder.arch, "px": recipe.views[0].px, "batch": recipe.batch, "loader_workers": workers}
    settings |= {"precision": recipe.compute.precision, "threads": torch.get_num_threads(), "steps_a_round": steps}
    notes = () if big else ("a GPU's figures: not run on this machine",)
    data = options.data.name if options.data else "generated photographs, 500 x 375"
    return Outcome("image", list(found.values()), ratios, scores, data, settings, notes)


def _ours(
    recipe: Recipe, backend: str, index: ImageIndex, workers: int, steps: int, output: Path, device: torch.device,
    shares: dict[str, float],
) -> Callable[[], float]:  # fmt: skip
    trainer = Trainer(replace(recipe, data=Data(root=str(index.root), workers=0)), output, device)
    dataset = ViewDataset(index, recipe.views, 0, 0, backend)

    def work() -> float:
        wanted = requests(0, len(index), recipe.batch, 0, steps + 1)
        rate = Rate(device)
        taken = _timed(rate.waiting(batches(dataset, wanted, workers, device)), trainer.train_step, device, rate)
        shares[backend] = rate.scalars(steps)["loader_wait_share"]
        return taken

    return work


def _released(recipe: Recipe, root: Path, workers: int, steps: int, device: torch.device) -> Callable[[], float]:
    view: View = recipe.views[0]
    folder = datasets.ImageFolder(str(root), Views([released_view(view.px, view.scale)] * 2))
    sampler = RandomSampler(folder, num_samples=(steps + 1) * recipe.batch)
    make = partial(DataLoader, folder, recipe.batch, sampler=sampler, num_workers=workers, drop_last=True)
    step = released_step(recipe, device)

    def train(batch: tuple[list[Tensor], Tensor]) -> None:
        step([view.to(device, non_blocking=True) for view in batch[0]])

    return lambda: _timed(iter(make(pin_memory=device.type == "cuda")), train, device)


def _timed(
    made: Iterator[Batch] | Iterable, train: Callable[[object], object], device: torch.device, rate: Rate | None = None
) -> float:
    """Seconds of all steps but the first."""
    begun = 0.0
    for number, batch in enumerate(made):
        train(batch)
        if number == 0:
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if rate is not None:
                rate.scalars(0)
            begun = time.perf_counter()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begun
