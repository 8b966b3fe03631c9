"""Conversion in both directions by the tool; a failed one is reported in one line and writes no file."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch

from adco.models.resnet import ARCHITECTURES
from adco.weights.backbone import Backbone, load_backbone
from detection import verify, weights
from tests.adco.weights.public_checkpoints import network
from tests.detection.helpers import converted, save_torchvision, trained_state
from tools.convert_to_d2 import main


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_architecture_is_proved(tmp_path, arch):
    torch.save(network(arch).state_dict(), tmp_path / "net.pth")
    assert main([str(tmp_path / "net.pth"), str(tmp_path / "net.pkl")]) == 0
    assert main([str(tmp_path / "net.pkl"), str(tmp_path / "back.safetensors")]) == 0


def test_random_weights_need_no_file_and_every_stage_is_reported(tmp_path, capsys):
    assert main(["random:resnet18:3", str(tmp_path / "out.pkl")]) == 0
    printed = capsys.readouterr().out
    assert "worst difference, float32: res2" in printed
    assert "worst difference, float64: res2" in printed
    assert "res5" in printed


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
