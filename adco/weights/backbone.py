"""Any public checkpoint -> a torchvision ResNet state dict. The single bridge to all downstream work.

A checkpoint is recognised by its layout (`layouts.py`), stripped to torchvision names, and compared tensor by
tensor with the torchvision architecture it claims to be. Nothing is dropped silently: a projection head goes because
its layout names it, everything else that does not fit is an error.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from adco.config.diff import recipe_name
from adco.models.resnet import ARCHITECTURES, build_resnet
from adco.utils.errors import UserError
from adco.utils.files import sha256_of
from adco.weights.layouts import LAYOUTS, SOURCES, Layout
from adco.weights.manifest import Model
from adco.weights.readers import read_weights
from adco.weights.zoo import find, is_zoo, resolve

PLAIN = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True)
class Backbone:
    """A verified set of torchvision ResNet tensors and where they came from.

    state: torchvision names -> CPU tensors, without `num_batches_tracked` and `fc` (265 tensors for resnet50)
    source: the layout that was recognised, or `random`
    dropped: names of the tensors that were left out -> why; the layout names every one
    pretraining: method, epochs and recipe, as far as the zoo or the file knows them
    """

    arch: str
    stem: str
    state: dict[str, Tensor] = field(repr=False)
    source: str
    name: str
    sha256: str
    dropped: Mapping[str, str] = field(default_factory=dict)
    pretraining: Mapping[str, object] = field(default_factory=dict)

    def module(self) -> nn.Module:
        """A torchvision ResNet in eval mode with these weights and `fc` replaced by identity."""
        model = build_resnet(self.arch, self.stem)
        model.load_state_dict(self.state)
        return model.eval()

    def describe(self) -> dict[str, object]:
        """What a result record says of the checkpoint."""
        facts = {"name": self.name, "sha256": self.sha256, "arch": self.arch, "stem": self.stem, "source": self.source}
        return facts | dict(self.pretraining)


def load_backbone(path: str | Path, source: str | None = None) -> Backbone:
    """Read a checkpoint file, `zoo://NAME` (zoo.py), or `random:ARCH[:SEED]` for torchvision's initialisation.

    source: a layout's name, to read the file as that and nothing else; recognised by itself otherwise
    Raises UserError that names the file and what is wrong with it: absent, a web page, truncated, not tensors only,
    an unknown layout, missing, extra or misshapen tensors.
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
    state = {new: tensors[old] for old, new in names.items() if not new.endswith("num_batches_tracked")}
    arch, stem = identify(state)
    check_state(path, state, arch, stem)
    if stem == "small" and not layout.small_stem:
        raise UserError(
            f"{path}: {layout.name}'s 3x3 stem pads by 2, ours by 1: its outputs would differ; not supported"
        )
    known = _known_of(find(given)) if is_zoo(given) else _trained_by(content)
    return Backbone(arch, stem, state, layout.name, path.name, sha256_of(path), dropped, known)


def identify(state: Mapping[str, Tensor]) -> tuple[str, str]:
    """The architecture and stem that these tensors fit, or else fit best."""
    stem = "small" if "conv1.weight" in state and tuple(state["conv1.weight"].shape[2:]) == (3, 3) else "imagenet"
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    return min(ARCHITECTURES, key=lambda arch: len(found.items() ^ expected_shapes(arch, stem).items())), stem


def check_state(path: Path, state: Mapping[str, Tensor], arch: str, stem: str) -> None:
    """Raise UserError naming every missing, extra, misshapen, sparse, quantised or non-finite tensor."""
    expected = expected_shapes(arch, stem)
    faults = [f"missing {name}" for name in expected if name not in state]
    faults += [f"extra {name}" for name in state if name not in expected]
    faults += [
        f"{name} has shape {tuple(state[name].shape)}, expected {shape}"
        for name, shape in expected.items()
        if name in state and tuple(state[name].shape) != shape
    ]
    fitting = [name for name, shape in expected.items() if name in state and tuple(state[name].shape) == shape]
    faults += [f"{name} is no plain tensor of numbers" for name in fitting if not _plain(state[name])]
    faults += [f"{name} holds NaN or infinity" for name in fitting if _plain(state[name]) and not _finite(state[name])]
    if faults:
        shown = "; ".join(faults[:6]) + (f"; and {len(faults) - 6} more" if len(faults) > 6 else "")
        raise UserError(f"{path}: does not fit {arch} ({len(expected)} tensors), the nearest architecture: {shown}")


@functools.cache
def expected_shapes(arch: str, stem: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the backbone's tensors, `num_batches_tracked` apart, in torchvision's order."""
    with torch.device("meta"):
        model = build_resnet(arch, stem)
    return {name: tuple(t.shape) for name, t in model.state_dict().items() if not name.endswith("num_batches_tracked")}


def _recognise(path: Path, content: Mapping, source: str | None) -> tuple[Layout, dict[str, Tensor]]:
    """The first layout that knows every tensor; else the first that finds a ResNet, whose strangers are then named."""
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


def _known_of(model: Model) -> dict[str, object]:
    facts = {"method": model.method, "epochs": model.epochs, "recipe": model.recipe}
    return {key: value for key, value in facts.items() if value is not None}


def _trained_by(content: Mapping) -> dict[str, object]:
    """What a checkpoint of ours says of its recipe: method, epochs, and which one it is; {} of others."""
    recipe = content.get("recipe")
    if not isinstance(recipe, Mapping) or not isinstance(recipe.get("method"), str):
        return {}
    epochs = {"epochs": recipe["epochs"]} if type(recipe.get("epochs")) is int else {}
    return {"method": recipe["method"], "recipe": recipe_name(recipe)} | epochs


def _tensors_at(content: Mapping, entry: tuple[str, ...]) -> dict[str, Tensor]:
    for key in entry:
        content = content.get(key) if isinstance(content, Mapping) else None
    if not isinstance(content, Mapping):
        return {}
    return {name: value for name, value in content.items() if isinstance(value, Tensor) and isinstance(name, str)}


def _plain(tensor: Tensor) -> bool:
    """Whether it has a number at every place, in memory, of a kind that a network computes with."""
    dense = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    return dense and tensor.dtype in PLAIN


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def _random_backbone(name: str) -> Backbone:
    _, arch, *rest = name.split(":")
    try:
        seed = int(rest[0]) if rest else 0
    except ValueError:
        raise UserError(f"{name}: expected random:ARCH[:SEED] with a whole number as seed") from None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state = build_resnet(arch).state_dict()
    state = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    return Backbone(arch, "imagenet", state, "random", f"random:{arch}:{seed}", f"random:{arch}:{seed}")
