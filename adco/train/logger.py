"""Knowing whether it works: JSONL, TensorBoard, Weights & Biases, speed and waiting, a kNN probe on frozen features."""

from __future__ import annotations

import importlib.util
import json
import secrets
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from adco.data.sources import open_images
from adco.evaluation.knn import first_argmax, knn_predict
from adco.train.knn_probe import NOTHING, Pictures, embed, gather_in_order, judged
from adco.utils import distributed
from adco.utils.errors import UserError
from adco.utils.files import write_text

T = TypeVar("T")


class Log:
    """Scalars and words of a run: rows of `metrics.jsonl`, TensorBoard, and Weights & Biases where it is asked for.

    On resume, rows after `step` are dropped. Ranks other than 0 write nothing. settings: the recipe, for W&B's page.
    """

    def __init__(self, folder: Path, step: int, wandb: bool = False, settings: Mapping | None = None):
        self.path, self.writes = folder / "metrics.jsonl", distributed.rank() == 0
        if wandb and importlib.util.find_spec("wandb") is None:
            raise UserError(
                "recipe: monitor.wandb=true, but wandb is not installed; pip install wandb, or set it false"
            )
        if not self.writes:
            return
        kept = [row for row in read_metrics(self.path) if row["step"] <= step]
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        self.run = _wandb_run(folder, settings) if wandb else None

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Append one row; each key becomes a curve."""
        if not self.writes:
            return
        self._append({"step": step, **scalars})
        for name, value in scalars.items():
            self.board.add_scalar(name, value, step)
        if self.run:
            self.run.log({"step": step, **scalars})

    def say(self, step: int, text: str) -> None:
        """Print a line on stderr without breaking the progress bar, and keep it as a row with the key `text`."""
        if not self.writes:
            return
        tqdm.write(f"step {step}: {text}", file=sys.stderr)
        self._append({"step": step, "text": text})
        self.board.add_text("text", text, step)
        if self.run:
            self.run.alert("adco", f"step {step}: {text}")

    def close(self) -> None:
        """Flush TensorBoard and W&B."""
        if self.writes:
            self.board.close()
            if self.run:
                self.run.finish()

    def _append(self, row: dict[str, float | str]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The rows of a `metrics.jsonl`; a last line cut off by a crash is left out, an absent file has none."""
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


class KnnProbe:
    """Weighted kNN top-1 on frozen features of `root/train` against `root/val`, at most max_images of each.

    root: as `data.root`, with both splits. Images: shorter side to px * 256 / 224, centre crop of px; unreadable ones
    are left out. Every rank calls it: each embeds its share of the pictures, meets all training features, and votes for
    its own share of the validation.
    """

    def __init__(self, root: Path | str, px: int, k: int, temperature: float, max_images: int, workers: int):
        self.sets = [Pictures(open_images(str(root), split), px, max_images) for split in ("train", "val")]
        self.root, self.k, self.temperature, self.workers = root, k, temperature, workers
        if self.sets[0].index.classes != self.sets[1].index.classes:
            raise UserError(
                f"{root}: train and val have different classes; the kNN probe needs the same folders in both"
            )

    def __call__(self, backbone: nn.Module, device: torch.device) -> float:
        """Percent of val images whose class the neighbours vote for. The backbone's mode is put back afterwards."""
        with judged(backbone) as frozen:
            # the forward itself: a compiled backbone would be compiled again for the probe's sizes
            (train, labels), (val, truth) = (embed(frozen.forward, part, device, self.workers) for part in self.sets)
        train, labels = gather_in_order(F.normalize(train, dim=1)), gather_in_order(labels)
        train, labels = train[labels != NOTHING], labels[labels != NOTHING]
        val, truth = F.normalize(val[truth != NOTHING], dim=1), truth[truth != NOTHING].cpu()
        hits, count = 0, distributed.total(torch.tensor(len(truth), device=device))
        if not len(train) or not count:
            raise UserError(f"{self.root}: kNN probe: none of the pictures of train or of val can be read")
        if len(truth):
            classes = len(self.sets[0].index.classes)
            votes = knn_predict(train, labels, val, min(self.k, len(train)), self.temperature, classes)
            hits = int((first_argmax(votes) == truth).sum())
        return 100.0 * float(distributed.total(torch.tensor(hits, device=device)) / count)


class Rate:
    """Speed since the last question, and the share of that time in which the device waited for images."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.last, self.count, self.waited = time.perf_counter(), 0, 0.0
        self.cuda = device is not None and device.type == "cuda"
        self.waits: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def __call__(self, images: int) -> float:
        """Images per second since the last question; `images` is how many have been seen in all."""
        return self.scalars(images)["images_per_second"]

    def scalars(self, images: int) -> dict[str, float]:
        """`images_per_second`, `loader_wait_share` in [0, 1], on a GPU `gpu_memory_gib` (this rank's peak so far)."""
        now, waited = time.perf_counter(), self._seconds_waited()
        took, seen = now - self.last, images - self.count
        self.last, self.count = now, images
        found = {"images_per_second": seen / took, "loader_wait_share": min(1.0, waited / took)}
        if self.cuda:
            found["gpu_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        return found

    def waiting(self, batches: Iterable[T]) -> Iterator[T]:
        """The batches; the time until each comes counts as waiting.

        A GPU works on while the CPU waits for images, so what counts there is the gap in the GPU's own queue: between
        an event before the wait and one after it. It is nought while the GPU is still busy with earlier steps.
        """
        batches = iter(batches)
        while True:
            begun, before = time.perf_counter(), self._event()
            try:
                batch = next(batches)
            except StopIteration:
                return
            if self.cuda:
                self.waits.append((before, self._event()))
            else:
                self.waited += time.perf_counter() - begun
            yield batch

    def _event(self) -> torch.cuda.Event | None:
        if not self.cuda:
            return None
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _seconds_waited(self) -> float:
        if self.waits:
            self.waits[-1][1].synchronize()
            self.waited += sum(before.elapsed_time(after) for before, after in self.waits) / 1000
            self.waits.clear()
        waited, self.waited = self.waited, 0.0
        return waited


def _wandb_run(folder: Path, settings: Mapping | None):
    """A W&B run that a resumed training goes on with: its id is kept in the folder."""
    import wandb

    note = folder / "wandb_id"
    if not note.is_file():
        write_text(note, secrets.token_hex(4))
    run = wandb.init(
        project="adco", name=folder.name, dir=folder, id=note.read_text(), resume="allow", config=dict(settings or {})
    )
    run.define_metric("*", step_metric="step")  # W&B's own count cannot go back to a checkpoint
    return run
