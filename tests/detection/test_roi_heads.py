"""Complete detectors: every backbone tensor of a converted file is loaded, statistics too, or it is an error."""

from __future__ import annotations

import pytest
import torch

import detection  # noqa: F401  (patches before detectron2)

# isort: split
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model

from adco.utils.errors import UserError
from adco.weights.backbone import load_backbone
from detection.config import fit_to_hardware, load_config
from detection.register import setup_environment
from detection.verify import every_tensor_loads
from detection.weights import BACKBONE_TENSOR, backbone_tensors, to_detectron2, write_weights
from tests import ROOT
from tests.detection.helpers import save_torchvision

CONFIGS = ROOT / "detection" / "configs"


def detector(config, *overrides):
    setup_environment()
    cfg = load_config(str(CONFIGS / f"{config}.yaml"), overrides)
    fit_to_hardware(cfg, 0)
    return build_model(cfg)


def arrays_of(tmp_path, arch):
    return to_detectron2(load_backbone(save_torchvision(tmp_path / "net.pth", arch)))


def load(model, path):
    names = backbone_tensors(model)
    with every_tensor_loads(model, names, str(path)):
        DetectionCheckpointer(model).load(str(path))
    return names


@pytest.mark.parametrize(
    ("config", "arch", "count"),
    [
        ("pascal_voc_R_50_C4_24k_adco", "resnet50", 265),
        ("coco_R_50_FPN_1x_adco", "resnet50", 265),
        ("smoke_coco_R_18_C4", "resnet18", 100),
    ],
)
def test_every_backbone_tensor_loads(tmp_path, config, arch, count):
    arrays = arrays_of(tmp_path, arch)
    write_weights(arrays, {}, tmp_path / "net.pkl")
    model = detector(config)
    names = load(model, tmp_path / "net.pkl")
    assert len(names) == count == len(arrays)
    state = model.state_dict()
    for name in names:
        assert torch.equal(state[name], torch.from_numpy(arrays[BACKBONE_TENSOR.search(name)[1]])), name


def test_a_half_empty_file_is_an_error(tmp_path):
    arrays = {name: array for name, array in arrays_of(tmp_path, "resnet18").items() if "running_" not in name}
    write_weights(arrays, {}, tmp_path / "net.pkl")
    with pytest.raises(UserError, match="60 of 100 tensors were loaded"):
        load(detector("smoke_voc_R_18_C4"), tmp_path / "net.pkl")


def test_another_architecture_is_an_error(tmp_path):
    write_weights(arrays_of(tmp_path, "resnet34"), {}, tmp_path / "net.pkl")
    with pytest.raises(UserError, match="tensors were loaded|cannot load"):
        load(detector("pascal_voc_R_50_C4_24k_adco"), tmp_path / "net.pkl")


def test_an_unconverted_checkpoint_is_an_error(tmp_path):
    path = save_torchvision(tmp_path / "net.pth", "resnet18")
    with pytest.raises(UserError, match="0 of 100 tensors were loaded"):
        load(detector("smoke_voc_R_18_C4"), path)


def test_a_file_that_is_no_pickle_is_an_error(tmp_path):
    path = tmp_path / "net.pkl"
    path.write_text("<html>")
    with pytest.raises(UserError, match="cannot load this file"):
        load(detector("smoke_voc_R_18_C4"), path)


def test_the_head_ends_in_a_norm_of_its_own():
    head = detector("smoke_voc_R_18_C4").roi_heads.res5
    assert [name for name, _ in head.named_children()] == ["0", "1", "norm"]
    assert isinstance(head.norm, torch.nn.BatchNorm2d)
    assert head.norm.num_features == 512
    assert head[0].conv1.stride == (2, 2)
    plain = detector("smoke_voc_R_18_C4", "MODEL.RESNETS.NORM", "").roi_heads.res5
    assert "norm" not in dict(plain.named_children())
