"""The classifier protocols as data: all that `engine.py` needs to train one, under the name it is reported by."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from adco.data.transforms.functional import MEAN, STD
from adco.utils.errors import UserError

STAGES = ("res2", "res3", "res4", "res5")


@dataclass(frozen=True)
class ClassifierProtocol:
    """One published way to train a classifier on a backbone.

    Attributes:
        name: as records carry it.
        about: two lines that `--protocol list` prints.
        lr: learning rate of the heads, at `batch` images a step over all ranks.
        epochs: length of the training; 0 where `iterations` is what was published.
        batch: images a step over all ranks.
        iterations: steps of the training, 0 where `epochs` determines them.
        schedule: `step` (x gamma at each of `milestones`) or `cosine` (to `final_lr` over `period_epochs`; after its
            period it rises again, as torch's CosineAnnealingLR does).
        unit: `epoch` or `iteration`: what the schedule advances by, and the unit of `milestones`.
        milestones: where a `step` schedule multiplies the rate.
        gamma: the factor of a `step` schedule.
        final_lr: where a `cosine` schedule ends.
        period_epochs: half a period of a `cosine` schedule, in epochs; 0 for `epochs`.
        first_epoch: the schedule's number of the first epoch.
        weight_decay: of weights and biases, but not of norms.
        nesterov: whether SGD's momentum is Nesterov's.
        optimizer: `sgd`, or `larc` (each tensor's step is scaled to 0.001 |w| / |g|); momentum 0.9.
        heads: the features that are classified, `gap` or VISSL-pooled stages. Each has its own classifier; all are
            trained at once.
        norm: the BatchNorm before a classifier: `none`, `plain` (without scale and shift) or `affine`.
        backbone: `frozen` (eval mode, checked to be unchanged), `statistics` (frozen weights, BatchNorm in training
            mode) or `tuned` (trained with `lr_backbone`).
        lr_backbone: learning rate of a tuned backbone.
        loss: `softmax`, or `bce` summed over images and classes.
        view: `crop` (RandomResizedCrop 0.08-1 and flip) or `voc` (that of the released AdCo code).
        jitter: strengths of brightness, contrast, saturation and hue in a `crop` view.
        lighting: whether a `crop` view has AlexNet's PCA colour noise.
        fit: the test transform (transfer/features/transforms.py).
        mean: of each channel, for images in [0, 1].
        std: of each channel, for images in [0, 1].
    """

    name: str
    about: str
    lr: float
    epochs: int
    batch: int = 256
    iterations: int = 0
    schedule: str = "cosine"
    unit: str = "epoch"
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    final_lr: float = 0.0
    period_epochs: int = 0
    first_epoch: int = 0
    weight_decay: float = 0.0
    nesterov: bool = False
    optimizer: str = "sgd"
    heads: tuple[str, ...] = ("gap",)
    norm: str = "none"
    backbone: str = "frozen"
    lr_backbone: float = 0.0
    loss: str = "softmax"
    view: str = "crop"
    jitter: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)
    lighting: bool = False
    fit: str = "center"
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD

    def factor(self, step: int, steps_per_epoch: int) -> float:
        """The factor of all learning rates at a step, counted from 0."""
        epoch = step // steps_per_epoch + self.first_epoch
        if self.schedule == "step":
            place = step if self.unit == "iteration" else epoch
            return self.gamma ** sum(place >= milestone for milestone in self.milestones)
        place = step / steps_per_epoch if self.unit == "iteration" else epoch
        low = self.final_lr / self.lr
        return low + 0.5 * (1 - low) * (1 + math.cos(math.pi * place / (self.period_epochs or self.epochs)))

    def steps(self, images: int) -> tuple[int, int]:
        """Steps per epoch (the last, smaller batch is one), and steps in all."""
        per_epoch = -(-images // self.batch)
        return per_epoch, self.iterations or self.epochs * per_epoch

    def shortened(self, epochs: int | None, batch: int | None) -> ClassifierProtocol:
        """Change the length or the batch; the new values become part of the name.

        Args:
            epochs: the new length; milestones and period change in proportion. None keeps it.
            batch: the new batch; learning rates change in proportion. None keeps it.

        Raises:
            UserError: the protocol counts iterations, not epochs.
        """
        made = self
        if epochs and epochs != self.epochs:
            if self.iterations:
                raise UserError(f"--epochs: {self.name} counts iterations; its length cannot be changed")
            share = epochs / self.epochs
            marks = tuple(max(1, round(share * mark)) for mark in self.milestones)
            period = max(1, round(share * self.period_epochs)) if self.period_epochs else 0
            made = replace(made, name=f"{self.name}-{epochs}ep", epochs=epochs, milestones=marks, period_epochs=period)
        if batch and batch != self.batch:
            scale = batch / self.batch
            rates = {"lr": made.lr * scale, "lr_backbone": made.lr_backbone * scale, "final_lr": made.final_lr * scale}
            made = replace(made, name=f"{made.name}-batch{batch}", batch=batch, **rates)
        return made


IMAGENET = {
    "adco": ClassifierProtocol(
        "imagenet-linear/adco",
        "AdCo's released command: SGD 10, cosine to 0.01 by epoch, 100 epochs, batch 256, no weight decay;\n"
        "RandomResizedCrop 224 and flip; test resize 256, centre crop 224.",
        lr=10.0,
        epochs=100,
        final_lr=0.01,
    ),
    "moco": ClassifierProtocol(
        "imagenet-linear/moco",
        "MoCo: SGD 30, x0.1 at epochs 60 and 80 of 100, batch 256, no weight decay;\n"
        "RandomResizedCrop 224 and flip; test resize 256, centre crop 224.",
        lr=30.0,
        epochs=100,
        schedule="step",
        milestones=(60, 80),
    ),
    "simsiam": ClassifierProtocol(
        "imagenet-linear/simsiam",
        "SimSiam: LARC, 0.1 x batch / 256 = 1.6, cosine by epoch, 90 epochs, batch 4096, no weight decay;\n"
        "RandomResizedCrop 224 and flip; test resize 256, centre crop 224.",
        lr=1.6,
        epochs=90,
        batch=4096,
        optimizer="larc",
    ),
    "swav": ClassifierProtocol(
        "imagenet-linear/swav",
        "SwAV: SGD 0.3, cosine by epoch, 100 epochs, batch 256, weight decay 1e-6; std .228 .224 .225;\n"
        "RandomResizedCrop 224 and flip; test resize 256, centre crop 224.",
        lr=0.3,
        epochs=100,
        weight_decay=1e-6,
        std=(0.228, 0.224, 0.225),
    ),
    "caco": ClassifierProtocol(
        "imagenet-linear/caco",
        "CaCo's released command: LARC, 0.025 x batch / 256 = 0.4, cosine by epoch, 100 epochs, batch 4096;\n"
        "no weight decay; RandomResizedCrop 224 and flip; test resize 256, centre crop 224.",
        lr=0.4,
        epochs=100,
        batch=4096,
        optimizer="larc",
    ),
    "semi10": ClassifierProtocol(
        "imagenet-semi/swav-10pct",
        "10% of the labels, the whole network tuned as SwAV does: SGD 0.01, classifier 0.2, x0.2 at 12 and 16\n"
        "of 20 epochs, batch 256, no weight decay; RandomResizedCrop 224 and flip; test resize 256, centre crop 224.",
        lr=0.2,
        lr_backbone=0.01,
        epochs=20,
        schedule="step",
        milestones=(12, 16),
        gamma=0.2,
        backbone="tuned",
        std=(0.228, 0.224, 0.225),
    ),
}
IMAGENET["semi1"] = replace(
    IMAGENET["semi10"],
    name="imagenet-semi/swav-1pct",
    about=IMAGENET["semi10"].about.replace("10%", "1%").replace("SGD 0.01, classifier 0.2", "SGD 0.02, classifier 5"),
    lr=5.0,
    lr_backbone=0.02,
)
SEMI_PERCENT = {"semi1": 1.0, "semi10": 10.0}

PLACES205 = {
    "vissl": ClassifierProtocol(
        "places205-linear/vissl",
        "VISSL: BatchNorm and a classifier on each of res2 ... res5, pooled to about 9,000 numbers; SGD 0.01,\n"
        "nesterov, /10 at 4, 8, 12 of 14 epochs, batch 256, weight decay 5e-4; test resize 256, centre crop 224.",
        lr=0.01,
        epochs=14,
        schedule="step",
        milestones=(4, 8, 12),
        weight_decay=5e-4,
        nesterov=True,
        heads=STAGES,
        norm="affine",
    ),
    "fair": ClassifierProtocol(
        "places205-linear/fair",
        "FAIR's benchmark: as vissl, BatchNorm without scale and shift; 140,000 iterations, /10 every 40,000, weight\n"
        "decay 1e-4; colour jitter 0.4 and PCA lighting in training.",
        lr=0.01,
        epochs=0,
        iterations=140_000,
        schedule="step",
        unit="iteration",
        milestones=(40_000, 80_000, 120_000),
        weight_decay=1e-4,
        nesterov=True,
        heads=STAGES,
        norm="plain",
        jitter=(0.4, 0.4, 0.4, 0.0),
        lighting=True,
    ),
    "openselfsup": ClassifierProtocol(
        "places205-linear/openselfsup",
        "OpenSelfSup: as vissl, BatchNorm without scale and shift; SGD 0.01, /10 at 7, 14, 21 of 28 epochs,\n"
        "batch 256, weight decay 1e-4.",
        lr=0.01,
        epochs=28,
        schedule="step",
        milestones=(7, 14, 21),
        weight_decay=1e-4,
        nesterov=True,
        heads=STAGES,
        norm="plain",
    ),
    "adco": ClassifierProtocol(
        "places205-linear/adco",
        "AdCo's released command: average pool, SGD 5, cosine of period 12 epochs for 100 epochs (it oscillates),\n"
        "batch 256, no weight decay; test squash to 256x256, centre crop 224.",
        lr=5.0,
        epochs=100,
        unit="iteration",
        period_epochs=12,
        fit="square",
    ),
}

VOC_ADCO = ClassifierProtocol(
    "voc07-linear/adco",
    "The released AdCo code: classifier on the average pool, backbone's BatchNorm in training mode; BCE, SGD 0.05,\n"
    "cosine of period 12 for 100 epochs, batch 16; train 2501, best epoch on val, test with five crops.",
    lr=0.05,
    epochs=100,
    batch=16,
    period_epochs=12,
    first_epoch=1,  # its scheduler steps before the epoch
    loss="bce",
    backbone="statistics",
    view="voc",
    mean=(0.457342265910642, 0.4387686270106377, 0.4073427106250871),
    std=(0.26753769276329037, 0.2638145880487105, 0.2776826934044154),
)
