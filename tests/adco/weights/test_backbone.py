"""The bridge: every layout it knows, read strictly; everything that does not fit is named in one line."""

from __future__ import annotations

import argparse
import copy
import os
import pickle

import numpy as np
import pytest
import torch

from adco.models.resnet import ARCHITECTURES, STAGES, build_resnet, stage_features
from adco.utils.errors import UserError
from adco.weights.backbone import expected_shapes, load_backbone
from adco.weights.readers import load_arrays, write_state
from tests.adco.weights.public_checkpoints import BUILDERS, moco_v2, network, solo_learn, torchvision_file

COUNTS = {  # convolutions + 4 a BatchNorm
    "resnet18": 100, "resnet34": 180, "resnet50": 265, "resnet101": 520, "wide_resnet50_2": 265,
    "wide_resnet101_2": 520, "resnext50_32x4d": 265, "resnext101_32x8d": 520, "resnext101_64x4d": 520,
}  # fmt: skip


def save(path, content):
    torch.save(content, path)
    return path


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_backbone_has_torchvisions_tensors(arch):
    assert len(expected_shapes(arch, "imagenet")) == COUNTS[arch]


@pytest.mark.filterwarnings("ignore::FutureWarning")  # DINO's weight_norm is torch's older one
@pytest.mark.parametrize("name", BUILDERS)
def test_every_projects_checkpoint_gives_that_projects_backbone(tmp_path, name):
    source, build = BUILDERS[name]
    content, _ = build(network())
    backbone = load_backbone(save(tmp_path / "x.pth", content))
    assert (backbone.source, backbone.arch, backbone.stem, len(backbone.state)) == (source, "resnet18", "imagenet", 100)
    assert all(torch.equal(tensor, network().state_dict()[name]) for name, tensor in backbone.state.items())


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_forced_source_reads_that_and_nothing_else(tmp_path):
    path = save(tmp_path / "x.pth", BUILDERS["dino"][1](network())[0])
    teacher, student = load_backbone(path), load_backbone(path, "dino-student")
    assert not torch.equal(teacher.state["conv1.weight"], student.state["conv1.weight"])
    with pytest.raises(UserError, match="no ResNet found.*layouts known: moco"):
        load_backbone(path, "moco")
    with pytest.raises(UserError, match="source 'moko' is not known; choose one of adco-suite"):
        load_backbone(path, "moko")


@pytest.mark.parametrize("arch", ["resnet50", "resnext50_32x4d"])
def test_architectures_with_the_same_names_are_told_apart_by_shape(tmp_path, arch):
    backbone = load_backbone(save(tmp_path / "x.pth", network(arch).state_dict()))
    assert (backbone.arch, len(backbone.state)) == (arch, COUNTS[arch])


def test_stages_are_those_of_the_network(tmp_path):
    net = network()
    backbone = load_backbone(save(tmp_path / "x.pth", net.state_dict()))
    with torch.inference_mode():
        stages = stage_features(backbone.module(), torch.ones(1, 3, 64, 64))
    assert tuple(stages) == STAGES
    torch.testing.assert_close(stages["res5"].mean(dim=(2, 3)), backbone.module()(torch.ones(1, 3, 64, 64)).detach())


def test_what_is_dropped_is_named_with_a_reason(tmp_path):
    dropped = load_backbone(save(tmp_path / "x.pth", moco_v2(network())[0])).dropped
    assert dropped["module.encoder_q.fc.0.weight"].startswith("projection")
    assert dropped["module.queue"].startswith("queue")
    assert dropped["module.encoder_k.conv1.weight"].startswith("second encoder")


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_the_small_stem_is_recognised(tmp_path, arch):
    torch.save(build_resnet(arch, "small").state_dict(), tmp_path / "x.pth")
    assert load_backbone(tmp_path / "x.pth").stem == "small"


def test_a_stem_whose_padding_differs_is_refused(tmp_path):
    net = copy.deepcopy(network())
    net.conv1 = torch.nn.Conv2d(3, 64, 3, padding=2, bias=False)
    with pytest.raises(UserError, match="solo-learn's 3x3 stem pads by 2"):
        load_backbone(save(tmp_path / "x.pth", solo_learn(net)[0]))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_what_is_written_is_read_back_bit_for_bit(tmp_path, suffix):
    first = load_backbone(save(tmp_path / "x.pth", torchvision_file(network())[0]))
    write_state(tmp_path / f"y{suffix}", first.state, first.describe())
    again = load_backbone(tmp_path / f"y{suffix}")
    assert (again.arch, again.source) == ("resnet18", "torchvision")
    assert all(torch.equal(first.state[name], again.state[name]) for name in first.state)


def test_a_pickle_of_arrays_is_read_whatever_protocol_wrote_it(tmp_path):
    content = {"a": np.arange(3.0), "b": {"c": np.float32(2), "d": np.zeros(0)}, "e": [1, "x", None]}
    for protocol in range(2, 6):
        (tmp_path / "x.pkl").write_bytes(pickle.dumps(content, protocol))
        with (tmp_path / "x.pkl").open("rb") as file:
            again = load_arrays(file)
        assert np.array_equal(again["a"], content["a"])
        assert again["b"]["c"] == 2
        assert again["e"] == content["e"]


class Meter:
    """Somebody's class, in a checkpoint."""

    ran = False

    def __setstate__(self, state):
        type(self).ran = True


def test_other_peoples_objects_are_passed_over_without_running_them(tmp_path):
    content = moco_v2(network())[0] | {"meter": Meter(), "args": argparse.Namespace(lr=1)}
    assert load_backbone(save(tmp_path / "x.pth", content)).source == "moco"
    assert not Meter.ran


class Executes:
    """Unpickled without care, it would run a command."""

    def __reduce__(self):
        return os.system, ("echo executed > executed",)


def broken(kind: str, path) -> None:
    state = network().state_dict()
    if kind == "missing":
        del state["layer3.0.bn1.running_var"]
    elif kind == "extra":
        state["layer3.9.conv1.weight"] = torch.zeros(1)
    elif kind == "shape":
        state["layer2.0.conv1.weight"] = torch.zeros(3, 3)
    elif kind == "nan":
        state["bn1.running_var"] = torch.full((64,), float("nan"))
    elif kind == "caffe2":
        state = {"conv1_w": torch.zeros(1)}
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
        ("nan", ["bn1.running_var holds NaN"]),
        ("caffe2", ["Caffe2", "BGR"]),
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


def test_a_checkpoint_of_ours_says_how_it_was_trained(tmp_path):
    state = load_backbone("random:resnet18").state
    recipe = {"method": "moco", "epochs": 7, "batch": 64}
    for file, content in (("ours.pth", {"recipe": recipe, "state_dict": state}), ("theirs.pth", {"state_dict": state})):
        torch.save(content, tmp_path / file)
    ours, theirs = (load_backbone(tmp_path / file).describe() for file in ("ours.pth", "theirs.pth"))
    assert (ours["method"], ours["epochs"]) == ("moco", 7) and ours["recipe"].startswith("sha256:")
    assert not {"method", "epochs", "recipe"} & theirs.keys()
