"""The recipe: what a pretraining run is, as frozen typed dataclasses read from YAML and `key.sub=value` overrides."""

from __future__ import annotations

import difflib
import functools
import typing
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from adco.errors import UserError
from adco.limits import check_recipe

RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class View:
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
class Data:
    """Where the images are (labels are not used to train), and who decodes them.

    root: `root/train/CLASS/*.jpg` or any folder of images; `PATH/{000..146}.tar` or a URL of tar shards; `sample`;
        `cifar10:FOLDER`, `cifar100:FOLDER`, `imagenette:FOLDER`
    backend: `native` one fused pass a view on the CPU, `device` colour and blur on the training device, `reference`
        torchvision's transforms; `auto` chooses by device
    in_memory: decode every image once and keep it (small images)
    """

    root: str = ""
    workers: int = 8
    backend: str = "auto"
    in_memory: bool = False
    max_bad_share: float = 0.01


@dataclass(frozen=True)
class Encoder:
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
class Contrast:
    """The contrastive loss: temperatures of the encoder and of the bank, and which keys are negatives.

    in_batch_negatives: the softmax also runs over the other keys of all ranks (released AdCo), or not (paper)
    """

    tau: float = 0.12
    tau_bank: float = 0.02
    symmetric: bool = False
    in_batch_negatives: bool = True


@dataclass(frozen=True)
class Bank:
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
class Mix:
    """MoCHi: of the `hard` rows nearest to a query, so many mixtures of two, and so many of one with the query."""

    hard: int = 1024
    pairs: int = 512
    with_query: int = 256
    from_epoch: int = 10


@dataclass(frozen=True)
class Swap:
    """SwAV: prototypes, Sinkhorn's sharpness and rounds, and an optional queue of embeddings for small batches."""

    prototypes: int = 3000
    epsilon: float = 0.05
    rounds: int = 3
    frozen_epochs: float = 1.0
    queue: int = 0
    queue_from_epoch: int = 15


@dataclass(frozen=True)
class Optimizer:
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
class Compute:
    """How the arithmetic runs; the loss and the bank are float32 always.

    precision: autocast of the encoders, `float32`, `bf16` or `fp16`
    accumulate: micro-batches of a step, one backward pass each, with the meaning of the whole batch
    channels_last, fused_optimizer, compile: see docs/speed.md for what each gave where
    """

    precision: str = "float32"
    accumulate: int = 1
    channels_last: bool = True
    fused_optimizer: bool = True
    compile: bool = False


@dataclass(frozen=True)
class Monitor:
    """Health of embeddings and bank every n steps (0: never); Weights & Biases where it is installed and asked for."""

    every_steps: int = 50
    wandb: bool = False


@dataclass(frozen=True)
class Probe:
    """Weighted kNN on frozen features every n epochs (0: never): `root/train` against `root/val`, default data.root."""

    every_epochs: int = 0
    root: str = ""
    px: int = 224
    k: int = 20
    temperature: float = 0.07
    max_images: int = 50_000


@dataclass(frozen=True)
class Checkpoint:
    """Written every n epochs and at the end, also every n steps if `every_steps` > 0; the last `keep` stay on disk."""

    every_epochs: int = 1
    every_steps: int = 0
    keep: int = 2


@dataclass(frozen=True)
class Recipe:
    """One pretraining run. batch is the number of images a step over all ranks."""

    method: str = "adco"
    epochs: int = 200
    batch: int = 256
    seed: int = 0
    device: str = "auto"
    data: Data = field(default_factory=Data)
    views: typing.List[View] = field(default_factory=lambda: [View(), View()])  # noqa: UP006
    encoder: Encoder = field(default_factory=Encoder)
    contrast: Contrast = field(default_factory=Contrast)
    bank: Bank = field(default_factory=Bank)
    mix: Mix = field(default_factory=Mix)
    swap: Swap = field(default_factory=Swap)
    optimizer: Optimizer = field(default_factory=Optimizer)
    compute: Compute = field(default_factory=Compute)
    monitor: Monitor = field(default_factory=Monitor)
    probe: Probe = field(default_factory=Probe)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)

    def to_yaml(self) -> str:
        """The resolved recipe, every key written out."""
        return yaml.safe_dump(asdict(self), sort_keys=False)


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Read `path` (a YAML file or a recipe's bare name) and apply `key.sub=value` overrides.

    `base: NAME` in a file names the recipe that it changes, by bare name or by path from the file's own folder; a list
    (`views`) replaces the base's whole. Raises UserError naming the file and the key: unknown (with the nearest), of
    the wrong type, or out of range.
    """
    path = _find(path)
    filled = OmegaConf.to_container(_typed(path, _read(path, ())))
    for override in overrides:
        _override(filled, override)
    return as_recipe("command line" if overrides else path, filled)


def as_recipe(source: Path | str, content: dict) -> Recipe:
    """The recipe that plain containers describe, a checkpoint's for example. Raises UserError as `load_recipe` does."""
    _check_keys(source, content, Recipe)
    recipe = OmegaConf.to_object(_typed(source, content))
    check_recipe(recipe)
    return recipe


def _read(path: Path, above: tuple[Path, ...]) -> dict:
    """The content of a recipe's file over that of its base; `above`: the files that lead here."""
    try:
        content = yaml.safe_load(path.read_text()) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: not a readable recipe ({' '.join(str(error).split())})") from error
    base = content.pop("base", None) if isinstance(content, dict) else None
    _check_keys(path, content, Recipe)
    _typed(path, content)
    if base is None:
        return content
    above, near = (*above, path.resolve()), path.parent / str(base)
    try:
        base = _find(near if near.is_file() else str(base))
    except UserError as error:
        raise UserError(f"{path}: base: {error}") from None
    if base.resolve() in above:
        raise UserError(f"{path}: base: {base.name} is built on this recipe; a base must stand on its own")
    return _over(_read(base, above), content)


def _over(base: dict, change: dict) -> dict:
    """`base` with the values of `change` in place of its own, mapping by mapping."""
    merged = {**base, **change}
    for key in base.keys() & change.keys():
        if isinstance(base[key], dict):
            merged[key] = _over(base[key], change[key])
    return merged


def _find(path: Path | str) -> Path:
    path = Path(path)
    if path.is_file():
        return path
    packaged = RECIPES / f"{path}.yaml"
    if path.parent == Path() and packaged.is_file():
        return packaged
    names = sorted(recipe.stem for recipe in RECIPES.glob("*.yaml"))
    raise UserError(f"{path}: no such recipe; give a YAML file or one of {', '.join(names)}")


def _typed(source: Path | str, content: dict, kind: type = Recipe, prefix: str = "") -> DictConfig:
    """The content as a typed OmegaConf node; raises UserError naming the field whose type is wrong."""
    schema = OmegaConf.structured(kind)
    for node in (schema, *(schema[name] for name in schema if OmegaConf.is_dict(schema[name]))):
        OmegaConf.set_readonly(node, False)  # frozen dataclasses are read-only nodes, which refuse a merge
    try:
        return OmegaConf.merge(schema, OmegaConf.create(content))
    except OmegaConfBaseException as error:
        key = error.full_key or str(error.key or "")
        raise UserError(f"{source}: {prefix}{key}: {str(error.msg or error).splitlines()[0]}") from error


def _check_keys(source: Path | str, content: object, kind: type, prefix: str = "") -> None:
    """Walk the mapping beside the dataclass and raise for a key that the dataclass does not have."""
    if typing.get_origin(kind) is list:
        (item_kind,) = typing.get_args(kind)
        for i, item in enumerate(content if isinstance(content, list) and is_dataclass(item_kind) else ()):
            _check_keys(source, item, item_kind, f"{prefix}{i}.")
            _typed(source, item, item_kind, f"{prefix}{i}.")  # in a list, OmegaConf does not say which item is wrong
    elif is_dataclass(kind):
        if not isinstance(content, dict):
            raise UserError(f"{source}: {prefix.rstrip('.')}: expected a mapping of keys, found {content!r}")
        kinds = _kinds(kind)
        for key, value in content.items():
            if key not in kinds:
                raise _unknown_key(source, f"{prefix}{key}")
            _check_keys(source, value, kinds[key], f"{prefix}{key}.")


def _override(content: dict, override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"{override}: expected key.sub=value, for example optimizer.lr=0.06")
    node: object = content
    *parents, last = [int(part) if part.isdigit() else part for part in key.split(".")]
    try:
        for part in parents:
            node = node[part]
        node[last]  # an override never adds a key
        node[last] = yaml.safe_load(text) if text else ""
    except (KeyError, IndexError, TypeError):
        raise _unknown_key("command line", key) from None
    except yaml.YAMLError as error:
        raise UserError(f"command line: {key}: {text!r} is not a value ({' '.join(str(error).split())})") from error


def _unknown_key(source: Path | str, key: str) -> UserError:
    near = difflib.get_close_matches(key, _all_keys(), n=1, cutoff=0.0)[0]
    return UserError(f"{source}: unknown key {key}; did you mean {near}?")


@functools.cache
def _all_keys() -> tuple[str, ...]:
    return tuple(_dotted(Recipe))


def _dotted(kind: type, prefix: str = "") -> Iterator[str]:
    for name, sub in _kinds(kind).items():
        inner = typing.get_args(sub)[0] if typing.get_origin(sub) is list else sub
        yield f"{prefix}{name}"
        if is_dataclass(inner):
            yield from _dotted(inner, f"{prefix}{name}." if inner is sub else f"{prefix}{name}.0.")


def _kinds(kind: type) -> dict[str, type]:
    hints = typing.get_type_hints(kind)
    return {f.name: hints[f.name] for f in fields(kind)}
