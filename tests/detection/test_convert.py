"""Conversion to detectron2: converted equals original, and every way of being wrong is caught."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch

from adco.models.resnet import ARCHITECTURES
from adco.utils.errors import UserError
from adco.weights.backbone import Backbone, expected_shapes, load_backbone
from adco.weights.layouts import from_detectron2
from detection import verify, weights
from detection.verify import TOLERANCE, loaded_resnet, prove, stage_differences
from tests.adco.weights.public_checkpoints import BUILDERS, SOURCES, network
from tests.detection.helpers import save_torchvision, trained_state
from tools.convert_to_d2 import main


def converted(tmp_path, arch):
    backbone = load_backbone(save_torchvision(tmp_path / "net.pth", arch))
    return backbone, weights.to_detectron2(backbone), tmp_path / "net.pkl"


def worst(path, backbone, dtype=torch.float32):
    return max(stage_differences(loaded_resnet(path, backbone.arch), backbone, dtype).values())


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


@pytest.mark.parametrize("arch", ["resnext50_32x4d"])
def test_converted_equals_original_in_float32_and_float64(tmp_path, arch):
    backbone, arrays, out = converted(tmp_path, arch)
    assert len(arrays) == 265
    weights.write_weights(arrays, {}, out)
    for dtype in (torch.float32, torch.float64):
        assert worst(out, backbone, dtype) <= TOLERANCE[dtype]


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_architecture_is_proved(tmp_path, arch):
    torch.save(network(arch).state_dict(), tmp_path / "net.pth")
    assert main([str(tmp_path / "net.pth"), str(tmp_path / "net.pkl")]) == 0
    assert main([str(tmp_path / "net.pkl"), str(tmp_path / "back.safetensors")]) == 0


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
    """From the project's own forward pass to detectron2's, in both precisions: nothing of ours in between."""
    content, forward = BUILDERS[name][1](network())
    torch.save(content, tmp_path / "net.pth")
    weights.write_weights(weights.to_detectron2(load_backbone(tmp_path / "net.pth")), {}, tmp_path / "net.pkl")
    model = loaded_resnet(tmp_path / "net.pkl", "resnet18")
    with torch.inference_mode():
        for dtype, tolerance in TOLERANCE.items():
            images = torch.randn(1, 3, 65, 97, dtype=dtype)
            found, expected = model.to(dtype)(images)["res5"].mean(dim=(2, 3)), forward.to(dtype)(images)
            torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_the_pickle_has_what_detectron2_needs(tmp_path):
    out = tmp_path / "net.pkl"
    checkpoint = save_torchvision(tmp_path / "net.pth", "resnet18")
    assert main([str(checkpoint), str(out)]) == 0
    content = pickle.loads(out.read_bytes())
    assert content["matching_heuristics"] is True
    assert content["__author__"] == "adco"
    assert all(isinstance(array, np.ndarray) and array.dtype == np.float32 for array in content["model"].values())
    assert weights.origin_of(out)["name"] == "net.pth"


def test_random_weights_need_no_file_and_every_stage_is_reported(tmp_path, capsys):
    assert main(["random:resnet18:3", str(tmp_path / "out.pkl")]) == 0
    printed = capsys.readouterr().out
    assert "worst difference, float32: res2" in printed
    assert "worst difference, float64: res2" in printed
    assert "res5" in printed


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


def test_rgb_read_as_bgr_is_caught_on_the_way_back(tmp_path, monkeypatch, capsys):
    """The same plant in a file of detectron2's: what is written differs from what detectron2 computes."""
    _, arrays, out = converted(tmp_path, "resnet18")
    weights.write_weights(arrays, {}, out)
    write = weights.write_state

    def swapped(path, state, origin):
        write(path, state | {"conv1.weight": state["conv1.weight"].flip(1)}, origin)

    monkeypatch.setattr(weights, "write_state", swapped)
    assert main([str(out), str(tmp_path / "back.pth")]) == 2
    assert "reads back differently" in capsys.readouterr().err
    assert not (tmp_path / "back.pth").exists()


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


@pytest.mark.parametrize("argv", [["out"], ["out.pth", "--to", "detectron2"], ["out.pkl", "--source", "moko"]])
def test_an_output_or_source_that_does_not_fit_is_one_line(tmp_path, capsys, argv):
    assert main(["random:resnet18", str(tmp_path / argv[0]), *argv[1:]]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def detector_file(path, arch="resnet18", fpn=False, **config):
    """A fine-tuned detector's model_final.pth as detectron2 names it, and its config.yaml. Returns the backbone."""
    backbone = Backbone(
        arch, "imagenet", load_backbone(save_torchvision(path.parent / "x.pth", arch)).state, "", "", ""
    )
    place = {True: lambda n: "backbone.bottom_up.", False: lambda n: "roi_heads." if n[:4] == "res5" else "backbone."}[
        fpn
    ]
    model = {place(name) + name: torch.from_numpy(array) for name, array in weights.to_detectron2(backbone).items()}
    model |= {
        "backbone.stem.conv1.norm.num_batches_tracked" if not fpn else "backbone.fpn_lateral2.weight": torch.ones(1)
    }
    model |= {
        "proposal_generator.rpn_head.conv.weight": torch.ones(2),
        "roi_heads.box_predictor.bbox_pred.bias": torch.ones(2),
    }
    model |= {"pixel_mean": torch.ones(3, 1, 1)} if fpn else {"roi_heads.res5.norm.weight": torch.ones(2)}
    torch.save({"model": model, "optimizer": {}, "iteration": 7}, path)
    if config:
        sections = {"FORMAT": "INPUT", "STRIDE_IN_1X1": "RESNETS", "PIXEL_STD": "MODEL"}
        given = {"FORMAT": "RGB", "STRIDE_IN_1X1": False, "PIXEL_STD": verify.PIXEL_STD} | config
        assert given.keys() == sections.keys()
        path.with_name("config.yaml").write_text(
            f"VERSION: 2\nINPUT: {{FORMAT: {given['FORMAT']}}}\n"
            f"MODEL: {{PIXEL_STD: {given['PIXEL_STD']}, RESNETS: {{STRIDE_IN_1X1: {given['STRIDE_IN_1X1']}}}}}\n"
        )
    return backbone


@pytest.mark.parametrize("fpn", [False, True])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_the_way_back_from_a_fine_tuned_detector(tmp_path, capsys, fpn, suffix):
    backbone = detector_file(tmp_path / "model_final.pth", fpn=fpn, FORMAT="RGB")
    assert main([str(tmp_path / "model_final.pth"), str(tmp_path / f"back{suffix}"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["source"], facts["tensors"], facts["to"], facts["verified"]) == (
        "detectron2",
        100,
        "torchvision",
        True,
    )
    assert "config.yaml beside it: RGB" in facts["notes"][0]
    assert max(facts["worst_difference"]["float32"].values()) <= 1e-5
    assert max(facts["worst_difference"]["float64"].values()) <= 1e-10
    (dropped,) = facts["dropped"].values()
    assert {"proposal_generator.rpn_head.conv.weight", "roi_heads.box_predictor.bbox_pred.bias"} < set(dropped)
    again = load_backbone(tmp_path / f"back{suffix}")
    assert all(torch.equal(again.state[name], backbone.state[name]) for name in backbone.state)


@pytest.mark.parametrize("config", [{"FORMAT": "BGR"}, {"STRIDE_IN_1X1": True}, {"PIXEL_STD": [1.0, 1.0, 1.0]}])
def test_a_detector_that_no_torchvision_network_equals_is_refused(tmp_path, capsys, config):
    detector_file(tmp_path / "model_final.pth", **config)
    assert main([str(tmp_path / "model_final.pth"), str(tmp_path / "back.pth")]) == 2
    assert f"{next(iter(config))} is " in capsys.readouterr().err
    assert not (tmp_path / "back.pth").exists()


def test_there_and_back_again_is_the_same(tmp_path, capsys):
    checkpoint = save_torchvision(tmp_path / "net.pth", "resnet18")
    assert main([str(checkpoint), str(tmp_path / "net.pkl")]) == 0
    assert main([str(tmp_path / "net.pkl"), str(tmp_path / "back.safetensors")]) == 0
    assert "dropped 2, classifier: fc.weight, fc.bias" in capsys.readouterr().out
    first, again = load_backbone(checkpoint), load_backbone(tmp_path / "back.safetensors")
    assert all(torch.equal(first.state[name], again.state[name]) for name in first.state)


def test_detectron2s_own_copy_of_torchvisions_network_is_read(tmp_path):
    """ImageNetPretrained/torchvision/R-50.pkl keeps torchvision's classifier as `stem.fc`."""
    _, arrays, _ = converted(tmp_path, "resnet18")
    content = {"model": arrays | {"stem.fc.weight": np.zeros((2, 2))}, "__author__": "torchvision"}
    (tmp_path / "R-18.pkl").write_bytes(pickle.dumps(content | {"matching_heuristics": True}, protocol=2))
    backbone = load_backbone(tmp_path / "R-18.pkl")
    assert (backbone.source, backbone.arch, dict(backbone.dropped)) == (
        "detectron2", "resnet18", {"stem.fc.weight": "classifier"},
    )  # fmt: skip


def test_a_small_stem_goes_to_torchvision_only(tmp_path, capsys):
    small_stem(tmp_path / "net.pth")
    assert main([str(tmp_path / "net.pth"), str(tmp_path / "net.safetensors")]) == 0
    assert "bit for bit" in capsys.readouterr().out
    assert load_backbone(tmp_path / "net.safetensors").stem == "small"


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
