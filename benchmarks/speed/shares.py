"""The parts of a training step: images, encoder, key encoder, bank, optimiser, each timed alone and in turn.

    python benchmarks/speed/shares.py [--device cuda] [--rounds 5] --output shares.json

AdCo with ResNet-50 at 224 px, batch 256 and a bank of 65,536 on a GPU; the small recipe on a CPU. Shares are of the sum
of the parts; the whole step is reported beside it. `momentum_update` is the key encoder's moving average. Images are
random pixels in memory, and `--workers` threads make views of them: on a GPU this runs beside the step, so its share is
not added.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import numpy as np
import torch

from adco.data.images import ArrayIndex
from adco.data.loader import ViewDataset, batches, requests
from adco.evaluation.records import Record
from adco.models.encoder import momentum_update
from adco.train.trainer import Trainer
from adco.utils.device import resolve_device
from adco.utils.errors import command
from benchmarks.speed.race import ROUNDS, race
from benchmarks.speed.step import random_batch
from benchmarks.speed.times import bank_step, trainer, whole_step

PARTS = ("encoder", "key_encoder", "bank", "optimiser", "momentum_update")


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Time the parts, print them and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:INDEX (auto)")
    parser.add_argument("--workers", type=int, default=8, help="threads that make views (%(default)s)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of each part, in turn (%(default)s)")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.json")
    args = parser.parse_args(argv)
    device, start = resolve_device(args.device), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        big = device.type == "cuda"
        change = ["bank.init=random"] if big else []
        made = trainer("adco_r50_200ep" if big else "adco_r18_imagenette", change, device, Path(folder))
        parts = {"step": whole_step(made, device), **parts_of(made), "bank": bank_step(made)}
        parts["input"] = make_input(made, device, args.workers)
        found = race(parts, args.rounds, made.recipe.batch, device)
    milliseconds = {name: 1000 * timing.median for name, timing in found.items()}
    total = sum(milliseconds[name] for name in PARTS)
    scores = {f"percent/{name}": 100 * milliseconds[name] / total for name in PARTS}
    scores |= {f"ms/{name}": value for name, value in milliseconds.items()}
    recipe = made.recipe
    settings = {"arch": recipe.encoder.arch, "px": recipe.views[0].px, "batch": recipe.batch, "bank": recipe.bank.size,
                "precision": recipe.compute.precision, "workers": args.workers, "rounds": args.rounds}  # fmt: skip
    seconds = round(time.perf_counter() - start, 1)
    record = Record("benchmark/step-profile", scores, {}, {"name": "random pixels"}, settings, seconds)
    print("\n".join(f"{name:12} {value:8.1f} ms" for name, value in milliseconds.items()))
    print(f"wrote {record.write(args.output)}")
    return 0


def parts_of(made: Trainer) -> dict[str, Callable[[], object]]:
    """Calls of the encoder (forward and backward), key encoder (forward), optimiser and moving average."""
    method, views = made.method, random_batch(made.recipe, made.device).pixels

    def encoder() -> None:
        made.optimizer.zero_grad()
        made.network([views[view] for view in method.query_views])[0].square().mean().backward()

    def key_encoder() -> None:
        with torch.no_grad():
            method.key_encoder([views[view] for view in method.key_views])

    encoder()  # makes the gradients that the optimiser needs
    momentum = made.recipe.encoder.key_momentum
    return {
        "encoder": encoder,
        "key_encoder": key_encoder,
        "optimiser": made.optimizer.step,
        "momentum_update": lambda: momentum_update(*method.followed, momentum),
    }


def make_input(made: Trainer, device: torch.device, workers: int) -> Callable[[], object]:
    """A call that makes the views of one batch, from images in memory to normalized pixels on the device."""
    recipe, px = made.recipe, 256 if device.type == "cuda" else 160
    pixels = np.random.default_rng(0).integers(0, 256, (recipe.batch, px, px, 3), dtype=np.uint8)
    paths = tuple(map(str, range(recipe.batch)))
    index = ArrayIndex(Path("."), paths, (0,) * recipe.batch, ("all",), pixels)
    dataset = ViewDataset(index, recipe.views, recipe.seed, 0, recipe.data.backend)

    def made_views() -> None:
        for batch in batches(dataset, requests(0, recipe.batch, recipe.batch, 0, 1), workers, device):
            batch.to_views(device)

    return made_views


if __name__ == "__main__":
    sys.exit(main())
