"""The training and evaluation of every classifier protocol: on a frozen backbone, or of the whole network.

The ranks share each batch. On a frozen backbone they gather the features and train the same classifiers on all of
them, so that the result does not depend on the number of ranks. A tuned network averages its gradients over the ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from adco.data.eval_loader import read_batches
from adco.data.images import BadImages
from adco.data.transforms.functional import from_uint8
from adco.utils import distributed
from adco.utils.device import upload
from adco.utils.errors import UserError
from adco.utils.progress import progress
from adco.utils.threads import in_threads
from adco.weights.backbone import Backbone
from transfer.classifier.dataset import (
    Labelled,
    TrainingBatch,
    TrainingPictures,
    renormalised,
    requests,
    to_network,
)
from transfer.classifier.network import Network, classification_loss, make_optimizer
from transfer.classifier.protocols import ClassifierProtocol
from transfer.classifier.state import Trained, TrainingSetup, resume, run_key, save
from transfer.features.extract import weights_sha256
from transfer.features.transforms import Transform

EVALUATION_BATCH = 64
LOSS_EVERY = 10  # steps between two readings of the loss; each one waits for the GPU
Summary = Callable[[Tensor, Tensor], dict[str, Tensor]]  # logits (B, C), labels -> per-image values (B, ...) by name


def train(
    protocol: ClassifierProtocol,
    backbone: Backbone,
    data: Labelled,
    val: Labelled,
    setup: TrainingSetup,
    summary: Summary,
    keep_best: str = "",
) -> Trained:
    """Train from the start, or from the state in `setup.folder`, and evaluate on val.

    Args:
        protocol: how to train.
        backbone: the pretrained network.
        data: the training images.
        val: the images of the evaluations.
        setup: device, image size, seed, and where the state is saved.
        summary: what an evaluation computes from logits (B, C) and labels.
        keep_best: `HEAD/VALUE`, whose mean on val decides which weights are kept in `Trained.best`; none when empty.

    Returns:
        The trained network and its evaluations.

    Raises:
        UserError: too many images are unreadable, or the folder holds the state of another run.
        RuntimeError: the weights or statistics of a frozen backbone have changed.
    """
    torch.manual_seed(setup.seed)
    network = Network(backbone, protocol, len(data.classes), setup.crop_px, torch.bfloat16 if setup.bf16 else None)
    layout = torch.channels_last if setup.device.type == "cuda" else torch.preserve_format
    network.to(setup.device, memory_format=layout)  # pyright: ignore[reportCallIssue]  (torch has no stub for it)
    before = weights_sha256(network.backbone)
    trained = Trained(network)
    _train_steps(trained, backbone.sha256, data, val, setup, summary, keep_best)
    if not trained.final:  # the run was complete when it started
        trained.final = evaluate(network, val, setup, summary)
    after = weights_sha256(network.backbone)
    if protocol.backbone == "frozen" and after != before:
        raise RuntimeError("the frozen backbone changed during training; its score is not valid")
    trained.unmoved = before if after == before else ""
    return trained


def _train_steps(
    trained: Trained,
    checkpoint_sha256: str,
    data: Labelled,
    val: Labelled,
    setup: TrainingSetup,
    summary: Summary,
    keep_best: str,
) -> None:
    """Run the steps that are left, with their evaluations, and save the state after each epoch."""
    network, protocol = trained.network, trained.network.protocol
    optimizer, state = make_optimizer(network), setup.folder / "training.pth"
    key = run_key(protocol, checkpoint_sha256, data, setup)
    first = resume(state, key, optimizer, trained)
    per_epoch, total = protocol.steps(len(data))
    evaluated = evaluation_steps(per_epoch, total, setup.evaluations)
    bad = BadImages(data.images.root, len(data), setup.max_bad_share, "--max-bad-share")
    bad.reasons.update(trained.bad)
    model = distributed.parallel(network) if protocol.backbone == "tuned" else network
    batches = _batches(data, protocol, setup, first, total)
    with progress(total, protocol.name, "steps", first) as bar, closing(batches):
        for step, batch in enumerate(batches, first + 1):
            loss = one_step(model, network, optimizer, batch, setup, protocol.factor(step - 1, per_epoch))
            bad.update(batch.bad)
            if step % LOSS_EVERY == 0:
                bar.set_postfix_str(f"loss {loss.item():.3f}", refresh=False)
            bar.update()
            if step in evaluated:
                trained.final = evaluate(network, val, setup, summary)
                _add_evaluation(trained, step, loss.item(), keep_best)
            if step % per_epoch == 0 or step == total:
                trained.bad = dict(bad.reasons)
                save(state, key, step, optimizer, trained)


def _batches(
    data: Labelled, protocol: ClassifierProtocol, setup: TrainingSetup, first: int, total: int
) -> Generator[TrainingBatch, None, None]:
    """This rank's batches of the steps [first, total), read by threads."""
    begin = partial(TrainingPictures(data, protocol, setup.crop_px, setup.seed).begin, device=setup.device)
    return in_threads(begin, requests(setup.seed, len(data), protocol.batch, first, total), setup.workers)


def _add_evaluation(trained: Trained, step: int, loss: float, keep_best: str) -> None:
    """Append the last evaluation to the history, and copy the weights when it is the best one."""
    means = {f"{head}/{n}": float(np.nanmean(v)) for head, values in trained.final.items() for n, v in values.items()}
    trained.history.append({"step": step, "loss": loss, **means})
    if keep_best and means[keep_best] >= max(row[keep_best] for row in trained.history):
        trained.best = {name: t.detach().cpu().clone() for name, t in trained.network.state_dict().items()}


def evaluation_steps(per_epoch: int, total: int, evaluations: int) -> set[int]:
    """The numbers of steps after which val is evaluated: the last step, and the ends of evenly spread epochs."""
    epochs = -(-total // per_epoch)
    spread = np.linspace(1, epochs, min(evaluations, epochs)).round().astype(int)
    return {min(total, int(epoch) * per_epoch) for epoch in spread} | {total}


def one_step(
    model: nn.Module,
    network: Network,
    optimizer: torch.optim.Optimizer,
    batch: TrainingBatch,
    setup: TrainingSetup,
    lr_factor: float,
) -> Tensor:
    """Take one optimizer step on this rank's share of a batch.

    Args:
        model: the network, wrapped where its gradients are averaged over the ranks.
        network: the network itself.
        optimizer: of the heads, and of a tuned backbone.
        batch: this rank's crops (B, 3, S, S) and labels, on the CPU.
        setup: seed, device and image size.
        lr_factor: the schedule's factor of every group's `base_lr`.

    Returns:
        The loss before the step, a scalar on the device, without gradient.
    """
    request, crops, labels, _ = batch
    images = to_network(crops, request, network.protocol, setup.crop_px, setup.seed, setup.device)
    labels = upload(labels, setup.device)
    for group in optimizer.param_groups:
        group["lr"] = lr_factor * group["base_lr"]
    network.training_mode()
    if network.protocol.backbone == "tuned":
        logits = model(images)
    else:  # every rank trains the same heads on the features of all ranks
        with torch.no_grad():
            maps = {kind: distributed.all_gather(values) for kind, values in network.maps(images).items()}
        logits, labels = network.classify(maps), distributed.all_gather(labels)
    loss = classification_loss(logits, labels, network.protocol.loss)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.detach()


@torch.inference_mode()
def evaluate(
    network: Network, val: Labelled, setup: TrainingSetup, summary: Summary, fit: str = ""
) -> dict[str, dict[str, np.ndarray]]:
    """Classify every image of val; the ranks share the images and all get the whole result.

    Args:
        network: is put into eval mode.
        val: N images.
        setup: device, threads and image size.
        summary: computes values (B, ...) from logits (B, C) and labels.
        fit: the test transform, the protocol's when empty. With `five` the logits of an image's crops are averaged.

    Returns:
        head -> name -> (N, ...) values in the order of the images.

    Raises:
        UserError: an image cannot be read.
    """
    network.eval()
    transform = Transform(fit or network.protocol.fit, setup.crop_px, setup.resize_px)
    shard = range(distributed.rank(), len(val), distributed.world_size())
    parts: dict[str, dict[str, list[np.ndarray]]] = {kind: {} for kind in network.heads}
    for batch in read_batches(val.images, [transform], shard, EVALUATION_BATCH, setup.workers, setup.device):
        for path, reason in batch.bad.items():
            raise UserError(f"{val.images.root / path}: cannot be read ({reason}); "
                            "the evaluation needs every image: repair the file or remove it")  # fmt: skip
        images, crops = upload(batch.images[transform], setup.device), 1
        if images.ndim == 5:  # (B, crops, 3, S, S)
            crops, images = images.shape[1], images.flatten(0, 1)
        labels = torch.from_numpy(val.labels[batch.positions])
        for kind, logits in network(renormalised(from_uint8(images), network.protocol)).items():
            logits = logits.unflatten(0, (-1, crops)).mean(dim=1).cpu()  # mean over the crops: (B, C)
            for name, values in summary(logits, labels).items():
                parts[kind].setdefault(name, []).append(values.numpy())
    own = {kind: {name: np.concatenate(v) for name, v in values.items()} for kind, values in parts.items()}
    return _interleaved(distributed.all_gather_objects(own), len(val))


def _interleaved(parts: list[dict[str, dict[str, np.ndarray]]], count: int) -> dict[str, dict[str, np.ndarray]]:
    """Join the ranks' values: image i was evaluated by rank i modulo the number of ranks."""
    joined: dict[str, dict[str, np.ndarray]] = {}
    for kind, values in parts[0].items():
        joined[kind] = {name: np.empty((count, *v.shape[1:]), v.dtype) for name, v in values.items()}
        for rank, part in enumerate(parts):
            for name in values:
                joined[kind][name][rank :: len(parts)] = part[kind][name]
    return joined
