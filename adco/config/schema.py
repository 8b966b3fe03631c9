"""The configuration of a pretraining run as frozen dataclasses, one for each section of a recipe."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

import yaml


@dataclass(frozen=True)
class ViewConfig:
    """One random view of an image.

    Attributes:
        px: Side of the square crop in pixels.
        scale: Lowest and highest share of the image's area that a crop covers, in (0, 1].
        jitter: Strengths of brightness, contrast and saturation in [0, 1], and of hue in [0, 0.5].
        jitter_p, gray_p, blur_p, solarize_p, flip_p: Probability of each transform, in [0, 1].
        blur_sigma_px: Lowest and highest standard deviation of the Gaussian blur, in pixels.
    """

    px: int = 224
    scale: list[float] = field(default_factory=lambda: [0.2, 1.0])
    jitter: list[float] = field(default_factory=lambda: [0.4, 0.4, 0.4, 0.1])
    jitter_p: float = 0.8
    gray_p: float = 0.2
    blur_p: float = 0.5
    blur_sigma_px: list[float] = field(default_factory=lambda: [0.1, 2.0])
    solarize_p: float = 0.0
    flip_p: float = 0.5


@dataclass(frozen=True)
class DataConfig:
    """Where the images are, and how they are decoded. Labels are not used for training.

    Attributes:
        root: `root/train/CLASS/*.jpg` or any folder of images; `PATH/{000..146}.tar` or a URL of tar shards;
            `cifar10:FOLDER`, `cifar100:FOLDER`, `imagenette:FOLDER`.
        workers: Threads that read images for a rank. `auto`: all of its cores but one, at most 8 for training on a CPU.
        backend: `native`: one fused pass for each view on the CPU; `device`: colour and blur on the training device;
            `reference`: torchvision's transforms; `nvjpeg`: everything on the GPU; `auto`: by device and workers.
        in_memory: Decode every image once and keep it, for small images.
        max_bad_share: Largest share of images that may be unreadable, in [0, 1).
    """

    root: str = ""
    workers: int | str = "auto"
    backend: str = "auto"
    in_memory: bool = False
    max_bad_share: float = 0.01


@dataclass(frozen=True)
class EncoderConfig:
    """A torchvision ResNet with an MLP head. Momentum methods add a key encoder, its moving average.

    Attributes:
        arch: Name of the torchvision model.
        stem: `imagenet`: torchvision's 7x7 convolution and max pooling; `small`: for small images.
        dim: Dimension of the embedding.
        head_layers: Linear layers of the head, with ReLU between them.
        head_width: Width of the head's hidden layers; 0: the width of the backbone's features.
        head_norm: BatchNorm after each hidden layer.
        head_out_norm: BatchNorm without affine parameters after the last layer.
        head_out_bias: Whether the last layer has a bias.
        predictor_width: Hidden width of BYOL's and SimSiam's predictor.
        key_momentum: Momentum of the moving average, in [0, 1].
        key_momentum_to_one: Raise the momentum to 1 along half a cosine (BYOL, CaCo).
        batch_norm: Statistics over the images of a rank (`local`) or of all ranks (`sync`).
        key_batch_norm: The same for the key encoder, or `shuffle`: local, over images shuffled between ranks (MoCo).
        norm_splits: `local` and `shuffle` statistics are over 1 / norm_splits of a rank's images.
        join_views: Views of one size go through the network as one batch (SimCLR, SwAV), otherwise one after another.
    """

    arch: str = "resnet50"
    stem: str = "imagenet"
    dim: int = 128
    head_layers: int = 2
    head_width: int = 0
    head_norm: bool = False
    head_out_norm: bool = False
    head_out_bias: bool = True
    predictor_width: int = 0
    key_momentum: float = 0.999
    key_momentum_to_one: bool = False
    batch_norm: str = "local"
    key_batch_norm: str = "shuffle"
    norm_splits: int = 1
    join_views: bool = False


@dataclass(frozen=True)
class LossConfig:
    """The contrastive loss.

    Attributes:
        tau: Temperature of the encoder's loss.
        tau_bank: Temperature of the bank's loss.
        symmetric: The first view is a key as well, not only the last one.
        in_batch_negatives: The other keys of all ranks are negatives too (released AdCo), or not (paper).
    """

    tau: float = 0.12
    tau_bank: float = 0.02
    symmetric: bool = False
    in_batch_negatives: bool = True


@dataclass(frozen=True)
class BankConfig:
    """The memory bank of negatives. AdCo's and CaCo's rows are trained by SGD; MoCo's and MoCHi's are a queue of keys.

    Attributes:
        size: Rows of the bank.
        objective: What AdCo's adversaries maximize: the `loss` (eqs. 4-6) or `J` (section 4.1).
        lr: Learning rate of the bank.
        lr_schedule: `constant` (released) or `cosine` to 0 (paper), stepped like the encoder's, after the warm-up.
        warmup_epochs: Epochs of linear warm-up.
        sgd_momentum, weight_decay: Of the bank's SGD.
        renormalize: Scale the rows to unit length after each step (paper), or let their lengths change (released code).
        init: `encode`: fill with embeddings of keys (paper); `train_and_fill`: also train the encoder meanwhile
            (released); `random`: random unit rows (MoCo, CaCo).
        placement: `sharded`: each rank keeps size / ranks rows; `replicated`: each keeps all; `auto`: sharded if the
            number of ranks divides the size.
    """

    size: int = 65536
    objective: str = "loss"
    lr: float = 3.0
    lr_schedule: str = "constant"
    warmup_epochs: float = 0.0
    sgd_momentum: float = 0.9
    weight_decay: float = 1e-4
    renormalize: bool = False
    init: str = "train_and_fill"
    placement: str = "auto"


@dataclass(frozen=True)
class MoCHiConfig:
    """MoCHi's synthetic negatives.

    Attributes:
        hard: Rows of the bank most similar to the query, from which negatives are mixed.
        pairs: Mixtures of two of them for each query.
        with_query: Mixtures of one of them with the query, for each query.
        from_epoch: First epoch that mixes.
    """

    hard: int = 1024
    pairs: int = 512
    with_query: int = 256
    from_epoch: int = 10


@dataclass(frozen=True)
class SwAVConfig:
    """SwAV's online clustering.

    Attributes:
        prototypes: Number of prototypes.
        epsilon: Regularization of the Sinkhorn-Knopp algorithm.
        rounds: Its iterations.
        frozen_epochs: Epochs at the start in which the prototypes are not trained.
        queue: Embeddings of earlier batches that are kept for the assignment; 0: none.
        queue_from_epoch: First epoch whose embeddings enter the queue, which is used as soon as it is full.
    """

    prototypes: int = 3000
    epsilon: float = 0.05
    rounds: int = 3
    frozen_epochs: float = 1.0
    queue: int = 0
    queue_from_epoch: int = 15


@dataclass(frozen=True)
class OptimizerConfig:
    """The encoder's optimizer, with a cosine schedule after a linear warm-up.

    Attributes:
        kind: `sgd` or `lars`.
        lr, final_lr: First and last learning rate of the cosine.
        warmup_epochs: Epochs of linear warm-up from 0 to `lr`.
        schedule_by: The learning rate changes every `epoch` or every `step`.
        sgd_momentum: Momentum of SGD and LARS.
        weight_decay: Coefficient of weight decay.
        weight_decay_all: Decay biases and norms too, as the released code with SGD. LARS never does.
        trust: LARS's coefficient.
        constant_predictor_lr: SimSiam's predictor keeps `lr`.
    """

    kind: str = "sgd"
    lr: float = 0.03
    final_lr: float = 0.0006
    warmup_epochs: float = 0.0
    schedule_by: str = "epoch"
    sgd_momentum: float = 0.9
    weight_decay: float = 1e-4
    weight_decay_all: bool = True
    trust: float = 0.001
    constant_predictor_lr: bool = False


@dataclass(frozen=True)
class ComputeConfig:
    """Precision and speed. The loss and the bank are always float32.

    Attributes:
        precision: Of the encoders: `float32`, `bf16` or `fp16` (autocast), or on a GPU `tf32`: float32 whose
            convolutions round their inputs to TF32, which is torch's default and which `float32` here never does.
        accumulate: Micro-batches of a step, one backward pass each. The loss is still that of the whole batch.
        channels_last, fused_optimizer, compile: docs/speed.md has the measured gain of each.
        cuda_graphs: Compile, and replay the backbone's kernels as CUDA graphs, one for each shape of a batch.
    """

    precision: str = "float32"
    accumulate: int = 1
    channels_last: bool = True
    fused_optimizer: bool = True
    compile: bool = False
    cuda_graphs: bool = False


@dataclass(frozen=True)
class MonitorConfig:
    """Metrics of embeddings and bank every `every_steps` steps (0: never); `wandb`: also log to Weights & Biases."""

    every_steps: int = 50
    wandb: bool = False


@dataclass(frozen=True)
class ProbeConfig:
    """Weighted kNN on frozen features during training.

    Attributes:
        every_epochs: Epochs between two evaluations; 0: none.
        root: Folder with `train` (the neighbours) and `val` (the queries); empty: data.root.
        px: Side of the images in pixels.
        k, temperature: Number of neighbours, and temperature of their weights.
        max_images: Largest number of images of each split.
    """

    every_epochs: int = 0
    root: str = ""
    px: int = 224
    k: int = 20
    temperature: float = 0.07
    max_images: int = 50_000


@dataclass(frozen=True)
class CheckpointConfig:
    """Checkpoints every `every_epochs` epochs and at the end, and every `every_steps` steps (0: never). The last `keep`
    stay on disk."""

    every_epochs: int = 1
    every_steps: int = 0
    keep: int = 2


@dataclass(frozen=True)
class PretrainConfig:
    """One pretraining run.

    Attributes:
        batch: Images of a step over all ranks.
        seed: Every random choice is a function of it, the epoch, the sample and the view.
        device: `auto`, `cpu`, `cuda` or `cuda:INDEX`.
        views: At least two; the last one is the key.
        mix: Of MoCHi only.
        swap: Of SwAV only.
    """

    method: str = "adco"
    epochs: int = 200
    batch: int = 256
    seed: int = 0
    device: str = "auto"
    data: DataConfig = field(default_factory=DataConfig)
    views: list[ViewConfig] = field(default_factory=lambda: [ViewConfig(), ViewConfig()])
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    contrast: LossConfig = field(default_factory=LossConfig)
    bank: BankConfig = field(default_factory=BankConfig)
    mix: MoCHiConfig = field(default_factory=MoCHiConfig)
    swap: SwAVConfig = field(default_factory=SwAVConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    def to_yaml(self) -> str:
        """The resolved recipe as YAML, with every key."""
        return yaml.safe_dump(asdict(self), sort_keys=False)
