"""The loop: recipe in, checkpoints and metrics out; stops and starts at any step without losing a sample."""

from __future__ import annotations

import math
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from adco import checkpoint, optim
from adco.config import Recipe
from adco.device import resolve_device
from adco.errors import UserError
from adco.files import output_folder, sha256_of, write_text
from adco.images import BadImages, ImageIndex, index_folder
from adco.loader import ViewDataset, batches, requests
from adco.methods import build_method
from adco.monitor import KnnProbe, Log, Rate, read_metrics
from adco.progress import progress
from adco.records import Record, commit

FILL_EPOCH = 2**31  # the views that fill the bank are never those of a training epoch
LOG_EVERY_STEPS = 10
FREE_TO_CHANGE = ("device", "data.root", "data.workers", "probe", "checkpoint")  # what a resumed run may set anew


class Trainer:
    """One pretraining run on one process. Everything is built here, so mistakes show before any work is done."""

    def __init__(self, recipe: Recipe, output: Path, resume: bool):
        self.recipe = recipe
        self.device = resolve_device(recipe.device)
        self.index = training_images(recipe.data.root)
        self.probe = _probe(recipe)
        self.steps_per_epoch = len(self.index) // recipe.batch
        if not self.steps_per_epoch:
            raise UserError(
                f"recipe: batch={recipe.batch} is larger than the {len(self.index)} images of {self.index.root}"
            )
        self.steps = recipe.epochs * self.steps_per_epoch
        torch.manual_seed(recipe.seed)
        self.method = build_method(recipe).to(self.device, memory_format=torch.channels_last)
        solver = recipe.optimizer
        self.optimizer = torch.optim.SGD(
            self.method.encoder.parameters(), solver.lr, momentum=solver.sgd_momentum, weight_decay=solver.weight_decay
        )
        self.bad = BadImages(self.index.root, len(self.index), recipe.data.max_bad_share, "data.max_bad_share")
        self.step, self.seconds, self.stopping = 0, 0.0, False
        self.commit = commit()  # of the code that runs, whatever is committed meanwhile
        self.output = output_folder(output)
        self._resume() if resume else self._refuse_to_overwrite()

    def fit(self) -> Path:
        """Train to the end, return the last checkpoint; Ctrl-C and SIGTERM write one and raise KeyboardInterrupt."""
        header = f"# commit: {self.commit}\n# command: {shlex.join(sys.argv)}\n"
        write_text(self.output / "recipe.yaml", header + self.recipe.to_yaml())
        self.log, begun, before = Log(self.output, self.step), time.perf_counter(), self.seconds
        with _stop_requests(self), _closing(self.log):
            if self.step == 0:
                self.fill_bank()
            bar = progress(self.steps * self.recipe.batch, "pretraining", "images", self.step * self.recipe.batch)
            with bar:
                rate = Rate()
                for batch in self._batches(self.step, self.steps):
                    self._note_bad(batch.bad)
                    scalars = self.train_step(batch)
                    bar.update(self.recipe.batch)
                    self.seconds = before + time.perf_counter() - begun
                    if self.step % LOG_EVERY_STEPS == 0 or self.step == self.steps:
                        self._report(scalars, bar, rate)
                    self._between_steps(scalars)
        return self._finish()

    def train_step(self, batch) -> dict[str, torch.Tensor]:
        """One step of the minimax game, eqs. (3) and (4); `step` is how many are done."""
        lr, bank_lr = self.learning_rates()
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        views = batch.to_views(self.device)
        result = self.method(views)
        self.optimizer.zero_grad()
        result.loss.backward()
        self.optimizer.step()
        self.method.update(result, bank_lr)
        self.step += 1
        return result.scalars

    def learning_rates(self) -> tuple[float, float]:
        """The encoder's and the bank's learning rate at the current step."""
        solver, bank = self.recipe.optimizer, self.recipe.bank
        when = {"step": self.step, "steps_per_epoch": self.steps_per_epoch, "epochs": self.recipe.epochs}
        lr = optim.cosine(
            **when, lr=solver.lr, final_lr=solver.final_lr, warmup_epochs=solver.warmup_epochs, by=solver.schedule_by
        )
        schedule = optim.cosine if bank.lr_schedule == "cosine" else optim.constant
        return lr, schedule(**when, lr=bank.lr, final_lr=0.0, by=solver.schedule_by)

    def fill_bank(self) -> None:
        """Fill the adversaries with key embeddings of training images, as `bank.init` says, before the first step."""
        rows, row = self.recipe.bank.size, 0
        with progress(rows, "filling the bank", "keys") as bar:
            for batch in self._batches(0, math.ceil(rows / self.recipe.batch), FILL_EPOCH):
                self._note_bad(batch.bad)
                views = batch.to_views(self.device)
                if self.recipe.bank.init == "train_and_fill":
                    filled = self.method.train_and_fill(views, row, self.optimizer)
                else:
                    filled = self.method.fill(views, row)
                bar.update(filled - row)
                row = filled
                if self.stopping:
                    raise KeyboardInterrupt
        self.method.restart_key_encoder()

    def _batches(self, first: int, last: int, first_epoch: int = 0) -> DataLoader:
        recipe = self.recipe
        dataset = ViewDataset(self.index, recipe.views, recipe.seed, int(recipe.data.max_bad_share * len(self.index)))
        wanted = requests(recipe.seed, len(self.index), recipe.batch, first, last, first_epoch)
        return batches(dataset, wanted, recipe.data.workers, self.device)

    def _between_steps(self, scalars: dict[str, torch.Tensor]) -> None:
        """After a step: probe and checkpoint where they are due, stop where that was asked for."""
        every, epoch, rest = self.recipe.checkpoint, *divmod(self.step, self.steps_per_epoch)
        last = self.step == self.steps
        if self.probe and rest == 0 and (epoch % self.recipe.probe.every_epochs == 0 or last):
            self.log.write(
                self.step, {"epoch": epoch, "knn_top1": self.probe(self.method.encoder.backbone, self.device)}
            )
        due = rest == 0 and epoch % every.every_epochs == 0
        due |= bool(every.every_steps) and self.step % every.every_steps == 0
        if due or last or self.stopping:
            self._save(scalars)
        if self.stopping and not last:
            raise KeyboardInterrupt

    def _save(self, scalars: dict[str, torch.Tensor]) -> None:
        self._check_finite(scalars["loss"].item())
        method, optimizer = self.method.state_dict(), self.optimizer.state_dict()
        bad = dict(self.bad.reasons)
        state = checkpoint.State(self.step, asdict(self.recipe), method, optimizer, bad, self.seconds)
        checkpoint.save(self.output, state, self.recipe.checkpoint.keep)

    def _report(self, scalars: dict[str, torch.Tensor], bar, rate: Rate) -> None:
        values = {name: value.item() for name, value in scalars.items()}
        self._check_finite(values["loss"])
        lr, bank_lr = self.learning_rates()
        epoch = self.step / self.steps_per_epoch
        speed = rate(bar.n - bar.initial)
        bar.set_postfix(
            epoch=f"{epoch:.1f}", loss=f"{values['loss']:.3f}", acc=f"{values['accuracy']:.1f}%", refresh=False
        )
        self.log.write(self.step, {"epoch": epoch, **values, "lr": lr, "bank_lr": bank_lr, "images_per_second": speed})

    def _check_finite(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise UserError(
                f"{self.output}: the loss is {loss} at step {self.step}; the checkpoints before it are kept: "
                "lower optimizer.lr or raise contrast.tau, then --resume"
            )

    def _note_bad(self, found: dict[str, str]) -> None:
        if found.keys() - self.bad.reasons.keys():
            self.bad.update(found)
            write_text(self.output / "bad_images.txt", self.bad.report())

    def _resume(self) -> None:
        path = checkpoint.newest_intact(self.output)
        if path is None:
            print(f"{self.output}: no intact checkpoint to resume from; starting from the beginning", file=sys.stderr)
            return
        state = checkpoint.load(path)
        refuse_changes(path, state.recipe, asdict(self.recipe))
        self.method.load_state_dict(state.method)
        self.optimizer.load_state_dict(state.optimizer)
        self.bad.reasons.update(state.bad_images)
        self.step, self.seconds = state.step, state.seconds
        print(f"resuming {path} at step {self.step} of {self.steps}", file=sys.stderr)

    def _refuse_to_overwrite(self) -> None:
        if any(self.output.glob("checkpoint_*.pth")):
            raise UserError(
                f"{self.output}: already holds a run; add --resume to go on, or choose another --output-dir"
            )

    def _finish(self) -> Path:
        path = checkpoint.newest_intact(self.output)
        rows = read_metrics(self.log.path)
        scores = {name: row[name] for name in ("loss", "accuracy", "knn_top1") for row in rows if name in row}
        Record(
            protocol=f"pretrain/{self.recipe.method}",
            scores=scores,
            checkpoint={"name": path.name, "sha256": sha256_of(path), "arch": self.recipe.encoder.arch},
            data={"name": self.index.root.parent.name, "images": len(self.index), "unreadable": len(self.bad.reasons)},
            settings=asdict(self.recipe),
            duration_seconds=self.seconds,
            commit=self.commit,
        ).write(self.output / "record.json")
        return path


def training_images(root: str) -> ImageIndex:
    """`root/train` where it exists (ImageNet's layout), else `root` itself. Raises UserError."""
    if not root:
        raise UserError("recipe: data.root is not set; add data.root=FOLDER, with train/CLASS/*.jpg or images in it")
    folder = Path(root)
    return index_folder(folder / "train" if (folder / "train").is_dir() else folder)


def refuse_changes(path: Path, old: dict, new: dict) -> None:
    """Raise UserError showing every field of the recipe that differs, except those a resumed run may set anew."""
    before, after = _flat(old), _flat(new)
    changed = [key for key in after if before.get(key) != after[key] and not key.startswith(FREE_TO_CHANGE)]
    if changed:
        shown = "; ".join(f"{key}: {before.get(key)} -> {after[key]}" for key in changed)
        raise UserError(
            f"{path}: was trained with another recipe ({shown}); use the same recipe or another --output-dir"
        )


def _probe(recipe: Recipe) -> KnnProbe | None:
    probe = recipe.probe
    if not probe.every_epochs:
        return None
    root = Path(probe.root or recipe.data.root)
    return KnnProbe(root, probe.px, probe.k, probe.temperature, probe.max_images, recipe.data.workers)


def _flat(tree: dict | list, prefix: str = "") -> dict[str, object]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    flat = {}
    for key, value in items:
        nested = isinstance(value, dict) or (isinstance(value, list) and value and isinstance(value[0], dict))
        flat.update(_flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value})
    return flat


@contextmanager
def _stop_requests(trainer: Trainer) -> Iterator[None]:
    """Ctrl-C and SIGTERM ask for a checkpoint after the running step; a second Ctrl-C stops at once."""

    def ask(number: int, frame: object) -> None:
        if trainer.stopping:
            raise KeyboardInterrupt
        trainer.stopping = True

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _closing(log: Log) -> Iterator[None]:
    try:
        yield
    finally:
        log.close()
