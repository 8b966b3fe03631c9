"""The recipe: what a pretraining run is, as frozen typed dataclasses. adco/config/loading.py reads them."""

from __future__ import annotations

import typing
from dataclasses import asdict, dataclass, field

import yaml


@dataclass(frozen=True)
class ViewConfig:
    """One random view of an image. Probabilities in [0, 1]; jitter is (brightness, contrast, saturation, hue)."""

    px: int = 224
    scale: typing.List[float] = field(default_factory=lambda: [0.2, 1.0])  # noqa: UP006  (OmegaConf reads typing's names)
    jitter: typing.List[float] = field(default_factory=lambda: [0.4, 0.4, 0.4, 0.1])  # noqa: UP006
    jitter_p: float = 0.8
    gray_p: float = 0.2
    blur_p: float = 0.5
    blur_sigma_px: typing.List[float] = field(default_factory=lambda: [0.1, 2.0])  # noqa: UP006
    solarize_p: float = 0.0
    flip_p: float = 0.5


@dataclass(frozen=True)
class DataConfig:
    """Where the images are (labels are not used to train), and who decodes them.

    root: `root/train/CLASS/*.jpg` or any folder of images; `PATH/{000..146}.tar` or a URL of tar shards; `sample`;
        `cifar10:FOLDER`, `cifar100:FOLDER`, `imagenette:FOLDER`
    backend: `native` one fused pass a view on the CPU, `device` colour and blur on the training device, `reference`
        torchvision's transforms, `nvjpeg` everything on the GPU; `auto` chooses by device and workers
    in_memory: decode every image once and keep it (small images)
    workers: threads that read images for a rank; `auto`: the rank's cores but one, at most 8 where a CPU trains
    """

    root: str = ""
    workers: typing.Union[int, str] = "auto"  # noqa: UP007
    backend: str = "auto"
    in_memory: bool = False
    max_bad_share: float = 0.01


@dataclass(frozen=True)
class EncoderConfig:
    """A torchvision ResNet with an MLP head; where the method has one, a key encoder follows by moving average.

    head_layers, head_width (0: the backbone's), dim: Linear, ReLU ... Linear to `dim`; head_norm: BatchNorm after each
        hidden layer; head_out_norm: BatchNorm without affine after the last; head_out_bias: the last layer's bias
    predictor_width: hidden width of BYOL's and SimSiam's predictor
    key_momentum: of the moving average; key_momentum_to_one: it rises to 1 along half a cosine (BYOL, CaCo)
    batch_norm: statistics of a rank's images (`local`) or of all ranks' (`sync`)
    key_batch_norm: the same for the key encoder, or `shuffle`: local, over images shuffled between ranks (MoCo)
    norm_splits: `local` and `shuffle` statistics over 1 / norm_splits of a rank's images, as that many ranks have them
    join_views: views of one size go through the network as one batch (SimCLR, SwAV); otherwise one after another
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
    """The contrastive loss: temperatures of the encoder and of the bank, and which keys are negatives.

    in_batch_negatives: the softmax also runs over the other keys of all ranks (released AdCo), or not (paper)
    """

    tau: float = 0.12
    tau_bank: float = 0.02
    symmetric: bool = False
    in_batch_negatives: bool = True


@dataclass(frozen=True)
class BankConfig:
    """The rows a query is contrasted with: AdCo's and CaCo's learn by SGD, MoCo's and MoCHi's are a queue of keys.

    objective: what the adversaries ascend, the `loss` (eqs. 4-6) or `J` (section 4.1)
    renormalize: unit rows after each step (paper) or rows that drift in length (released code)
    lr_schedule: `constant` (released) or `cosine` (paper), from `lr` to 0, stepped like the encoder's; after a warm-up
    init: `encode` fills with key embeddings (paper); `train_and_fill` also trains the encoder meanwhile (released);
        `random` unit rows (MoCo, CaCo)
    placement: `sharded` each rank keeps size / ranks rows; `replicated` all; `auto` shards where ranks divide the size
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
    """MoCHi: of the `hard` rows nearest to a query, so many mixtures of two, and so many of one with the query."""

    hard: int = 1024
    pairs: int = 512
    with_query: int = 256
    from_epoch: int = 10


@dataclass(frozen=True)
class SwAVConfig:
    """SwAV: prototypes, Sinkhorn's sharpness and rounds, and an optional queue of embeddings for small batches."""

    prototypes: int = 3000
    epsilon: float = 0.05
    rounds: int = 3
    frozen_epochs: float = 1.0
    queue: int = 0
    queue_from_epoch: int = 15


@dataclass(frozen=True)
class OptimizerConfig:
    """SGD or LARS with a cosine from `lr` to `final_lr` after a linear warm-up, stepped by `epoch` or by `step`.

    trust: LARS's coefficient; weight_decay_all: decay biases and norms too (SGD as released; LARS never does)
    constant_predictor_lr: SimSiam's predictor keeps `lr`
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
    """How the arithmetic runs; the loss and the bank are float32 always.

    precision: of the encoders, `float32`, `bf16` or `fp16` (autocast), or on a GPU `tf32`: float32 whose convolutions
        round their inputs to TF32, which is torch's default and which `float32` here never does
    accumulate: micro-batches of a step, one backward pass each, with the meaning of the whole batch
    channels_last, fused_optimizer, compile: see docs/speed.md for what each gave where
    cuda_graphs: compile, and replay the backbone's kernels as CUDA graphs, one for each shape of a batch
    """

    precision: str = "float32"
    accumulate: int = 1
    channels_last: bool = True
    fused_optimizer: bool = True
    compile: bool = False
    cuda_graphs: bool = False


@dataclass(frozen=True)
class MonitorConfig:
    """Health of embeddings and bank every n steps (0: never); Weights & Biases where it is installed and asked for."""

    every_steps: int = 50
    wandb: bool = False


@dataclass(frozen=True)
class ProbeConfig:
    """Weighted kNN on frozen features every n epochs (0: never): `root/train` against `root/val`, default data.root."""

    every_epochs: int = 0
    root: str = ""
    px: int = 224
    k: int = 20
    temperature: float = 0.07
    max_images: int = 50_000


@dataclass(frozen=True)
class CheckpointConfig:
    """Written every n epochs and at the end, also every n steps if `every_steps` > 0; the last `keep` stay on disk."""

    every_epochs: int = 1
    every_steps: int = 0
    keep: int = 2


@dataclass(frozen=True)
class PretrainConfig:
    """One pretraining run. batch is the number of images a step over all ranks."""

    method: str = "adco"
    epochs: int = 200
    batch: int = 256
    seed: int = 0
    device: str = "auto"
    data: DataConfig = field(default_factory=DataConfig)
    views: typing.List[ViewConfig] = field(default_factory=lambda: [ViewConfig(), ViewConfig()])  # noqa: UP006
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
        """The resolved recipe, every key written out."""
        return yaml.safe_dump(asdict(self), sort_keys=False)
