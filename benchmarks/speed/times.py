"""Table 5 in small: the time of a training step of every method and bank, timed in turn in one run.

    python benchmarks/speed/times.py [--device cuda] [--rounds 5] --output times.json

ResNet-18 at the small recipes' sizes with images in memory, so that only the method differs. `seconds_per_epoch` is of
9,469 images. A bank's share of a step is the time from given embeddings to their gradient and the updated bank, over
that of the whole step. Memory is the GPU's peak during a step beyond what was held before it; on a CPU: not run.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import torch
from PIL import Image
from torch.nn import functional as F

from adco.config.loading import load_recipe
from adco.config.validation import METHOD_NAMES
from adco.evaluation.records import Record
from adco.train.trainer import Trainer
from adco.utils.device import has_half_precision, resolve_device
from adco.utils.errors import command
from benchmarks.speed.race import ROUNDS, Timing, race
from benchmarks.speed.step import random_batch

IMAGES = 9469
SIZES = (65536, 16384, 8192, 1024, 256)


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Time every contestant, print them and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:INDEX (auto)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="steps of each, in turn (%(default)s)")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.json")
    args = parser.parse_args(argv)
    device, start = resolve_device(args.device), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        trainers = {name: trainer(recipe, change, device, Path(folder)) for name, recipe, change in contestants()}
        steps = {name: whole_step(made, device) for name, made in trainers.items()}
        banks = {f"bank/{name}": bank_step(made) for name, made in trainers.items() if name.startswith("adco")}
        timings = race(steps | banks, args.rounds, trainers["adco"].recipe.batch, device)
        memory = {name: peak_mib(step) for name, step in steps.items()} if device.type == "cuda" else {}
    record = as_record(timings, memory, trainers["adco"], time.perf_counter() - start)
    for name in steps:
        print(f"{name:16} {record.scores[f'seconds_per_epoch/{name}']:8.1f} s an epoch")
    print(f"wrote {record.write(args.output)}")
    return 0


def contestants() -> list[tuple[str, str, list[str]]]:
    """The name, recipe and overrides of each contestant."""
    every = [(name, f"{name}_r18_imagenette", []) for name in METHOD_NAMES]
    for size in SIZES:
        every.append((f"adco_k{size}", "adco_r18_imagenette", [f"bank.size={size}"]))
    both = ["contrast.symmetric=true"]
    every.append(("adco_sym", "adco_r18_imagenette", both))
    return [*every, ("adco_sym_k65536", "adco_r18_imagenette", [*both, "bank.size=65536"])]


def trainer(recipe: str, change: Sequence[str], device: torch.device, folder: Path) -> Trainer:
    """A trainer of the recipe with as many images as a batch has, which are never read; no bank is filled."""
    precision = "bf16" if has_half_precision(device) else "float32"
    quiet = ["probe.every_epochs=0", "monitor.every_steps=0", "data.workers=0", f"compute.precision={precision}"]
    made = load_recipe(recipe, [*change, *quiet, f"data.root={folder / 'images'}", "epochs=1000"])
    for number in range(made.batch):
        path = folder / "images" / f"{number}.png"
        if not path.is_file():
            path.parent.mkdir(exist_ok=True)
            Image.new("RGB", (8, 8)).save(path)
    return Trainer(made, folder / "output", device)


def whole_step(made: Trainer, device: torch.device) -> Callable[[], object]:
    """A call of the trainer's whole step, on the same images each time."""
    batch = random_batch(made.recipe, device)
    return lambda: made.train_step(batch)


def bank_step(made: Trainer) -> Callable[[], None]:
    """A call of what AdCo adds to a network: from embeddings to their gradient, and the bank's own step."""
    method, dim, batch = made.method, made.recipe.encoder.dim, made.recipe.batch
    embeddings = F.normalize(torch.randn(2, batch, dim, device=made.device), dim=2)

    def step() -> None:
        queries = {view: embeddings[view].clone().requires_grad_() for view in method.query_views}
        keys, progress = {view: embeddings[view] for view in method.key_views}, made.position()
        output = method.compute_loss(queries, keys, progress)
        output.loss.backward()
        method.update(output, progress, made.recipe.bank.lr)

    return step


def peak_mib(step: Callable[[], object]) -> float:
    """MiB of GPU memory that a step needs at its peak beyond what is held before it."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - held) / 2**20


def as_record(timings: Mapping[str, Timing], memory: Mapping[str, float], made: Trainer, seconds: float) -> Record:
    """The record: seconds an epoch, shares of the bank in percent, MiB."""
    scores = {f"seconds_per_epoch/{n}": IMAGES / t.rate for n, t in timings.items() if not n.startswith("bank/")}
    for name, timing in timings.items():
        if name.startswith("bank/"):
            scores[f"bank_percent/{name[5:]}"] = 100 * timing.median / timings[name[5:]].median
    scores |= {f"step_mib/{name}": value for name, value in memory.items()}
    spread = {name: (max(t.seconds) - min(t.seconds)) / t.median for name, t in timings.items()}
    recipe = made.recipe
    settings = {"arch": recipe.encoder.arch, "px": recipe.views[0].px, "batch": recipe.batch, "images": IMAGES,
                "precision": recipe.compute.precision, "threads": torch.get_num_threads(),
                "rounds": len(timings["adco"].seconds), "spread_of_rounds": spread,
                "memory": "peak of a step" if memory else "not run: no GPU"}  # fmt: skip
    return Record("benchmark/table5-in-small", scores, {}, {"name": "random pixels"}, settings, round(seconds, 1))


if __name__ == "__main__":
    sys.exit(main())
