"""The pretraining loop: a recipe in, checkpoints and metrics out. It stops and resumes at any step, exactly."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from adco.config.schema import PretrainConfig
from adco.data.batch import Batch
from adco.evaluation.provenance import command_line, commit
from adco.methods import AdCo, Method, build_method
from adco.methods.base import MemoryBankMethod, StepOutput, TrainingProgress
from adco.train import checkpoint
from adco.train.embedding_metrics import EmbeddingMetrics, HealthMonitor
from adco.train.failures import diverged
from adco.train.gradient_cache import backward
from adco.train.knn_probe import KnnProbe
from adco.train.logger import Logger
from adco.train.optimizer import build_optimizer, load_state
from adco.train.run_record import write_record
from adco.train.throughput import Throughput
from adco.train.training_input import TrainingInput
from adco.utils import distributed, schedules
from adco.utils.device import has_half_precision
from adco.utils.errors import Failure, UserError
from adco.utils.files import lock_output_dir, output_folder, write_text
from adco.utils.progress import progress
from adco.utils.signals import StopRequests

FILL_EPOCH = 2**31  # views that fill the bank are never those of a training epoch
LOG_EVERY_STEPS = 10


class Trainer:
    """One rank's part of a pretraining run. Everything is built at once, so that mistakes show before any work is done.

    Args:
        recipe: Configuration of the run.
        output: Folder for checkpoints, metrics and the record.
        device: This rank's device, from `distributed.started`.
        resume: Go on from the newest intact checkpoint in `output`.
        force: Resume although the recipe or the images changed.

    Attributes:
        step: Number of steps that are done.
        steps: Number of steps of the whole run.
        method: Encoders, bank and objective.

    Raises:
        UserError: What the recipe asks for is not possible, or `output` is in use or holds another run.
    """

    def __init__(
        self, recipe: PretrainConfig, output: Path, device: torch.device, resume: bool = False, force: bool = False
    ):
        self.recipe, self.device, self.main = recipe, device, distributed.rank() == 0
        self.input = TrainingInput(recipe, device)
        self.index, self.bad, self.steps_per_epoch = self.input.index, self.input.bad, self.input.steps_per_epoch
        self.probe = _probe(recipe, self.input.workers)
        self.steps = recipe.epochs * self.steps_per_epoch
        torch.manual_seed(recipe.seed)
        self.method = build_method(recipe).to_device(recipe.compute, device)
        self.network = distributed.parallel(self.method.encoder)
        fused = recipe.compute.fused_optimizer
        self.optimizer = build_optimizer(recipe.optimizer, self.method.encoder, fused)
        self.scaler = torch.amp.GradScaler(device.type, enabled=recipe.compute.precision == "fp16")
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
        """Train to the end.

        Returns:
            The path of the last checkpoint.

        Raises:
            KeyboardInterrupt, Requeue: Ctrl-C, or SIGTERM and SIGUSR1; a checkpoint of the running step is written.
            Failure: The loss is not finite.
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
            self.first_step, total = self.step, self.steps * batch_images
            with (
                progress(total, "pretraining", "images", self.step * batch_images, self.main) as bar,
                closing(self.input.batches(self.step, self.steps)) as made,
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
        """One step: keys, queries, the encoder descends the loss, the bank ascends it."""
        position, (lr, bank_lr) = self.position(), self.learning_rates()
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.optimizer.lr if group["constant_lr"] else lr
        step = self._descend(self.method, self.input.micro_batches(batch), position)
        self.method.update(step, position, bank_lr)
        self.losses.append(step.loss.detach())
        self.step += 1
        return step

    def _descend(self, method: Method, parts: Sequence[Sequence[Tensor]], position: TrainingProgress) -> StepOutput:
        self.optimizer.zero_grad()
        step = backward(method, self.network, parts, position, self.scaler)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return step

    def position(self) -> TrainingProgress:
        """How far the run is."""
        return TrainingProgress(self.step, self.steps, self.steps_per_epoch)

    def learning_rates(self) -> tuple[float, float]:
        """The encoder's and the bank's learning rate at the current step."""
        solver, bank = self.recipe.optimizer, self.recipe.bank
        at, by = (self.step, self.steps_per_epoch, self.recipe.epochs), solver.schedule_by
        lr = schedules.cosine(*at, solver.lr, solver.final_lr, solver.warmup_epochs, by)
        if bank.lr_schedule == "cosine":
            return lr, schedules.cosine(*at, bank.lr, 0.0, bank.warmup_epochs, by)
        return lr, schedules.constant(*at[:2], bank.lr, bank.warmup_epochs, by)

    def fill_bank(self) -> None:
        """Fill the bank with key embeddings of training images, as `bank.init` says, before the first step."""
        method, rows, row = self.method, self.recipe.bank.size, 0
        assert isinstance(method, MemoryBankMethod)
        train = self.recipe.bank.init == "train_and_fill"
        steps = math.ceil(rows / self.recipe.batch)
        with (
            progress(rows, "filling the bank", "keys", shown=self.main) as bar,
            closing(self.input.batches(0, steps, FILL_EPOCH)) as made,
        ):
            for number, batch in enumerate(made):
                self._note_bad(batch.bad)
                parts = self.input.micro_batches(batch)
                position = TrainingProgress(number, self.steps, self.steps_per_epoch)
                if train:
                    assert isinstance(method, AdCo)
                    keys = self._descend(method.filling(), parts, position).keys
                else:
                    keys = method.targets(parts, position)[method.pairs[0].key]
                filled = method.bank.fill(distributed.all_gather(keys), row)
                bar.update(filled - row)
                row = filled
                if self.stops.any_rank():
                    self.stops.stop()
        method.sync_key_encoder()

    def _between_steps(self) -> None:
        """After a step: probe and checkpoint if they are due, stop if that was asked for."""
        every, epoch, rest = self.recipe.checkpoint, *divmod(self.step, self.steps_per_epoch)
        last, stopping = self.step == self.steps, self.stops.any_rank()
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
        """Everything to resume from, with the whole bank; a collective call."""
        for reasons in distributed.all_gather_objects(self.bad.reasons):
            self._note_bad(reasons)
        method, optimizer, scaler = self.method.state_dict(), self.optimizer.state_dict(), self.scaler.state_dict()
        recipe, data, bad = asdict(self.recipe), self.index.fingerprint, dict(self.bad.reasons)
        return checkpoint.State(self.step, recipe, method, optimizer, scaler, data, bad, self.seconds, self.input.sizes)

    def _report(self, step: StepOutput, bar, rate: Throughput) -> None:
        """Every few steps log scalars, speed and metrics of the embedding; a collective call."""
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
            row |= rate.scalars((self.step - self.first_step) * self.recipe.batch)
        if every and self.step % every == 0:
            bank = self.method.bank
            rows, sharded = (bank.rows, bank.sharded) if bank is not None else (None, False)
            learns, contrast = step.bank_gradient is not None, self.recipe.contrast
            tau = contrast.tau_bank if learns else contrast.tau  # a queue has no temperature of its own
            row |= self.health(step.queries, step.keys, rows, tau, sharded)
        if row:
            self._write(row)

    def _write(self, row: dict[str, float]) -> None:
        self.log.write(self.step, row)
        for warning in self.watch(row):
            self.log.warn(self.step, warning)

    def _check_finite(self) -> None:
        """Raise Failure if a loss since the last call was not finite on any rank; a collective call."""
        if not self.losses:
            return
        losses, self.losses = distributed.all_gather(torch.stack(self.losses)[None]).mean(dim=0), []
        bad = losses.isfinite().logical_not().nonzero()
        if len(bad):
            self.writer.wait()  # a checkpoint that is being written counts as the last good one
            first = self.step - len(losses) + int(bad[0])
            state, files = self._state(), self.input.files_of(first)
            error = diverged(self.output, state, first, losses[bad[0] :].tolist(), files) if self.main else None
            raise distributed.all_gather_objects(error)[0]

    def _note_bad(self, reasons: dict[str, str]) -> None:
        if reasons.keys() - self.bad.reasons.keys():
            self.bad.update(reasons)
            if self.main:
                write_text(self.output / "bad_images.txt", self.bad.report())

    def _resume(self, force: bool) -> None:
        path = self._newest()
        if path is None:
            self._say(f"{self.output}: no intact checkpoint to resume from; starting from the beginning")
            return
        state, changes = checkpoint.load_for_resume(
            path, asdict(self.recipe), self.index.fingerprint, self.input.sizes, force
        )
        self._say("".join(f"going on although changed: {change}\n" for change in changes).rstrip())
        self.method.load_state_dict(state.method)
        load_state(self.optimizer, state.optimizer)
        self.scaler.load_state_dict(state.scaler)
        self.bad.reasons.update(state.bad_images)
        self.step, self.seconds = state.step, state.seconds
        self._say(f"resuming {path} at step {self.step} of {self.steps}")

    def _newest(self) -> Path | None:
        """The newest intact checkpoint that rank 0 sees; a collective call."""
        return distributed.all_gather_objects(checkpoint.newest_intact(self.output) if self.main else None)[0]

    def _say(self, text: str) -> None:
        if self.main and text:
            print(text, file=sys.stderr)

    def _refuse_to_overwrite(self) -> None:
        if any(self.output.glob("checkpoint_*.pth")):
            raise UserError(
                f"{self.output}: already holds a run; add --resume to go on, or choose another --output-dir"
            )

    def _finish(self) -> Path:
        path = self._newest()
        if path is None:
            raise Failure(f"{self.output}: no intact checkpoint although the run ended; something removed them")
        if self.main:
            data = {"name": self.index.root.parent.name, "images": len(self.index), "unreadable": len(self.bad.reasons)}
            write_record(self.output, self.recipe, path, data, self.seconds, self.commit)
        return path


def _probe(recipe: PretrainConfig, workers: int) -> KnnProbe | None:
    probe, root = recipe.probe, recipe.probe.root or recipe.data.root
    if not probe.every_epochs:
        return None
    return KnnProbe(root, probe.px, probe.k, probe.temperature, probe.max_images, workers)
