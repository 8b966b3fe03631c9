"""Any public checkpoint -> a torchvision ResNet state dict. The single bridge to all downstream work.

A checkpoint is recognised by its layout (where the backbone's keys sit), stripped to torchvision names, and compared
tensor by tensor with the torchvision architecture it claims to be. Nothing is dropped silently: a projection head goes
because its layout names it, everything else that does not fit is an error.
"""

from __future__ import annotations

import functools
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

from adco.errors import UserError
from adco.files import sha256_of

ARCHITECTURES = ("resnet18", "resnet34", "resnet50", "resnet101")
STAGES = ("res2", "res3", "res4", "res5")


@dataclass(frozen=True)
class Layout:
    """How one family of projects writes a checkpoint: which entry holds the tensors, and the backbone's prefix in it.

    dropped: prefixes of tensors that belong to the pretraining alone; anything else beside the backbone is an error.
    """

    name: str
    entry: str | None
    prefix: str
    dropped: tuple[str, ...]


# Ordered: the first layout whose entry exists and whose `prefix + "conv1.weight"` is present wins.
LAYOUTS = (
    Layout("adco-suite", "method", "encoder.backbone.", ("encoder.head.", "key_encoder.", "bank.")),
    Layout(
        "moco",  # MoCo v1/v2, AdCo and CaCo as released: wrapped in DistributedDataParallel
        "state_dict",
        "module.encoder_q.",
        ("module.encoder_q.fc.", "module.encoder_k.", "module.queue", "module.memory"),
    ),
    Layout("torchvision", None, "", ("fc.",)),
    Layout("torchvision", "state_dict", "", ("fc.",)),
)


@dataclass(frozen=True)
class Backbone:
    """A verified set of torchvision ResNet tensors and where they came from.

    state: torchvision names -> CPU tensors, without `num_batches_tracked` and `fc` (265 tensors for resnet50)
    dropped: names of the tensors that were left out, all of them named by the layout
    """

    arch: str
    stem: str
    state: dict[str, Tensor]
    source: str
    name: str
    sha256: str
    dropped: tuple[str, ...] = ()

    def module(self) -> nn.Module:
        """A torchvision ResNet in eval mode with these weights and `fc` replaced by identity."""
        model = build_resnet(self.arch, self.stem)
        model.load_state_dict(self.state)
        return model.eval()

    def describe(self) -> dict[str, object]:
        """What a result record says of the checkpoint."""
        return {"name": self.name, "sha256": self.sha256, "arch": self.arch, "stem": self.stem, "source": self.source}


def load_backbone(path: str | Path) -> Backbone:
    """Read a checkpoint file, or `random:ARCH[:SEED]` for torchvision's own initialisation.

    Raises UserError that names the file and what is wrong with it: absent, a web page, truncated, not tensors only,
    an unknown layout, missing, extra or misshapen tensors.
    """
    if str(path).startswith("random:"):
        return _random_backbone(str(path))
    path = Path(path)
    content = read_checkpoint(path)
    layout, tensors = _recognise(path, content)
    backbone, dropped = _split(path, layout, tensors)
    arch, stem = identify(path, backbone)
    check_state(path, backbone, arch, stem)
    return Backbone(arch, stem, backbone, layout.name, path.name, sha256_of(path), dropped)


def read_checkpoint(path: Path) -> dict:
    """`torch.load` restricted to tensors and plain containers, on the CPU, with errors a user can act on."""
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint file")
    head = path.open("rb").read(256).lstrip().lower()
    if not head:
        raise UserError(f"{path}: the checkpoint is empty (0 bytes); download it again")
    if head.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise UserError(
            f"{path}: this is a web page, not a checkpoint; the download link answered with HTML, download it again"
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        if isinstance(error, pickle.UnpicklingError):
            reason = (
                "it is no checkpoint, or holds Python objects, which are refused: only tensors and containers are read"
            )
        else:
            first = (str(error).splitlines() or [""])[0][:80].strip()
            reason = f"truncated or damaged, or no checkpoint at all ({first}); download or copy it again"
        raise UserError(f"{path}: not readable: {reason}") from error
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: expected a dictionary of tensors, found {type(content).__name__}")
    return dict(content)


def build_resnet(arch: str, stem: str = "imagenet") -> nn.Module:
    """A torchvision ResNet without its classifier.

    stem: `imagenet` (7x7 stride 2, max pool) or `small` (3x3 stride 1, no pool; for images of about 32 to 64 px).
    Output: (B, C) average-pooled features, C = 512 for resnet18/34 and 2048 for resnet50/101.
    """
    if arch not in ARCHITECTURES:
        raise UserError(f"architecture {arch!r} is not supported; choose one of {', '.join(ARCHITECTURES)}")
    model = getattr(torchvision.models, arch)(weights=None)
    model.fc = nn.Identity()
    if stem == "small":
        model.conv1 = nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
        model.maxpool = nn.Identity()
    elif stem != "imagenet":
        raise UserError(f"stem {stem!r} is not known; choose imagenet or small")
    return model


def stage_features(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """The maps after layer1..layer4 of a torchvision ResNet: (B, 3, H, W) -> {"res2": (B, C, H/4, W/4), ... "res5"}."""
    x = model.maxpool(model.relu(model.bn1(model.conv1(images))))
    features = {}
    for stage, layer in zip(STAGES, (model.layer1, model.layer2, model.layer3, model.layer4), strict=True):
        features[stage] = x = layer(x)
    return features


def identify(path: Path, state: Mapping[str, Tensor]) -> tuple[str, str]:
    """The architecture and stem whose tensor names and stem kernel these are. Raises UserError when none fits."""
    names = set(state)
    for arch in ARCHITECTURES:
        if names == set(expected_shapes(arch, "imagenet")):
            break
    else:
        arch = min(ARCHITECTURES, key=lambda a: len(names ^ set(expected_shapes(a, "imagenet"))))
    small = tuple(state["conv1.weight"].shape[2:]) == (3, 3)
    return arch, "small" if small else "imagenet"


def check_state(path: Path, state: Mapping[str, Tensor], arch: str, stem: str) -> None:
    """Raise UserError naming every missing, extra or misshapen tensor against the torchvision architecture."""
    expected = expected_shapes(arch, stem)
    faults = [f"missing {name}" for name in expected if name not in state]
    faults += [f"extra {name}" for name in state if name not in expected]
    faults += [
        f"{name} has shape {tuple(state[name].shape)}, expected {shape}"
        for name, shape in expected.items()
        if name in state and tuple(state[name].shape) != shape
    ]
    if faults:
        shown = "; ".join(faults[:6]) + (f"; and {len(faults) - 6} more" if len(faults) > 6 else "")
        raise UserError(f"{path}: does not fit {arch} ({len(expected)} tensors), the nearest architecture: {shown}")


@functools.cache
def expected_shapes(arch: str, stem: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the backbone's tensors, `num_batches_tracked` apart, in torchvision's order."""
    with torch.device("meta"):
        model = build_resnet(arch, stem)
    return {name: tuple(t.shape) for name, t in model.state_dict().items() if not name.endswith("num_batches_tracked")}


def _recognise(path: Path, content: Mapping) -> tuple[Layout, dict[str, Tensor]]:
    for layout in LAYOUTS:
        entry = content if layout.entry is None else content.get(layout.entry)
        if isinstance(entry, Mapping) and isinstance(entry.get(layout.prefix + "conv1.weight"), Tensor):
            return layout, {name: value for name, value in entry.items() if isinstance(value, Tensor)}
    known = ", ".join(dict.fromkeys(layout.name for layout in LAYOUTS))
    raise UserError(
        f"{path}: no ResNet found in it; top-level keys are {sorted(map(str, content))[:8]}, layouts known: {known}"
    )


def _split(path: Path, layout: Layout, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    backbone, dropped, strangers = {}, [], []
    for name, tensor in tensors.items():
        if name.startswith(layout.dropped):
            dropped.append(name)
        elif not name.startswith(layout.prefix):
            strangers.append(name)
        elif not name.endswith("num_batches_tracked"):
            backbone[name.removeprefix(layout.prefix)] = tensor
    if strangers:
        raise UserError(f"{path}: tensors that the {layout.name} layout does not have: {', '.join(strangers[:6])}")
    return backbone, tuple(dropped)


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
