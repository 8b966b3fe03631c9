"""`load_backbone`: any public checkpoint -> a torchvision ResNet. Every downstream task reads checkpoints through it.

The layout of the file is recognised (`layouts.py`), its tensors get torchvision's names, and each is compared with the
torchvision architecture that fits best. Nothing is dropped silently: a tensor is left out only where its layout names
it with a reason, and every other tensor that does not fit is an error.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torchvision.models import ResNet

from adco.config.diff import recipe_name
from adco.models.resnet import ARCHITECTURES, build_resnet
from adco.utils.errors import UserError
from adco.utils.files import sha256_of
from adco.weights.layouts import LAYOUTS, SOURCES, Layout
from adco.weights.manifest import Model
from adco.weights.readers import read_weights
from adco.weights.zoo import find, is_zoo, resolve

FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
STEP_COUNTER = "num_batches_tracked"  # BatchNorm's; no output depends on it in eval mode, and detectron2 ignores it


@dataclass(frozen=True)
class Backbone:
    """The tensors of a torchvision ResNet, checked by name and shape, and where they came from.

    Attributes:
        arch: torchvision's name, one of adco.models.resnet.ARCHITECTURES.
        stem: `imagenet` (7x7 convolution, stride 2, max pooling) or `small` (3x3 convolution, stride 1, no pooling).
        state: torchvision's names -> CPU tensors in the file's dtype (float16, bfloat16, float32 or float64), without
            `fc` and BatchNorm's `num_batches_tracked`; 265 tensors for resnet50.
        source: The layout that was recognised (`layouts.py`), or `random`.
        name: File name of the checkpoint, or `random:ARCH:SEED`.
        sha256: Hash of the file in hexadecimal, or `random:ARCH:SEED`.
        dropped: Names of the tensors that were left out -> the layout's reason.
        pretraining: `method`, `epochs` and `recipe`, as far as the zoo or the file says them.
    """

    arch: str
    stem: str
    state: dict[str, Tensor] = field(repr=False)
    source: str
    name: str
    sha256: str
    dropped: Mapping[str, str] = field(default_factory=dict)
    pretraining: Mapping[str, object] = field(default_factory=dict)

    def module(self) -> ResNet:
        """A new torchvision ResNet with these weights.

        Returns:
            A float32 module on the CPU, in eval mode, with `fc` replaced by identity: RGB images (B, 3, H, W),
            normalised as in pretraining -> average-pooled features (B, C), C = 512 for resnet18/34 and
            2048 for the others. Its parameters require gradients.
        """
        model = build_resnet(self.arch, self.stem)
        model.load_state_dict(self.state)
        return model.eval()

    def describe(self) -> dict[str, object]:
        """The `checkpoint` part of a result record: name, sha256, arch, stem, source, and what `pretraining` holds."""
        facts = {"name": self.name, "sha256": self.sha256, "arch": self.arch, "stem": self.stem, "source": self.source}
        return facts | dict(self.pretraining)


def load_backbone(path: str | Path, source: str | None = None) -> Backbone:
    """Read the backbone of a checkpoint.

    Args:
        path: A checkpoint file, `zoo://NAME` (downloaded if it is not in the cache), or `random:ARCH[:SEED]` for
            torchvision's initialisation.
        source: Name of the only layout to try. By default all layouts are tried in order.

    Returns:
        The backbone; nothing in the file is executed.

    Raises:
        UserError: Names the file and what is wrong with it: absent, a web page, truncated, not only tensors and
            containers, an unknown layout, or missing, extra, misshapen or non-finite tensors.
    """
    if source is not None and source not in SOURCES:
        raise UserError(f"source {source!r} is not known; choose one of {', '.join(SOURCES)}")
    if str(path).startswith("random:"):
        return _random_backbone(str(path))
    given, path = str(path), resolve(path)
    content = read_weights(path)
    layout, tensors = _recognise(path, content, source)
    names, dropped, unexpected = layout.split(tensors)
    if unexpected:
        raise UserError(f"{path}: tensors that the {layout.name} layout does not have: {', '.join(unexpected[:6])}")
    state = {new: tensors[old] for old, new in names.items() if not new.endswith(STEP_COUNTER)}
    arch, stem = identify(state)
    check_state(path, state, arch, stem)
    if stem == "small" and not layout.small_stem:
        raise UserError(
            f"{path}: {layout.name}'s 3x3 stem pads by 2, ours by 1: its outputs would differ; not supported"
        )
    pretraining = _pretraining_of_model(find(given)) if is_zoo(given) else _pretraining_of_run(content)
    return Backbone(arch, stem, state, layout.name, path.name, sha256_of(path), dropped, pretraining)


def identify(state: Mapping[str, Tensor]) -> tuple[str, str]:
    """The architecture and stem whose names and shapes differ least from these.

    Args:
        state: torchvision's names -> tensors, without `fc` and `num_batches_tracked`.

    Returns:
        (architecture, stem), as in `Backbone`. Whether the tensors fit is not decided here; see `check_state`.
    """
    stem = "small" if "conv1.weight" in state and tuple(state["conv1.weight"].shape[2:]) == (3, 3) else "imagenet"
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    return min(ARCHITECTURES, key=lambda arch: len(shapes.items() ^ expected_shapes(arch, stem).items())), stem


def check_state(path: Path, state: Mapping[str, Tensor], arch: str, stem: str) -> None:
    """Check the tensors' names, shapes and values against an architecture.

    Args:
        path: The file that the message names.
        state: torchvision's names -> tensors, without `fc` and `num_batches_tracked`.
        arch, stem: As in `Backbone`.

    Raises:
        UserError: Names the missing, extra, misshapen, sparse, quantised and non-finite tensors (the first six).
    """
    expected = expected_shapes(arch, stem)
    faults = [f"missing {name}" for name in expected if name not in state]
    faults += [f"extra {name}" for name in state if name not in expected]
    faults += [
        f"{name} has shape {tuple(state[name].shape)}, expected {shape}"
        for name, shape in expected.items()
        if name in state and tuple(state[name].shape) != shape
    ]
    fitting = [name for name, shape in expected.items() if name in state and tuple(state[name].shape) == shape]
    faults += [f"{name} is no plain tensor of numbers" for name in fitting if not _is_dense_float(state[name])]
    dense = [name for name in fitting if _is_dense_float(state[name])]
    faults += [f"{name} holds NaN or infinity" for name in dense if not torch.isfinite(state[name]).all()]
    if faults:
        shown = "; ".join(faults[:6]) + (f"; and {len(faults) - 6} more" if len(faults) > 6 else "")
        raise UserError(f"{path}: does not fit {arch} ({len(expected)} tensors), the nearest architecture: {shown}")


@functools.cache
def expected_shapes(arch: str, stem: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a backbone's tensors, without `num_batches_tracked`, in torchvision's order."""
    with torch.device("meta"):
        model = build_resnet(arch, stem)
    return {name: tuple(tensor.shape) for name, tensor in _without_counters(model.state_dict()).items()}


def _recognise(path: Path, content: Mapping, source: str | None) -> tuple[Layout, dict[str, Tensor]]:
    """The first layout that knows every tensor, else the first that finds a ResNet, and the tensors it reads."""
    candidates = []
    for layout in (row for row in LAYOUTS if source in (None, row.name)):
        for entry in layout.entries:
            tensors = _tensors_at(content, entry)
            if tensors and layout.has_probe(tensors):
                candidates.append((layout, tensors))
                if not layout.split(tensors)[2]:
                    return candidates[-1]
    if candidates:
        return candidates[0]
    if "conv1_w" in content:
        raise UserError(
            f"{path}: a Caffe2 file (BGR, stride in the 1x1, BatchNorm folded): no torchvision ResNet is equal"
        )
    keys = sorted(map(str, content))[:8]
    raise UserError(
        f"{path}: no ResNet found in it; top-level keys are {keys}, layouts known: {source or ', '.join(SOURCES)}"
    )


def _pretraining_of_model(model: Model) -> dict[str, object]:
    """What the zoo says of a model's pretraining."""
    facts = {"method": model.method, "epochs": model.epochs, "recipe": model.recipe}
    return {key: value for key, value in facts.items() if value is not None}


def _pretraining_of_run(content: Mapping) -> dict[str, object]:
    """What a checkpoint of this project says of its recipe: method, epochs and the recipe's name; {} for others."""
    recipe = content.get("recipe")
    if not isinstance(recipe, dict) or not isinstance(recipe.get("method"), str):
        return {}
    epochs = {"epochs": recipe["epochs"]} if type(recipe.get("epochs")) is int else {}
    return {"method": recipe["method"], "recipe": recipe_name(recipe)} | epochs


def _tensors_at(content: object, entry: tuple[str, ...]) -> dict[str, Tensor]:
    """The tensors in the dictionary that a path of keys leads to; {} where there is none."""
    for key in entry:
        content = content.get(key) if isinstance(content, Mapping) else None
    if not isinstance(content, Mapping):
        return {}
    return {name: value for name, value in content.items() if isinstance(value, Tensor) and isinstance(name, str)}


def _is_dense_float(tensor: Tensor) -> bool:
    """Whether the tensor is dense, on the CPU, not quantised and of a floating-point type that networks compute in."""
    dense = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    return dense and tensor.dtype in FLOAT_DTYPES


def _without_counters(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if not name.endswith(STEP_COUNTER)}


def _random_backbone(name: str) -> Backbone:
    _, arch, *rest = name.split(":")
    try:
        seed = int(rest[0]) if rest else 0
    except ValueError:
        raise UserError(f"{name}: expected random:ARCH[:SEED] with a whole number as seed") from None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state = _without_counters(build_resnet(arch).state_dict())
    return Backbone(arch, "imagenet", state, "random", f"random:{arch}:{seed}", f"random:{arch}:{seed}")
