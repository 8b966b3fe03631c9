"""Verification: converted equals original, and every kind of damage to a conversion is detected."""

from __future__ import annotations

import pickle

import pytest
import torch

from adco.utils.errors import UserError
from adco.weights.backbone import load_backbone
from detection import verify, weights
from detection.verify import TOLERANCE, loaded_resnet, prove, stage_differences
from tests.adco.weights.public_checkpoints import BUILDERS, SOURCES, network
from tests.detection.helpers import converted


def worst(path, backbone, dtype=torch.float32):
    return max(stage_differences(loaded_resnet(path, backbone.arch), backbone, dtype).values())


@pytest.mark.parametrize("arch", ["resnext50_32x4d"])
def test_converted_equals_original_in_float32_and_float64(tmp_path, arch):
    backbone, arrays, out = converted(tmp_path, arch)
    assert len(arrays) == 265
    weights.write_weights(arrays, {}, out)
    for dtype in (torch.float32, torch.float64):
        assert worst(out, backbone, dtype) <= TOLERANCE[dtype]


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(builder.__name__, marks=[pytest.mark.slow] if number else [])
        for builders in SOURCES.values()
        for number, builder in enumerate(builders)
    ],
)
def test_every_projects_checkpoint_gives_that_projects_output_in_detectron2(tmp_path, name):
    """From the project's own forward pass to detectron2's, in both precisions, without our forward pass in between."""
    content, forward = BUILDERS[name][1](network())
    torch.save(content, tmp_path / "net.pth")
    weights.write_weights(weights.to_detectron2(load_backbone(tmp_path / "net.pth")), {}, tmp_path / "net.pkl")
    model = loaded_resnet(tmp_path / "net.pkl", "resnet18")
    with torch.inference_mode():
        for dtype, tolerance in TOLERANCE.items():
            images = torch.randn(1, 3, 65, 97, dtype=dtype)
            actual, expected = model.to(dtype)(images)["res5"].mean(dim=(2, 3)), forward.to(dtype)(images)
            torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def test_a_wrong_stride_arrangement_is_caught(tmp_path, monkeypatch):
    backbone, arrays, out = converted(tmp_path, "resnet50")
    weights.write_weights(arrays, {}, out)
    monkeypatch.setattr(verify, "build_resnet_backbone", stride_in_1x1(verify.build_resnet_backbone))
    assert worst(out, backbone) > 1e-2


def stride_in_1x1(build):
    """detectron2's builder as it behaves with Caffe's arrangement, whatever the config asks for."""

    def built(cfg, shape):
        cfg.MODEL.RESNETS.STRIDE_IN_1X1 = True
        return build(cfg, shape)

    return built


def test_swapped_channels_are_caught(tmp_path):
    backbone, arrays, out = converted(tmp_path, "resnet18")
    arrays["stem.conv1.weight"] = arrays["stem.conv1.weight"][:, ::-1].copy()
    weights.write_weights(arrays, {}, out)
    with pytest.raises(UserError, match="res2 .*differs|differs.*res2"):
        prove(loaded_resnet(out, "resnet18"), backbone)


def test_dropped_batchnorm_statistics_are_caught(tmp_path):
    backbone, arrays, out = converted(tmp_path, "resnet18")
    weights.write_weights({name: array for name, array in arrays.items() if "running_" not in name}, {}, out)
    with pytest.raises(UserError, match="60 of 100 tensors were loaded.*running_"):
        prove(loaded_resnet(out, "resnet18"), backbone)


def test_dropped_statistics_are_caught_even_when_they_are_those_of_a_fresh_model(tmp_path):
    backbone, out = load_backbone("random:resnet18"), tmp_path / "net.pkl"
    arrays = weights.to_detectron2(backbone)
    weights.write_weights({name: array for name, array in arrays.items() if "running_" not in name}, {}, out)
    with pytest.raises(UserError, match="60 of 100"):
        prove(loaded_resnet(out, "resnet18"), backbone)


@pytest.mark.parametrize("absent", ["__author__", "matching_heuristics"])
def test_detectron2s_silent_trap_is_caught(tmp_path, absent):
    """Without `__author__` detectron2 takes the file for Caffe2's; inside a detector the other is needed too."""
    backbone, arrays, out = converted(tmp_path, "resnet18")
    weights.write_weights(arrays, {}, out)
    content = pickle.loads(out.read_bytes())
    del content[absent]
    out.write_bytes(pickle.dumps(content))
    model = torch.nn.ModuleDict({"backbone": verify.detectron2_resnet("resnet18")})
    names = weights.backbone_tensors(model)
    with pytest.raises(UserError, match="cannot load this file|0 of 100"), verify.every_tensor_loads(model, names, "f"):
        verify.DetectionCheckpointer(model).load(str(out))
