"""bf16, and on a GPU tf32, against float32: the same run in each precision, and the differences of their losses.

    python benchmarks/speed/precision.py --data SAMPLE/imagenet --device cuda [--steps 200] --output precision.json

AdCo's recipe of 200 epochs (ResNet-50, 224 px, batch 256) on a GPU, the small one on a CPU, with the same images for
all, e.g. those of tools/make_sample.py. Reported are the mean relative difference of the loss, and that of its mean
over the last fifth of the steps.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import numpy as np
import torch

from adco.config.loading import load_recipe
from adco.evaluation.records import Record
from adco.train.logger import read_metrics
from adco.train.trainer import Trainer
from adco.utils.device import resolve_device
from adco.utils.errors import command


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Train in every precision, print the differences and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:INDEX (auto)")
    parser.add_argument("--data", required=True, help="what data.root may be")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.json")
    args = parser.parse_args(argv)
    device, start = resolve_device(args.device), time.perf_counter()
    others = ("bf16", "tf32") if device.type == "cuda" else ("bf16",)
    losses = {precision: run(precision, args.data, args.steps, device) for precision in ("float32", *others)}
    scores = compared(losses["float32"], losses["bf16"])
    for other in others[1:]:
        scores |= {f"{other}/{name}": value for name, value in compared(losses["float32"], losses[other]).items()}
    settings = {"steps": args.steps, "logged_every": 10, "losses": losses, "device": str(device)}
    seconds = round(time.perf_counter() - start, 1)
    record = Record("benchmark/bf16-against-float32", scores, {}, {"name": Path(args.data).name}, settings, seconds)
    print(f"{scores}; wrote {record.write(args.output)}")
    return 0


def run(precision: str, data: str, steps: int, device: torch.device) -> list[float]:
    """The logged losses of a run of so many steps."""
    big = device.type == "cuda"
    change = [f"compute.precision={precision}", f"data.root={data}", "data.in_memory=true", "bank.init=random"]
    recipe = load_recipe("adco_r50_200ep" if big else "adco_r18_imagenette", [*change, "probe.every_epochs=0"])
    with tempfile.TemporaryDirectory() as folder:
        made = Trainer(recipe, Path(folder), device)
        made.steps = steps
        made.fit()
        return [row["loss"] for row in read_metrics(Path(folder) / "metrics.jsonl") if "loss" in row]


def compared(reference: Sequence[float], other: Sequence[float]) -> dict[str, float]:
    """Relative differences in percent: the mean over all logged losses, and that of the mean over the last fifth."""
    one, two = np.asarray(reference), np.asarray(other)
    tail = -max(1, len(one) // 5)
    end = abs(two[tail:].mean() / one[tail:].mean() - 1)
    return {"loss_difference_percent": 100 * float(np.mean(np.abs(two / one - 1))),
            "last_fifth_difference_percent": 100 * float(end)}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
