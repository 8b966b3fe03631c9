"""One engine for every protocol that trains: classifiers on a frozen backbone, or the whole network with few labels.

Ranks share a batch's images. On a frozen backbone they gather the features and train the same classifiers on all of
them, so that ranks, their number and BatchNorm do not move the result; a tuned network averages its gradients.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adco.data.images import BadImages
from adco.data.transforms.functional import from_uint8
from adco.models.resnet import stage_features
from adco.train.optimizer import load_state
from adco.utils import distributed
from adco.utils.device import upload
from adco.utils.errors import UserError
from adco.utils.files import atomic_write
from adco.utils.lars import LARS
from adco.utils.progress import progress
from adco.utils.threads import in_threads
from adco.weights.backbone import Backbone
from adco.weights.readers import load_torch
from transfer.classifier.dataset import Labelled, TrainingPictures, renormalised, requests, to_network
from transfer.classifier.protocols import ClassifierProtocol
from transfer.features.extract import pooled_map, weights_sha256
from transfer.features.reading import read_batches
from transfer.features.transforms import Transform

LARC_TRUST = 0.001
EVALUATION_BATCH = 64
LOSS_EVERY = 10  # steps; to read it is to wait for the GPU
Summary = Callable[[Tensor, Tensor], dict[str, Tensor]]  # logits (B, C), labels -> per-image values by name


@dataclass(frozen=True)
class TrainingSetup:
    """What a run needs beside the recipe. evaluations: how many epochs are followed by a look at val, the last always;
    bf16: the network (never the classifiers) under bfloat16 autocast; folder: where it saves and resumes."""

    device: torch.device
    workers: int
    crop_px: int
    resize_px: int
    folder: Path
    seed: int = 0
    evaluations: int = 10
    bf16: bool = False
    max_bad_share: float = 0.0


@dataclass
class Trained:
    """history: one dictionary per look at val; final: head -> per-image values on val; unmoved: the backbone's sha256
    when it is the same before and after, else the empty string; best: state dicts at the best look, for `keep_best`."""

    network: Network
    history: list[dict[str, float]] = field(default_factory=list)
    final: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    unmoved: str = ""
    bad: dict[str, str] = field(default_factory=dict)
    best: dict = field(default_factory=dict)


class Head(nn.Sequential):
    """BatchNorm (or none), flatten, and a classifier drawn from N(0, 0.01), bias 0."""

    def __init__(self, channels: int, width: int, classes: int, norm: str):
        norms = [] if norm == "none" else [nn.BatchNorm2d(channels, affine=norm == "affine")]
        linear = nn.Linear(width, classes)
        nn.init.normal_(linear.weight, std=0.01)
        nn.init.zeros_(linear.bias)
        super().__init__(*norms, nn.Flatten(), linear)


class Network(nn.Module):
    """A torchvision ResNet and one head per feature kind.

    precision: None, or the dtype that autocast computes the ResNet and its pooling in; heads are float32 in any case.
    """

    def __init__(self, backbone: Backbone, recipe: ClassifierProtocol, classes: int, crop_px: int, precision=None):
        super().__init__()
        self.backbone, self.recipe, self.precision = backbone.module(), recipe, precision
        with torch.inference_mode():
            maps = self.maps(torch.zeros(1, 3, crop_px, crop_px))
        heads = {kind: Head(m.shape[1], m[0].numel(), classes, recipe.norm) for kind, m in maps.items()}
        self.heads = nn.ModuleDict(heads)
        self.backbone.requires_grad_(recipe.backbone == "tuned")

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, S, S) -> the pooled map (B, C, h, w) of each head's kind, float32."""
        with torch.autocast(images.device.type, self.precision, enabled=self.precision is not None):
            stages = stage_features(self.backbone, images)
            maps = {kind: pooled_map(stages, kind) for kind in self.recipe.heads}
        return {kind: values.float() for kind, values in maps.items()}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, S, S) -> logits (B, classes) of each head."""
        return self.classify(self.maps(images))

    def classify(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        """Pooled maps -> logits of each head."""
        return {kind: head(maps[kind]) for kind, head in self.heads.items()}

    def training_mode(self) -> None:
        """Heads train; the backbone's BatchNorm only where the recipe says so."""
        self.train()
        self.backbone.train(self.recipe.backbone != "frozen")


def optimiser_for(network: Network, recipe: ClassifierProtocol) -> torch.optim.Optimizer:
    """SGD or LARC with momentum 0.9; norms are not decayed. Each group keeps its full rate under `base_lr`."""
    norms = [p for m in network.heads.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()]
    plain = {id(p) for p in norms}
    groups = [{"params": [p for p in network.heads.parameters() if id(p) not in plain], "base_lr": recipe.lr}]
    if norms:
        groups.append({"params": norms, "base_lr": recipe.lr, "weight_decay": 0.0})
    if recipe.backbone == "tuned":
        groups.append({"params": list(network.backbone.parameters()), "base_lr": recipe.lr_backbone})
    if recipe.optimizer == "larc":
        return LARS(groups, recipe.lr, 0.9, recipe.weight_decay, LARC_TRUST)
    return torch.optim.SGD(groups, recipe.lr, 0.9, weight_decay=recipe.weight_decay, nesterov=recipe.nesterov)


def loss_of(logits: dict[str, Tensor], labels: Tensor, loss: str) -> Tensor:
    """The sum over heads of the mean cross-entropy, or of the BCE summed over images and classes."""
    if loss == "bce":
        return sum(F.binary_cross_entropy_with_logits(x, labels.float(), reduction="sum") for x in logits.values())
    return sum(F.cross_entropy(x, labels) for x in logits.values())


def train(
    recipe: ClassifierProtocol,
    backbone: Backbone,
    data: Labelled,
    val: Labelled,
    plan: TrainingSetup,
    summary: Summary,
    keep_best: str = "",
) -> Trained:
    """Train from the start or from where `plan.folder` has got to, look at val on the way, prove the backbone still.

    keep_best: `HEAD/VALUE` whose mean on val decides which weights are remembered in `Trained.best`.
    Raises UserError for too many unreadable images and for a folder that holds another run.
    """
    torch.manual_seed(plan.seed)
    network = Network(backbone, recipe, len(data.classes), plan.crop_px, torch.bfloat16 if plan.bf16 else None)
    layout = torch.channels_last if plan.device.type == "cuda" else torch.preserve_format
    network = network.to(plan.device, memory_format=layout)
    optimiser, run = optimiser_for(network, recipe), Trained(network)
    before, state_file = weights_sha256(network.backbone), plan.folder / "training.pth"
    key = run_key(recipe, backbone, data, plan)
    first = resume(state_file, key, network, optimiser, run)
    per_epoch, total = recipe.steps(len(data))
    looks = looks_at(per_epoch, total, plan.evaluations)
    bad = BadImages(data.images.root, len(data), plan.max_bad_share, "--max-bad-share")
    bad.reasons.update(run.bad)
    wrapped = distributed.parallel(network) if recipe.backbone == "tuned" else network
    begin = partial(TrainingPictures(data, recipe, plan.crop_px, plan.seed).begin, device=plan.device)
    made = in_threads(begin, requests(plan.seed, len(data), recipe.batch, first, total), plan.workers)
    with progress(total, recipe.name, "steps", first) as bar, closing(made) as batches:
        for step, item in enumerate(batches, first):
            loss = one_step(wrapped, network, optimiser, item, recipe, plan, recipe.factor(step, per_epoch))
            bad.update(item[3])
            if (step + 1) % LOSS_EVERY == 0:
                bar.set_postfix_str(f"loss {loss.item():.3f}", refresh=False)
            bar.update()
            if step + 1 in looks:
                run.final = evaluate(network, val, plan, summary)
                means = {f"{h}/{n}": float(np.nanmean(v)) for h, values in run.final.items() for n, v in values.items()}
                run.history.append({"step": step + 1, "loss": loss.item(), **means})
                if keep_best and means[keep_best] >= max(row[keep_best] for row in run.history):
                    run.best = {k: v.detach().cpu().clone() for k, v in network.state_dict().items()}
            if (step + 1) % per_epoch == 0 or step + 1 == total:
                run.bad = dict(bad.reasons)
                save(state_file, key, step + 1, network, optimiser, run)
    if not run.final:  # the run was complete when it started
        run.final = evaluate(network, val, plan, summary)
    after = weights_sha256(network.backbone)
    if recipe.backbone == "frozen" and after != before:
        raise RuntimeError("the frozen backbone moved during training; its score means nothing")
    run.unmoved = before if after == before else ""
    return run


def looks_at(per_epoch: int, total: int, evaluations: int) -> set[int]:
    """After which steps val is looked at: at the end, and after evenly spread epochs."""
    epochs = -(-total // per_epoch)
    spread = np.linspace(1, epochs, min(evaluations, epochs)).round().astype(int)
    return {min(total, int(epoch) * per_epoch) for epoch in spread} | {total}


def one_step(
    wrapped, network: Network, optimiser, item, recipe: ClassifierProtocol, plan: TrainingSetup, rate: float
) -> Tensor:
    """One optimiser step on this rank's images; returns the loss, on the device."""
    request, crops, labels, _ = item
    images = to_network(crops, request, recipe, plan.crop_px, plan.seed, plan.device)
    labels = upload(labels, plan.device)
    for group in optimiser.param_groups:
        group["lr"] = rate * group["base_lr"]
    network.training_mode()
    if recipe.backbone == "tuned":
        logits = wrapped(images)
    else:
        with torch.no_grad():
            maps = network.maps(images)
        logits = network.classify({kind: distributed.all_gather(values) for kind, values in maps.items()})
        labels = distributed.all_gather(labels)
    loss = loss_of(logits, labels, recipe.loss)
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    optimiser.step()
    return loss.detach()


@torch.inference_mode()
def evaluate(network: Network, val: Labelled, plan: TrainingSetup, summary: Summary, fit: str = "") -> dict[str, dict]:
    """head -> name -> (N, ...) values of `summary` for val's images in their order, on every rank. Raises UserError.

    With several crops an image (fit `five`) their logits are averaged.
    """
    network.eval()
    transform = Transform(fit or network.recipe.fit, plan.crop_px, plan.resize_px)
    own = range(distributed.rank(), len(val), distributed.world_size())
    found: dict[str, dict[str, list]] = {kind: {} for kind in network.heads}
    for batch in read_batches(val.images, [transform], own, EVALUATION_BATCH, plan.workers, plan.device):
        for path, reason in batch.bad.items():
            raise UserError(f"{val.images.root / path}: cannot be read ({reason}); "
                            "every image that is tested on is needed: mend the file or take it out")  # fmt: skip
        images, crops = upload(batch.images[transform], plan.device), 1
        if images.ndim == 5:
            crops, images = images.shape[1], images.flatten(0, 1)
        labels = torch.from_numpy(val.labels[batch.positions])
        for kind, logits in network(renormalised(from_uint8(images), network.recipe)).items():
            logits = logits.unflatten(0, (-1, crops)).mean(dim=1).cpu()
            for name, values in summary(logits, labels).items():
                found[kind].setdefault(name, []).append(values.numpy())
    parts = distributed.all_gather_objects({k: {n: np.concatenate(v) for n, v in d.items()} for k, d in found.items()})
    whole = {}
    for kind, values in parts[0].items():
        whole[kind] = {name: np.empty((len(val), *v.shape[1:]), v.dtype) for name, v in values.items()}
        for rank, part in enumerate(parts):
            for name in values:
                whole[kind][name][rank :: len(parts)] = part[kind][name]
    return whole


def run_key(recipe: ClassifierProtocol, backbone: Backbone, data: Labelled, plan: TrainingSetup) -> str:
    """sha256 of all that a run's state depends on."""
    content = {**asdict(recipe), "about": "", "checkpoint": backbone.sha256, "data": data.images.fingerprint()}
    content |= {"labels": hashlib.sha256(np.ascontiguousarray(data.labels)).hexdigest(), "seed": plan.seed}
    content |= {"px": [plan.crop_px, plan.resize_px], "bf16": plan.bf16}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def save(path: Path, key: str, step: int, network: Network, optimiser, run: Trained) -> None:
    """Rank 0 writes the state, whole or not at all; a frozen backbone is not in it."""
    if distributed.rank():
        return
    part = network.heads if network.recipe.backbone == "frozen" else network
    content = {"key": key, "step": step, "model": part.state_dict(), "optimizer": optimiser.state_dict()}
    content |= {"history": run.history, "bad": run.bad, "best": run.best}
    with atomic_write(path) as file:
        torch.save(content, file)


def resume(path: Path, key: str, network: Network, optimiser, run: Trained) -> int:
    """Take over a saved state and return the step to go on at, 0 when there is none.

    Raises UserError for a damaged state and for another run's.
    """
    if not path.is_file():
        return 0
    try:
        content = load_torch(path)
    except Exception as error:  # torch raises half a dozen kinds for a broken file
        raise UserError(f"{path}: damaged ({type(error).__name__}); remove it to train from the start") from error
    if content.get("key") != key:
        raise UserError(f"{path}: the state of another run (protocol, checkpoint, data, size or seed); "
                        "choose another --output-dir, or remove it")  # fmt: skip
    (network.heads if network.recipe.backbone == "frozen" else network).load_state_dict(content["model"])
    load_state(optimiser, content["optimizer"])
    run.history, run.bad, run.best = content["history"], content["bad"], content["best"]
    return content["step"]


def with_weights(network: Network, state: dict) -> Network:
    """A copy of the network with these weights."""
    made = copy.deepcopy(network)
    made.load_state_dict(state)
    return made
