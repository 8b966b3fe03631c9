"""The loop: recipe in, checkpoints and metrics out; stops and starts at any step without losing a sample."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from adco.config.schema import PretrainConfig
from adco.data.images import BadImages
from adco.data.in_memory import in_memory
from adco.data.loader import Batch, ViewDataset, batches, requests
from adco.data.sources import open_images
from adco.evaluation.provenance import command_line
from adco.evaluation.records import Record, commit
from adco.methods import Method, build_method
from adco.methods.base import StepOutput, TrainingProgress
from adco.train import checkpoint, optimizer
from adco.train.checkpoint import load_for_resume
from adco.train.embedding_metrics import EmbeddingMetrics, HealthMonitor
from adco.train.failures import diverged
from adco.train.gradient_cache import backward, split
from adco.train.knn_probe import KnnProbe
from adco.train.logger import Logger, read_metrics
from adco.train.throughput import Throughput
from adco.utils import distributed, schedules
from adco.utils.device import has_half_precision, resolve_workers
from adco.utils.errors import UserError
from adco.utils.files import lock_output_dir, output_folder, sha256_of, write_text
from adco.utils.progress import progress
from adco.utils.signals import StopRequests

FILL_EPOCH = 2**31  # the views that fill the bank are never those of a training epoch
LOG_EVERY_STEPS = 10


class Trainer:
    """One rank's part of a pretraining run. Everything is built here, so mistakes show before any work is done.

    device: this rank's, from `distributed.started`. force: resume although the recipe changed. Raises UserError.
    """

    def __init__(
        self, recipe: PretrainConfig, output: Path, device: torch.device, resume: bool = False, force: bool = False
    ):
        self.recipe, self.device, self.main = recipe, device, distributed.rank() == 0
        self.workers = resolve_workers(recipe.data.workers, device)
        self.index = open_images(recipe.data.root)
        self.sizes = self.index.sizes
        if recipe.data.in_memory:
            self.index = in_memory(self.index, self.workers)
        self.probe = _probe(recipe, self.workers)
        self.steps_per_epoch = len(self.index) // recipe.batch
        self._check_sizes()
        self.steps = recipe.epochs * self.steps_per_epoch
        torch.manual_seed(recipe.seed)
        self.method = build_method(recipe).to_device(recipe.compute, device)
        self.network = distributed.parallel(self.method.encoder)
        fused = recipe.compute.fused_optimizer
        self.optimizer = optimizer.build_optimizer(recipe.optimizer, self.method.encoder, fused)
        self.scaler = torch.amp.GradScaler(device.type, enabled=recipe.compute.precision == "fp16")
        self.bad = BadImages(self.index.root, len(self.index), recipe.data.max_bad_share, "data.max_bad_share")
        self.step, self.seconds, self.stops, self.losses = 0, 0.0, StopRequests(), []
        self.health, self.watch = EmbeddingMetrics(), HealthMonitor()
        if recipe.compute.precision in ("bf16", "fp16") and not has_half_precision(device):
            self._say(
                f"warning: compute.precision={recipe.compute.precision}, but this CPU has no instructions for it and "
                "will be many times slower; use compute.precision=float32"
            )
        self.commit = commit()  # of the code that runs, whatever is committed meanwhile
        self.output = output_folder(output)
        self.claim = lock_output_dir(self.output) if self.main else None
        self._resume(force) if resume else self._refuse_to_overwrite()
        self.writer = checkpoint.Writer(self.output, recipe.checkpoint.keep)

    def fit(self) -> Path:
        """Train to the end and return the last checkpoint.

        Asked to stop, write one after the running step and raise KeyboardInterrupt (Ctrl-C) or Requeue (SIGTERM, USR1).
        """
        if self.main:
            header = f"# commit: {self.commit}\n# command: {command_line()}\n"
            write_text(self.output / "recipe.yaml", header + self.recipe.to_yaml())
        start, before, batch_images = time.perf_counter(), self.seconds, self.recipe.batch
        with (
            self.stops,
            closing(Logger(self.output, self.step, self.recipe.monitor.wandb, asdict(self.recipe))) as self.log,
            self.writer,
        ):
            if self.step == 0 and self.method.bank is not None and self.recipe.bank.init != "random":
                self.fill_bank()
            self.begun_at, total = self.step, self.steps * batch_images
            with (
                progress(total, "pretraining", "images", self.step * batch_images, self.main) as bar,
                closing(self._batches(self.step, self.steps)) as made,
            ):
                rate = Throughput(self.device)
                for batch in rate.waiting(made):
                    self._note_bad(batch.bad)
                    step = self.train_step(batch)
                    bar.update(batch_images)
                    self.seconds = before + time.perf_counter() - start
                    self._report(step, bar, rate)
                    self._between_steps()
        return self._finish()

    def train_step(self, batch: Batch) -> StepOutput:
        """One step of the game: keys, queries, the encoder descends, the bank ascends. `step` is how many are done."""
        moment, (lr, bank_lr) = self.moment(), self.learning_rates()
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.optimizer.lr if group["constant_lr"] else lr
        parts = self._parts(batch)
        step = self._descend(self.method, parts, moment)
        self.method.update(step, moment, bank_lr)
        self.losses.append(step.loss.detach())
        self.step += 1
        return step

    def _descend(self, method: Method, parts: Sequence[Sequence[Tensor]], moment: TrainingProgress) -> StepOutput:
        self.optimizer.zero_grad()
        step = backward(method, self.network, parts, moment, self.scaler)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return step

    def _parts(self, batch: Batch) -> list[list[Tensor]]:
        """The batch's views on the device, in micro-batches."""
        compute = self.recipe.compute
        return split(batch.to_views(self.device, compute.channels_last), compute.accumulate)

    def moment(self) -> TrainingProgress:
        """Where the run is."""
        return TrainingProgress(self.step, self.steps, self.steps_per_epoch)

    def learning_rates(self) -> tuple[float, float]:
        """The encoder's and the bank's learning rate at the current step."""
        solver, bank = self.recipe.optimizer, self.recipe.bank
        when = {"step": self.step, "steps_per_epoch": self.steps_per_epoch, "epochs": self.recipe.epochs}
        when["by"] = solver.schedule_by
        lr = schedules.cosine(**when, lr=solver.lr, final_lr=solver.final_lr, warmup_epochs=solver.warmup_epochs)
        schedule = schedules.cosine if bank.lr_schedule == "cosine" else schedules.constant
        return lr, schedule(**when, lr=bank.lr, final_lr=0.0, warmup_epochs=bank.warmup_epochs)

    def fill_bank(self) -> None:
        """Fill the bank with key embeddings of training images, as `bank.init` says, before the first step."""
        method, rows, row = self.method, self.recipe.bank.size, 0
        train = self.recipe.bank.init == "train_and_fill"
        steps = math.ceil(rows / self.recipe.batch)
        with (
            progress(rows, "filling the bank", "keys", shown=self.main) as bar,
            closing(self._batches(0, steps, FILL_EPOCH)) as made,
        ):
            for number, batch in enumerate(made):
                self._note_bad(batch.bad)
                parts = self._parts(batch)
                moment = TrainingProgress(number, self.steps, self.steps_per_epoch)
                if train:
                    keys = self._descend(method.filling(), parts, moment).keys
                else:
                    keys = method.targets(parts, moment)[method.pairs[0].key]
                filled = method.bank.fill(distributed.all_gather(keys), row)
                bar.update(filled - row)
                row = filled
                if self.stops.anywhere():
                    self.stops.stop()
        method.sync_key_encoder()

    def _batches(self, first: int, last: int, first_epoch: int = 0) -> Generator[Batch, None, None]:
        recipe, rank, ranks = self.recipe, distributed.rank(), distributed.world_size()
        most_bad = int(recipe.data.max_bad_share * len(self.index))
        dataset = ViewDataset(self.index, recipe.views, recipe.seed, most_bad, recipe.data.backend)
        wanted = requests(recipe.seed, len(self.index), recipe.batch, first, last, first_epoch, rank, ranks)
        return batches(dataset, wanted, self.workers, self.device)

    def _between_steps(self) -> None:
        """After a step: probe and checkpoint where they are due, stop where that was asked for."""
        every, epoch, rest = self.recipe.checkpoint, *divmod(self.step, self.steps_per_epoch)
        last, stopping = self.step == self.steps, self.stops.anywhere()
        if self.probe and rest == 0 and (epoch % self.recipe.probe.every_epochs == 0 or last):
            top1 = self.probe(self.method.encoder.backbone, self.device)
            self._write({"epoch": epoch, "knn_top1": top1})
        due = rest == 0 and epoch % every.every_epochs == 0
        due |= bool(every.every_steps) and self.step % every.every_steps == 0
        if due or last or stopping:
            self._save()
        if stopping and not last:
            self.writer.wait()
            self.stops.stop()

    def _save(self) -> None:
        self._check_finite()
        state = self._state()
        if self.main:
            self.writer.save(state)

    def _state(self) -> checkpoint.State:
        """Everything to go on from, with the whole bank: every rank takes part."""
        for reasons in distributed.all_gather_objects(self.bad.reasons):
            self._note_bad(reasons)
        method, optimizer, scaler = self.method.state_dict(), self.optimizer.state_dict(), self.scaler.state_dict()
        recipe, data, bad = asdict(self.recipe), self.index.fingerprint, dict(self.bad.reasons)
        return checkpoint.State(self.step, recipe, method, optimizer, scaler, data, bad, self.seconds, self.sizes)

    def _report(self, step: StepOutput, bar, rate: Throughput) -> None:
        """Every few steps: scalars, speed, health; every rank takes part, rank 0 writes."""
        row, every = {}, self.recipe.monitor.every_steps
        if self.step % LOG_EVERY_STEPS == 0 or self.step == self.steps:
            names = sorted(step.scalars)
            values = distributed.all_reduce_mean(torch.stack([step.scalars[name].float() for name in names])).tolist()
            row = dict(zip(names, values, strict=True))
            self._check_finite()
            lr, bank_lr = self.learning_rates()
            epoch = self.step / self.steps_per_epoch
            bar.set_postfix(epoch=f"{epoch:.1f}", **{name: f"{row[name]:.3g}" for name in names}, refresh=False)
            row |= {"epoch": epoch, "lr": lr, "bank_lr": bank_lr}
            row |= rate.scalars((self.step - self.begun_at) * self.recipe.batch)
        if every and self.step % every == 0:
            bank = self.method.bank
            rows, sharded = (bank.rows, bank.sharded) if bank is not None else (None, False)
            contrast = self.recipe.contrast
            tau = contrast.tau if step.bank_gradient is None else contrast.tau_bank  # a queue is met at tau alone
            row |= self.health(step.queries, step.keys, rows, tau, sharded)
        if row:
            self._write(row)

    def _write(self, row: dict[str, float]) -> None:
        self.log.write(self.step, row)
        for warning in self.watch(row):
            self.log.warn(self.step, warning)

    def _check_finite(self) -> None:
        """Raise Failure if a loss since the last call was no number on any rank; every rank takes part."""
        if not self.losses:
            return
        losses, self.losses = distributed.all_gather(torch.stack(self.losses)[None]).mean(dim=0), []
        bad = losses.isfinite().logical_not().nonzero()
        if len(bad):
            self.writer.wait()  # a checkpoint that is being written counts as the last good one
            first = self.step - len(losses) + int(bad[0])
            recipe, count, state = self.recipe, len(self.index), self._state()
            (request,) = requests(recipe.seed, count, recipe.batch, first, first + 1)
            files = [self.index.paths[sample] for sample in request.samples]
            error = diverged(self.output, state, first, losses[bad[0] :].tolist(), files) if self.main else None
            raise distributed.all_gather_objects(error)[0]

    def _check_sizes(self) -> None:
        recipe, images = self.recipe, len(self.index)
        parts = distributed.world_size() * recipe.compute.accumulate * recipe.encoder.norm_splits
        if not self.steps_per_epoch:
            raise UserError(f"recipe: batch={recipe.batch} is larger than the {images} images of {self.index.root}")
        if recipe.batch % parts or recipe.batch // parts < 2:
            raise UserError(
                f"recipe: batch={recipe.batch} does not divide into {parts} parts of at least 2 images (ranks="
                f"{distributed.world_size()} x compute.accumulate x encoder.norm_splits); change one of them"
            )

    def _note_bad(self, found: dict[str, str]) -> None:
        if found.keys() - self.bad.reasons.keys():
            self.bad.update(found)
            if self.main:
                write_text(self.output / "bad_images.txt", self.bad.report())

    def _resume(self, force: bool) -> None:
        path = distributed.all_gather_objects(checkpoint.newest_intact(self.output) if self.main else None)[0]
        if path is None:
            self._say(f"{self.output}: no intact checkpoint to resume from; starting from the beginning")
            return
        state, changes = load_for_resume(path, asdict(self.recipe), self.index.fingerprint, self.sizes, force)
        self._say("".join(f"going on although changed: {change}\n" for change in changes).rstrip())
        self.method.load_state_dict(state.method)
        optimizer.load_state(self.optimizer, state.optimizer)
        self.scaler.load_state_dict(state.scaler)
        self.bad.reasons.update(state.bad_images)
        self.step, self.seconds = state.step, state.seconds
        self._say(f"resuming {path} at step {self.step} of {self.steps}")

    def _say(self, text: str) -> None:
        if self.main and text:
            print(text, file=sys.stderr)

    def _refuse_to_overwrite(self) -> None:
        if any(self.output.glob("checkpoint_*.pth")):
            raise UserError(
                f"{self.output}: already holds a run; add --resume to go on, or choose another --output-dir"
            )

    def _about(self, path: Path) -> dict[str, object]:
        """What the record says of the checkpoint that this run came to."""
        encoder, facts = self.recipe.encoder, {"method": self.recipe.method, "epochs": self.recipe.epochs}
        return facts | {"name": path.name, "sha256": sha256_of(path), "arch": encoder.arch, "stem": encoder.stem}

    def _finish(self) -> Path:
        path = checkpoint.newest_intact(self.output)
        if not self.main:
            return path
        rows = read_metrics(self.log.path)
        scores = {name: row[name] for name in ("loss", "accuracy", "knn_top1") for row in rows if name in row}
        Record(
            protocol=f"pretrain/{self.recipe.method}",
            scores=scores,
            checkpoint=self._about(path),
            data={"name": self.index.root.parent.name, "images": len(self.index), "unreadable": len(self.bad.reasons)},
            settings=asdict(self.recipe),
            duration_seconds=self.seconds,
            commit=self.commit,
        ).write(self.output / "record.json")
        return path


def _probe(recipe: PretrainConfig, workers: int) -> KnnProbe | None:
    probe = recipe.probe
    if not probe.every_epochs:
        return None
    root = probe.root or recipe.data.root
    return KnnProbe(root, probe.px, probe.k, probe.temperature, probe.max_images, workers)
