"""The bridge: every layout it knows, read strictly; everything that does not fit is named in one line."""

from __future__ import annotations

import os
import pickle

import pytest
import torch
import torchvision

from adco.backbone import ARCHITECTURES, STAGES, build_resnet, expected_shapes, load_backbone, stage_features
from adco.errors import UserError

COUNTS = {"resnet18": 100, "resnet34": 180, "resnet50": 265, "resnet101": 520}  # convolutions + 4 a BatchNorm


def torchvision_state(arch: str, seed: int = 3) -> dict[str, torch.Tensor]:
    """A torchvision ResNet's state dict with its classifier and BatchNorm statistics unlike the defaults."""
    torch.manual_seed(seed)
    state = getattr(torchvision.models, arch)(num_classes=7).state_dict()
    for name, value in state.items():
        if "running_" in name:
            state[name] = torch.rand_like(value) + 0.5
    return state


def moco(state: dict[str, torch.Tensor]) -> dict:
    """As MoCo, AdCo and CaCo write it: both encoders under DistributedDataParallel, a two-layer head, a queue."""
    layers = {name: value for name, value in state.items() if not name.startswith("fc.")}
    heads = {f"fc.{layer}.{kind}": torch.zeros(2) for layer in (0, 2) for kind in ("weight", "bias")}
    both = {
        f"module.{encoder}.{name}": value
        for encoder in ("encoder_q", "encoder_k")
        for name, value in (layers | heads).items()
    }
    return {
        "epoch": 5,
        "arch": "x",
        "state_dict": both | {"module.queue": torch.zeros(2, 3), "module.queue_ptr": torch.zeros(1)},
    }


LAYOUTS = {"torchvision": lambda s: s, "nested": lambda s: {"state_dict": s, "epoch": 1}, "moco": moco}


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_backbone_has_torchvisions_tensors(arch):
    assert len(expected_shapes(arch, "imagenet")) == COUNTS[arch]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_every_layout_gives_the_networks_own_output(tmp_path, arch, layout):
    state = torchvision_state(arch)
    torch.save(LAYOUTS[layout](state), tmp_path / "x.pth")
    backbone = load_backbone(tmp_path / "x.pth")
    assert (backbone.arch, backbone.stem, len(backbone.state)) == (arch, "imagenet", COUNTS[arch])
    original = getattr(torchvision.models, arch)(num_classes=7).eval()
    original.load_state_dict(state)
    original.fc = torch.nn.Identity()
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(backbone.module()(images), original(images))
        stages = stage_features(backbone.module(), images)
    assert tuple(stages) == STAGES
    torch.testing.assert_close(stages["res5"].mean(dim=(2, 3)), original(images))


def test_what_is_dropped_is_named(tmp_path):
    torch.save(moco(torchvision_state("resnet18")), tmp_path / "x.pth")
    dropped = load_backbone(tmp_path / "x.pth").dropped
    assert {"module.encoder_q.fc.0.weight", "module.queue", "module.encoder_k.conv1.weight"} <= set(dropped)


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_the_small_stem_is_recognised(tmp_path, arch):
    torch.save(build_resnet(arch, "small").state_dict(), tmp_path / "x.pth")
    assert load_backbone(tmp_path / "x.pth").stem == "small"


class Executes:
    """Unpickled without care, it would run a command."""

    def __reduce__(self):
        return os.system, ("echo executed > executed",)


def broken(kind: str, path) -> None:
    state = torchvision_state("resnet18")
    if kind == "missing":
        del state["layer3.0.bn1.running_var"]
    elif kind == "extra":
        state["layer3.9.conv1.weight"] = torch.zeros(1)
    elif kind == "shape":
        state["layer2.0.conv1.weight"] = torch.zeros(3, 3)
    elif kind == "stranger":
        state = {"state_dict": {"module.encoder_q.conv1.weight": state["conv1.weight"], "module.other": torch.zeros(1)}}
    elif kind == "vgg":
        state = {"features.0.weight": torch.zeros(1)}
    elif kind == "list":
        state = [1, 2]
    torch.save(state, path)
    if kind == "html":
        path.write_text("<!DOCTYPE html><html>please sign in</html>")
    elif kind == "truncated":
        path.write_bytes(path.read_bytes()[:-5000])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("just words")
    elif kind == "executes":
        path.write_bytes(pickle.dumps(Executes()))
    elif kind == "executes zip":
        torch.save({"state_dict": Executes()}, path)


@pytest.mark.parametrize(
    ("kind", "parts"),
    [
        ("missing", ["missing layer3.0.bn1.running_var", "resnet18"]),
        ("extra", ["extra layer3.9.conv1.weight"]),
        ("shape", ["layer2.0.conv1.weight has shape (3, 3), expected (128, 64, 3, 3)"]),
        ("stranger", ["module.other"]),
        ("vgg", ["no ResNet found", "features.0.weight"]),
        ("list", ["expected a dictionary"]),
        ("html", ["web page"]),
        ("truncated", ["truncated or damaged"]),
        ("empty", ["0 bytes"]),
        ("text", ["no checkpoint"]),
        ("executes", ["refused"]),
        ("executes zip", ["refused"]),
    ],
)
def test_what_does_not_fit_is_named_in_one_line(tmp_path, monkeypatch, kind, parts):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x.pth"
    broken(kind, path)
    with pytest.raises(UserError) as caught:
        load_backbone(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert len(message) < 500
    for part in parts:
        assert part in message
    assert not (tmp_path / "executed").exists()


def test_random_weights_are_a_function_of_the_seed():
    a, b, c = (load_backbone(f"random:resnet18{end}") for end in ("", ":0", ":1"))
    assert all(torch.equal(a.state[name], b.state[name]) for name in a.state)
    assert not torch.equal(a.state["conv1.weight"], c.state["conv1.weight"])
    assert c.describe() == {
        "name": "random:resnet18:1",
        "sha256": "random:resnet18:1",
        "arch": "resnet18",
        "stem": "imagenet",
        "source": "random",
    }


@pytest.mark.parametrize("name", ["random:resnet19", "random:resnet18:x", "absent.pth"])
def test_names_that_mean_nothing_are_refused(name):
    with pytest.raises(UserError, match=name.split(":")[1] if ":" in name else name):
        load_backbone(name)
