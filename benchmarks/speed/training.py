"""Training from JPEG files to updated weights, end to end, against the released AdCo's loader and step.

    python benchmarks/run.py training [--quick] [--device cuda] [--data FOLDER]

On a GPU: ResNet-50, two 224 px crops, batch 256, bf16 for both, as many loader workers as there are cores (16 at most).
On the CPU: ResNet-18, 64 px, batch 64, float32, two workers; quick: 32 px, batch 8. `released` is our re-statement of
the released transforms in a DataLoader (input.py) before our re-statement of its step (step.py).

A round is a pass of each loader in turn. Its first 2 x workers + 2 batches are dropped: a loader makes so many ahead,
and training on batches that were made before the clock started would hide the loader's cost. At least 30 are timed, a
multiple of the workers; as many as there are workers are dropped at the end, so that the loader works until the clock
stops and is idle while the other contestant runs (`race.steady`). The released loader's processes are kept through all
rounds; our loader's threads are started in each round.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from adco.config.schema import DataConfig, PretrainConfig
from adco.data.images import ImageIndex, index_folder
from adco.train.trainer import Trainer
from adco.utils.device import usable_cores
from benchmarks.speed.input import backends_for, our_loader, released_loader, uploaded
from benchmarks.speed.photographs import write_photographs
from benchmarks.speed.race import Options, Outcome, race, ratio, steady, steady_count
from benchmarks.speed.step import random_batch, recipe_for, released_step, with_arithmetic

MOST_WORKERS = 16
GOALS = {"cuda": 2.5, "cpu": 1.0}  # times the released images a second; the project names no goal for a CPU
SECONDS_AN_HOUR = 3600.0
IMAGENET = 1_281_167


def run(options: Options) -> Outcome:
    """Race our step with each backend of our loader against the released step with the released loader."""
    device, big = options.device, options.device.type == "cuda"
    workers = min(MOST_WORKERS, usable_cores()) if big else 2
    recipe, count = recipe_for(device, small=options.quick and not big), steady_count(workers)
    main, *others = backends = backends_for(device)
    with tempfile.TemporaryDirectory() as folder:
        root = options.data or write_photographs(Path(folder) / "jpegs", 4 * recipe.batch, 2, 500, 375)
        index, shares = index_folder(root), {}
        contestants = {
            f"ours, {name}": our_training(recipe, name, index, workers, count, Path(folder) / name, device, shares)
            for name in backends
        }
        contestants["released"] = released_training(recipe, root, workers, count, device, shares)
        found = race(contestants, options.rounds, count * recipe.batch, device)
    reference = found["released"]
    ratios = [ratio(f"training_{name}_vs_released", reference, found[f"ours, {name}"], 1) for name in others]
    ratios.append(ratio("training_vs_released", reference, found[f"ours, {main}"], GOALS[device.type]))
    scores = {f"loader_wait_share/{name}": share for name, share in shares.items()}
    if big:
        rate = max(timing.rate for name, timing in found.items() if name.startswith("ours"))
        scores["gpu_hours_per_imagenet_epoch"] = gpu_hours(rate)
    settings = {"arch": recipe.encoder.arch, "px": recipe.views[0].px, "batch": recipe.batch, "loader_workers": workers}
    settings |= {"precision": recipe.compute.precision, "threads": torch.get_num_threads(), "steps_a_round": count}
    settings["dropped_before"] = 2 * workers + 2
    notes = () if big else ("a GPU's figures: not run on this machine",)
    data = options.data.name if options.data else "generated photographs, 500 x 375"
    return Outcome("image", list(found.values()), ratios, scores, data, settings, notes)


def gpu_hours(images_per_second: float) -> float:
    """GPU hours of an epoch of ImageNet."""
    return IMAGENET / images_per_second / SECONDS_AN_HOUR


def our_training(
    recipe: PretrainConfig, backend: str, index: ImageIndex, workers: int, count: int, output: Path,
    device: torch.device,
    shares: dict[str, float],
) -> Callable[[], float]:  # fmt: skip
    """A round of our loader and step.

    Args:
        recipe: What is trained.
        backend: The loader's backend.
        index: The images.
        workers: The loader's threads.
        count: How many steps are timed.
        output: The trainer's output folder.
        device: Where it is trained.
        shares: Gets the share of time spent waiting for images, by backend.

    Returns:
        A call that runs a round and returns the seconds of its steps.
    """
    trainer = Trainer(replace(recipe, data=DataConfig(root=str(index.root), workers=0)), output, device)
    train = with_arithmetic(trainer.train_step, device, recipe.compute.precision)
    train(random_batch(recipe, device))  # cuDNN chooses its algorithms now, before the clock starts

    def work() -> float:
        made = our_loader(index, recipe.views, backend, recipe.batch, workers, count, device)
        seconds, shares[backend] = steady(made, train, workers, count, device)
        return seconds

    return work


def released_training(
    recipe: PretrainConfig, root: Path, workers: int, count: int, device: torch.device, shares: dict[str, float]
) -> Callable[[], float]:
    """The same with the released loader and step; its share of waiting is stored as `released`."""
    loader = released_loader(root, recipe.views[0], recipe.batch, workers, count, device)
    step = released_step(recipe, device)

    step(list(random_batch(recipe, device).pixels))

    def train(batch: Sequence) -> None:
        step(uploaded(batch, device))

    def work() -> float:
        seconds, shares["released"] = steady(loader, train, workers, count, device)
        return seconds

    return work
