"""Names and files of converted weights: those that detectron2 needs, read without executing anything."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from adco.models.resnet import ARCHITECTURES
from adco.weights.backbone import expected_shapes
from adco.weights.layouts import from_detectron2
from detection import verify, weights
from tests.detection.helpers import save_torchvision
from tools.convert_to_d2 import main


@pytest.mark.parametrize(
    ("torchvision_name", "name"),
    [
        ("conv1.weight", "stem.conv1.weight"),
        ("bn1.running_var", "stem.conv1.norm.running_var"),
        ("layer1.0.conv1.weight", "res2.0.conv1.weight"),
        ("layer4.2.bn3.bias", "res5.2.conv3.norm.bias"),
        ("layer2.0.downsample.0.weight", "res3.0.shortcut.weight"),
        ("layer2.0.downsample.1.running_mean", "res3.0.shortcut.norm.running_mean"),
    ],
)
def test_names(torchvision_name, name):
    assert weights.detectron2_name(torchvision_name) == name


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_names_are_those_of_detectron2s_resnet(arch):
    expected = {weights.detectron2_name(name): shape for name, shape in expected_shapes(arch, "imagenet").items()}
    with torch.device("meta"):
        state = verify.detectron2_resnet(arch).state_dict()
    assert expected == {n: tuple(t.shape) for n, t in state.items() if not n.endswith("num_batches_tracked")}
    assert [from_detectron2(name) for name in expected] == list(expected_shapes(arch, "imagenet"))


def test_the_pickle_has_what_detectron2_needs(tmp_path):
    out = tmp_path / "net.pkl"
    checkpoint = save_torchvision(tmp_path / "net.pth", "resnet18")
    assert main([str(checkpoint), str(out)]) == 0
    content = pickle.loads(out.read_bytes())
    assert content["matching_heuristics"] is True
    assert content["__author__"] == "adco"
    assert all(isinstance(array, np.ndarray) and array.dtype == np.float32 for array in content["model"].values())
    assert weights.origin_of(out)["name"] == "net.pth"


def test_reading_a_files_origin_runs_nothing(tmp_path, monkeypatch):
    import os
    import pickle

    from detection.weights import origin_of

    class Executes:
        def __reduce__(self):
            return os.system, ("echo executed > executed",)

    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"__author__": Executes(), "origin": {"name": "x"}}))
    assert origin_of(tmp_path / "x.pkl") == {}
    assert not (tmp_path / "executed").exists()
