"""What a training run needs, what it has produced so far, and how that is saved and resumed."""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from adco.train.optimizer import load_state
from adco.utils import distributed
from adco.utils.errors import UserError
from adco.utils.files import atomic_write
from adco.weights.readers import load_torch
from transfer.classifier.dataset import Labelled
from transfer.classifier.network import Network
from transfer.classifier.protocols import ClassifierProtocol


@dataclass(frozen=True)
class TrainingSetup:
    """What a training run needs beside its protocol.

    Attributes:
        device: where the network is trained and evaluated.
        workers: threads that read images, 0 for none.
        crop_px: side of the network's input, in pixels.
        resize_px: size of the first resize of test images, in pixels.
        folder: the run saves its state there and resumes from it.
        seed: the seed of initial weights, order of images and augmentations.
        evaluations: how many epochs are followed by an evaluation on val; the last one always is.
        bf16: run the backbone, never the classifiers, under bfloat16 autocast.
        max_bad_share: the share of unreadable training images above which training fails.
    """

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
    """What a training run has produced.

    Attributes:
        network: the network with its current weights.
        history: for each evaluation the step, the loss, and the means on val as `HEAD/VALUE`.
        final: head -> name -> values (N, ...) of val's images at the last evaluation.
        unmoved: the backbone's sha256 when it is the same before and after training, else "".
        bad: the reasons of unreadable training images by path.
        best: the network's state dict at the best evaluation, where `train` was asked to keep it.
    """

    network: Network
    history: list[dict[str, float]] = field(default_factory=list)
    final: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    unmoved: str = ""
    bad: dict[str, str] = field(default_factory=dict)
    best: dict[str, Tensor] = field(default_factory=dict)


def run_key(protocol: ClassifierProtocol, checkpoint_sha256: str, data: Labelled, setup: TrainingSetup) -> str:
    """Compute the sha256 of everything that a run's state depends on."""
    content = {**asdict(protocol), "about": "", "checkpoint": checkpoint_sha256, "data": data.images.fingerprint()}
    content |= {"labels": hashlib.sha256(data.labels.tobytes()).hexdigest(), "seed": setup.seed}
    content |= {"px": [setup.crop_px, setup.resize_px], "bf16": setup.bf16}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def save(path: Path, key: str, step: int, optimizer: torch.optim.Optimizer, trained: Trained) -> None:
    """Write the state after `step` steps, atomically and on rank 0 alone. A frozen backbone is not part of it."""
    if distributed.rank():
        return
    content = {"key": key, "step": step, "model": _saved_part(trained.network).state_dict()}
    content |= {"optimizer": optimizer.state_dict(), "history": trained.history, "bad": trained.bad}
    with atomic_write(path) as file:
        torch.save(content | {"best": trained.best}, file)


def resume(path: Path, key: str, optimizer: torch.optim.Optimizer, trained: Trained) -> int:
    """Load a saved state into the optimizer and into `trained`, its network included.

    Returns:
        How many steps are done, 0 when nothing was saved.

    Raises:
        UserError: the file is damaged, or its state belongs to another run (another `key`).
    """
    if not path.is_file():
        return 0
    try:
        content = load_torch(path)
    except Exception as error:  # torch raises many types for a broken file
        raise UserError(f"{path}: damaged ({type(error).__name__}); remove it to train from the start") from error
    if not isinstance(content, dict) or content.get("key") != key:
        raise UserError(f"{path}: the state of another run (protocol, checkpoint, data, size or seed); "
                        "choose another --output-dir, or remove it")  # fmt: skip
    _saved_part(trained.network).load_state_dict(content["model"])
    load_state(optimizer, content["optimizer"])
    trained.history, trained.bad, trained.best = content["history"], content["bad"], content["best"]
    return content["step"]


def with_weights(network: Network, state: dict[str, Tensor]) -> Network:
    """Copy the network and load a state dict into the copy."""
    made = copy.deepcopy(network)
    made.load_state_dict(state)
    return made


def _saved_part(network: Network) -> torch.nn.Module:
    """A frozen backbone comes from the checkpoint; only the heads are saved beside it."""
    return network.heads if network.protocol.backbone == "frozen" else network
