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
    flip_p: float = 0.5


@dataclass(frozen=True)
class Data:
    """Where the images are: `root/train/CLASS/*.jpg`, or any folder of images (labels are not used to train)."""

    root: str = ""
    workers: int = 8
    max_bad_share: float = 0.01


@dataclass(frozen=True)
class Encoder:
    """A torchvision ResNet and MoCo's two-layer head; the key encoder follows by exponential moving average.

    head_norm: BatchNorm between the head's layers. MoCo and AdCo have none; short runs spread their embeddings sooner.
    """

    arch: str = "resnet50"
    stem: str = "imagenet"
    dim: int = 128
    head_norm: bool = False
    key_momentum: float = 0.999


@dataclass(frozen=True)
class Contrast:
    """The contrastive loss.

    in_batch_negatives: the softmax also runs over the other keys of the batch (released code), or not (paper)
    """

    tau: float = 0.12
    tau_bank: float = 0.02
    symmetric: bool = False
    in_batch_negatives: bool = True


@dataclass(frozen=True)
class Bank:
    """The adversaries and their own SGD.

    renormalize: unit rows after each step (paper) or rows that drift in length (released code)
    lr_schedule: `constant` (released) or `cosine` (paper), from `lr` to 0, stepped like the encoder's
    init: `encode` fills with key embeddings (paper); `train_and_fill` also trains the encoder meanwhile (released)
    """

    size: int = 65536
    lr: float = 3.0
    lr_schedule: str = "constant"
    sgd_momentum: float = 0.9
    weight_decay: float = 1e-4
    renormalize: bool = False
    init: str = "train_and_fill"


@dataclass(frozen=True)
class Optimizer:
    """SGD with a cosine from `lr` to `final_lr` after a linear warm-up, stepped by `epoch` or by `step`."""

    lr: float = 0.03
    final_lr: float = 0.0006
    warmup_epochs: float = 0.0
    schedule_by: str = "epoch"
    sgd_momentum: float = 0.9
    weight_decay: float = 1e-4


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
    optimizer: Optimizer = field(default_factory=Optimizer)
    probe: Probe = field(default_factory=Probe)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)

    def to_yaml(self) -> str:
        """The resolved recipe, every key written out."""
        return yaml.safe_dump(asdict(self), sort_keys=False)


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Read `path` (a YAML file or a recipe's bare name) and apply `key.sub=value` overrides.

    Raises UserError naming the file and the key: unknown (with the nearest), of the wrong type, or out of range.
    """
    path = _find(path)
    try:
        content = yaml.safe_load(path.read_text()) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: not a readable recipe ({' '.join(str(error).split())})") from error
    _check_keys(path, content, Recipe)
    filled = OmegaConf.to_container(_typed(path, content))
    for override in overrides:
        _override(filled, override)
    source = "command line" if overrides else path
    _check_keys(source, filled, Recipe)
    recipe = OmegaConf.to_object(_typed(source, filled))
    check_recipe(recipe)
    return recipe


def check_recipe(recipe: Recipe) -> None:
    """Raise UserError for the first value that cannot mean anything."""
    _one_of("method", recipe.method, ("adco",))
    _one_of("encoder.arch", recipe.encoder.arch, ("resnet18", "resnet34", "resnet50", "resnet101"))
    _one_of("encoder.stem", recipe.encoder.stem, ("imagenet", "small"))
    _one_of("bank.init", recipe.bank.init, ("encode", "train_and_fill"))
    _one_of("bank.lr_schedule", recipe.bank.lr_schedule, ("constant", "cosine"))
    _one_of("optimizer.schedule_by", recipe.optimizer.schedule_by, ("epoch", "step"))
    _need("epochs", recipe.epochs, recipe.epochs >= 1, "at least 1")
    _need("batch", recipe.batch, recipe.batch >= 2, "at least 2, BatchNorm needs two images")
    _need("seed", recipe.seed, 0 <= recipe.seed < 2**32, "a whole number from 0 to 2^32 - 1")
    _need("contrast.tau", recipe.contrast.tau, recipe.contrast.tau > 0, "above 0")
    _need("contrast.tau_bank", recipe.contrast.tau_bank, recipe.contrast.tau_bank > 0, "above 0")
    _need("bank.size", recipe.bank.size, recipe.bank.size >= 1, "at least 1")
    _need("encoder.dim", recipe.encoder.dim, recipe.encoder.dim >= 1, "at least 1")
    _need("encoder.key_momentum", recipe.encoder.key_momentum, 0 <= recipe.encoder.key_momentum <= 1, "in [0, 1]")
    _need("data.workers", recipe.data.workers, recipe.data.workers >= 0, "0 or more")
    _need("data.max_bad_share", recipe.data.max_bad_share, 0 <= recipe.data.max_bad_share < 1, "in [0, 1)")
    warmup = recipe.optimizer.warmup_epochs
    _need("optimizer.warmup_epochs", warmup, 0 <= warmup <= recipe.epochs, f"from 0 to epochs={recipe.epochs}")
    _need("checkpoint.keep", recipe.checkpoint.keep, recipe.checkpoint.keep >= 1, "at least 1")
    _need("checkpoint.every_epochs", recipe.checkpoint.every_epochs, recipe.checkpoint.every_epochs >= 1, "at least 1")
    count = len(recipe.views)
    _need("views", count, count == 2 or (count > 2 and not recipe.contrast.symmetric), "2, or more when not symmetric")
    for i, view in enumerate(recipe.views):
        _check_view(f"views.{i}", view)


def _check_view(name: str, view: View) -> None:
    _need(f"{name}.px", view.px, view.px >= 8, "at least 8")
    ordered = len(view.scale) == 2 and 0 < view.scale[0] <= view.scale[1] <= 1
    _need(f"{name}.scale", view.scale, ordered, "two shares of the area, 0 < low <= high <= 1")
    sigma = view.blur_sigma_px
    _need(f"{name}.blur_sigma_px", sigma, len(sigma) == 2 and 0 < sigma[0] <= sigma[1], "two widths, 0 < low <= high")
    strengths = len(view.jitter) == 4 and min(view.jitter) >= 0 and max(view.jitter[:3]) <= 1 and view.jitter[3] <= 0.5
    _need(f"{name}.jitter", view.jitter, strengths, "four strengths in [0, 1], the hue's in [0, 0.5]")
    for key in ("jitter_p", "gray_p", "blur_p", "flip_p"):
        _need(f"{name}.{key}", getattr(view, key), 0 <= getattr(view, key) <= 1, "in [0, 1]")


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


def _one_of(key: str, value: str, options: tuple[str, ...]) -> None:
    if value not in options:
        raise UserError(f"recipe: {key}={value!r} is not known; choose one of {', '.join(options)}")


def _need(key: str, value: object, fine: bool, expected: str) -> None:
    if not fine:
        raise UserError(f"recipe: {key}={value} is out of range; expected {expected}")
