"""Conversion to detectron2: converted equals original, and every way of being wrong is caught."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from adco.backbone import expected_shapes, load_backbone
from adco.errors import UserError
from detection import verify, weights
from detection.verify import TOLERANCE, check_differences, stage_differences
from tests.detection_helpers import save_moco, save_torchvision, trained_state
from tools.convert_to_d2 import main

TENSORS = {"resnet18": 100, "resnet50": 265}


def converted(tmp_path, arch):
    backbone = load_backbone(save_torchvision(tmp_path / "net.pth", arch))
    return backbone, weights.to_detectron2(backbone), tmp_path / "net.pkl"


def worst(path, backbone, dtype=torch.float32):
    return max(stage_differences(path, backbone, dtype).values())


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


@pytest.mark.parametrize("arch", ["resnet18", "resnet34", "resnet50", "resnet101"])
def test_names_are_those_of_detectron2s_resnet(arch):
    expected = {weights.detectron2_name(name): shape for name, shape in expected_shapes(arch, "imagenet").items()}
    state = verify.detectron2_resnet(arch).state_dict()
    assert expected == {n: tuple(t.shape) for n, t in state.items() if not n.endswith("num_batches_tracked")}


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_converted_equals_original_in_float32_and_float64(tmp_path, arch):
    backbone, arrays, out = converted(tmp_path, arch)
    assert len(arrays) == TENSORS[arch]
    weights.write_weights(arrays, {}, out)
    for dtype in (torch.float32, torch.float64):
        assert worst(out, backbone, dtype) <= TOLERANCE[dtype]


def test_the_pickle_has_what_detectron2_needs(tmp_path):
    out = tmp_path / "net.pkl"
    checkpoint = save_torchvision(tmp_path / "net.pth", "resnet18")
    assert main([str(checkpoint), str(out)]) == 0
    content = pickle.loads(out.read_bytes())
    assert content["matching_heuristics"] is True
    assert content["__author__"] == "adco"
    assert all(isinstance(array, np.ndarray) and array.dtype == np.float32 for array in content["model"].values())
    assert weights.origin_of(out)["name"] == "net.pth"


def test_moco_and_torchvision_layouts_give_the_same_arrays(tmp_path, capsys):
    for name, save in (("moco", save_moco), ("torchvision", save_torchvision)):
        checkpoint = save(tmp_path / f"{name}.pth", "resnet50")
        assert main([str(checkpoint), str(tmp_path / f"{name}.pkl"), "--no-verify"]) == 0
    assert capsys.readouterr().out.count("265 tensors") == 2
    moco, torchvision = (pickle.loads((tmp_path / f"{n}.pkl").read_bytes())["model"] for n in ("moco", "torchvision"))
    assert moco.keys() == torchvision.keys()
    assert all(np.array_equal(moco[name], torchvision[name]) for name in moco)


def test_random_weights_need_no_file_and_every_stage_is_reported(tmp_path, capsys):
    assert main(["random:resnet18:3", str(tmp_path / "out.pkl")]) == 0
    printed = capsys.readouterr().out
    assert all(f"{stage}: worst difference" in printed for stage in ("res2", "res3", "res4", "res5"))


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
        check_differences(stage_differences(out, backbone), 1e-5)


def test_dropped_batchnorm_statistics_are_caught(tmp_path):
    backbone, arrays, out = converted(tmp_path, "resnet18")
    weights.write_weights({name: array for name, array in arrays.items() if "running_" not in name}, {}, out)
    with pytest.raises(UserError, match="60 of 100 tensors were loaded.*running_"):
        stage_differences(out, backbone)


def test_dropped_statistics_are_caught_even_when_they_are_those_of_a_fresh_model(tmp_path):
    backbone, out = load_backbone("random:resnet18"), tmp_path / "net.pkl"
    arrays = weights.to_detectron2(backbone)
    weights.write_weights({name: array for name, array in arrays.items() if "running_" not in name}, {}, out)
    with pytest.raises(UserError, match="60 of 100"):
        stage_differences(out, backbone)


@pytest.mark.parametrize("absent", ["__author__", "matching_heuristics"])
def test_detectron2s_silent_trap_is_caught(tmp_path, absent):
    """Without `__author__` detectron2 takes the file for Caffe2's; inside a detector the other is needed too."""
    backbone, arrays, out = converted(tmp_path, "resnet18")
    weights.write_weights(arrays, {}, out)
    content = pickle.loads(out.read_bytes())
    del content[absent]
    out.write_bytes(pickle.dumps(content))
    model = torch.nn.ModuleDict({"backbone": verify.detectron2_resnet("resnet18")})
    names = weights.backbone_tensors(list(model.state_dict()))
    with pytest.raises(UserError, match="cannot load this file|0 of 100"), verify.every_tensor_loads(model, names, "f"):
        verify.DetectionCheckpointer(model).load(str(out))


def test_a_half_loaded_file_is_caught_and_nothing_is_left(tmp_path, monkeypatch, capsys):
    half = {name: array for k, (name, array) in enumerate(converted(tmp_path, "resnet18")[1].items()) if k % 2}
    monkeypatch.setattr(weights, "to_detectron2", lambda backbone: half)
    assert main(["random:resnet18", str(tmp_path / "new" / "out.pkl")]) == 2
    error = capsys.readouterr().err
    assert "50 of 100 tensors were loaded" in error
    assert list((tmp_path / "new").iterdir()) == []


def test_a_failed_conversion_leaves_the_older_file_alone(tmp_path, monkeypatch):
    out = tmp_path / "out.pkl"
    out.write_bytes(b"older")
    monkeypatch.setattr(weights, "to_detectron2", lambda backbone: {})
    assert main(["random:resnet18", str(out)]) == 2
    assert out.read_bytes() == b"older"


def web_page(path):
    path.write_text("<!DOCTYPE html><html>sign in</html>")


def truncated(path):
    save_torchvision(path, "resnet18")
    path.write_bytes(path.read_bytes()[:100_000])


def another_architecture(path):
    state = trained_state("resnet18")
    torch.save({name: tensor for name, tensor in state.items() if not name.startswith("layer4.1")}, path)


def small_stem(path):
    state = trained_state("resnet18")
    torch.save(state | {"conv1.weight": torch.zeros(64, 3, 3, 3)}, path)


def absent(path):
    pass


@pytest.mark.parametrize("spoil", [web_page, truncated, another_architecture, small_stem, absent])
def test_a_wrong_checkpoint_is_one_line_and_exit_2(tmp_path, capsys, spoil):
    checkpoint, out = tmp_path / "net.pth", tmp_path / "out.pkl"
    spoil(checkpoint)
    assert main([str(checkpoint), str(out)]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1
    assert not out.exists()


@pytest.mark.parametrize("name", ["out.pth", "out"])
def test_the_output_must_be_a_pkl(tmp_path, capsys, name):
    assert main(["random:resnet18", str(tmp_path / name)]) == 2
    assert ".pkl" in capsys.readouterr().err


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
