"""The zoo: checksums, offline use, and `zoo://NAME` wherever a checkpoint is taken."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
import yaml

import adco
import hubconf
from adco.evaluation.records import load_record
from adco.utils.errors import UserError
from adco.utils.files import sha256_of
from adco.weights.backbone import load_backbone
from adco.weights.manifest import read_manifest
from adco.weights.zoo import download, find, models, read_record, resolve, verify
from tests import ROOT
from tests.adco.weights.misbehaving_server import BODY, MD5, OTHER, QUICK, SHA, files_of, model_of
from tools.zoo import main


def test_a_download_is_checked_recorded_and_made_once(server):
    model = model_of(server, "moved")
    path = download(model, patience=QUICK)
    assert path.read_bytes() == BODY and files_of(model) == {"m.pth", "m.json"}
    assert read_record(model)["sha256"] == SHA and read_record(model)["from"] == server.url("moved")
    assert download(model, patience=QUICK) == path and verify(model) == SHA
    assert [path for path, _ in server.asked] == ["moved", "good"]


def test_the_first_checksum_is_enforced_from_then_on(server):
    model = model_of(server, "changing")
    download(model, patience=QUICK).unlink()
    with pytest.raises(UserError, match=f"expected {SHA} .recorded on .*m.json"):
        download(model, patience=QUICK)
    assert files_of(model) == {"m.json"}


def test_damage_in_the_cache_is_found(server):
    model = model_of(server, "good", hash_prefix=f"md5:{MD5[:8]}")
    path = download(model, patience=QUICK)
    path.write_bytes(BODY[:-1] + b"x")
    for ask in (verify, download):
        with pytest.raises(UserError, match="its sha256 is .* delete it and `python tools/zoo.py download m`"):
            ask(model)
    path.write_bytes(BODY)
    model.record.write_text("{}")
    with pytest.raises(UserError, match="m.json: not readable"):
        verify(model)
    model.record.unlink()
    assert verify(model) == SHA  # by the published digits
    with pytest.raises(UserError, match="no checksum is known"):
        verify(model_of(server, "good"))


def test_offline_asks_nobody(server, monkeypatch):
    model = model_of(server, "good")
    with pytest.raises(UserError, match="offline"):
        download(model, offline=True)
    monkeypatch.setenv("ADCO_OFFLINE", "1")
    with pytest.raises(UserError, match="offline"):
        download(model)
    assert server.asked == []
    monkeypatch.setenv("ADCO_OFFLINE", "0")
    download(model, patience=QUICK)
    assert download(model, offline=True) == model.path and len(server.asked) == 1


def test_eight_at_once_download_once(server):
    model, paths = model_of(server, "good"), []
    threads = [threading.Thread(target=lambda: paths.append(download(model, patience=QUICK))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert paths == [model.path] * 8 and len(server.asked) == 1


def test_zoo_names_load_as_their_files_do(server, resnet18, capsys):
    server.resnet18 = resnet18.read_bytes()
    assert main(["add", "far", server.url("resnet18"), "--method", "MoCo", "--epochs", "3"]) == 0
    assert main(["add", "near", str(resnet18)]) == 0
    direct = load_backbone(resnet18)
    for name in ("zoo://far", "zoo://near", Path("zoo://near")):
        backbone = load_backbone(name)
        assert backbone.sha256 == direct.sha256
        assert all(torch.equal(backbone.state[key], value) for key, value in direct.state.items())
    assert find("near").layout == "torchvision" and find("near").arch == "resnet18"
    assert find("near").path.parent == resolve("zoo://far").parent
    assert [path for path, _ in server.asked] == ["resnet18"]
    assert main(["add", "near", str(resnet18)]) == 2 and "already" in capsys.readouterr().err
    assert main(["verify"]) == 0 and "4 verified" in capsys.readouterr().out  # two are the package's
    find("near").path.write_bytes(b"PK")
    assert main(["verify"]) == 2
    assert "not whole: near" in capsys.readouterr().err


def test_the_tool_reports_mistakes_in_one_line(server, capsys):
    for words, said in (
        (["show", "moco-v2-r50-800"], "did you mean moco-v2-r50-800ep?"),
        (["download", "--offline", "dino-r50"], "offline"),
        (["verify", "dino-r50"], "not whole: dino-r50"),
        (["add", "dino-r50", "absent.pth"], "absent.pth: no such file"),
        (["add", "dino-r50", "absent.pth", "--method", "x"], "--method cannot be changed"),
    ):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and error.startswith("error: ") and said in error


def test_the_tool_lists_and_shows_every_model(server, capsys):
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(models())
    for name in models():
        assert main(["show", name]) == 0
        shown = yaml.safe_load(capsys.readouterr().out)[name]
        model = models()[name]
        assert shown.get("mirrors", []) == list(model.mirrors) and shown["path"].startswith(str(model.path))
        assert shown["path"].endswith("(not there)") == (model.file is None)


def test_a_packaged_model_needs_no_network(tmp_path, server):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "small.safetensors").write_bytes(BODY)
    row = {"file": "models/small.safetensors", "sha256": SHA}
    (tmp_path / "zoo.yaml").write_text(json.dumps({"schema": 1, "models": {"small": row}}))
    small = read_manifest(tmp_path / "zoo.yaml")["small"]
    assert download(small, offline=True).read_bytes() == BODY
    small.path.write_bytes(OTHER)
    with pytest.raises(UserError, match="install again"):
        download(small, offline=True)


@pytest.mark.parametrize("tool", ["voc07", "places205", "imagenet", "knn", "linear", "convert_to_d2", "draw_bank"])
def test_every_tool_looks_a_name_up_in_the_zoo(tool, server, images, tmp_path, capsys):
    room, name = "tools", "zoo://moco-v2-r50-800"
    if tool == "convert_to_d2":
        words = [name, str(tmp_path / "x.pkl")]
    elif tool == "draw_bank":
        words = [name, "--data", str(images), "--output", str(tmp_path / "x.png")]
    else:
        room, words = "transfer", ["--checkpoint", name, "--data", str(images), "--output-dir", str(tmp_path)]
    assert importlib.import_module(f"{room}.{tool}").main(words) == 2
    assert "zoo://moco-v2-r50-800: no such model; did you mean moco-v2-r50-800ep?" in capsys.readouterr().err


def test_a_name_is_downloaded_and_used_by_the_tools(server, resnet18, images, tmp_path, capsys):
    server.resnet18, digest = resnet18.read_bytes(), sha256_of(resnet18)
    assert main(["add", "far", server.url("resnet18")]) == 0
    words = ["--checkpoint", "zoo://far", "--data", str(images), "--output-dir", str(tmp_path), "--image-px", "64"]
    assert importlib.import_module("transfer.knn").main([*words, "--workers", "0", "--k", "3"]) == 0
    record = load_record(tmp_path / "knn-k3-t0.07@64px.json")
    assert record.checkpoint.sha256 == digest and record.checkpoint.name == "far.pth"
    assert importlib.import_module("tools.convert_to_d2").main(["zoo://far", str(tmp_path / "far.pkl")]) == 0
    assert (tmp_path / "far.pkl").is_file()
    assert [path for path, _ in server.asked] == ["resnet18"]


def test_draw_bank_takes_one_of_our_own_models(server, ended_run, images, tmp_path, capsys):
    draw = importlib.import_module("tools.draw_bank").main
    assert main(["add", "mine", str(ended_run)]) == 0
    words = ["--data", str(images), "--output", str(tmp_path / "x.png"), "--workers", "0", "--rows", "64"]
    assert draw(["zoo://mine", *words, "--images", "40"]) == 0
    assert "zoo://mine/mine.pth: " in capsys.readouterr().out


def test_a_detector_starts_from_a_name(server, resnet18, tmp_path, monkeypatch):
    server.resnet18 = resnet18.read_bytes()
    assert main(["add", "far", server.url("resnet18")]) == 0
    train_net = importlib.import_module("detection.train_net")
    facts = {"name": "x", "images": 1, "boxes": 1, "classes_with_boxes": 1}
    monkeypatch.setattr(importlib.import_module("detection.datasets"), "inspect_dataset", lambda name: facts)
    config = str(ROOT / "detection/configs/smoke_voc_R_18_C4.yaml")
    words = ["--config-file", config, "--num-gpus", "0", "MODEL.WEIGHTS", "zoo://far", "OUTPUT_DIR", str(tmp_path)]
    for _ in range(2):
        _, cfg, _ = train_net.prepare(train_net.parser().parse_args(words), 0.0)
    loaded = importlib.import_module("detection.verify").loaded_resnet(Path(cfg.MODEL.WEIGHTS), "resnet18")
    assert torch.equal(loaded.stem.conv1.weight, load_backbone(resnet18).state["conv1.weight"].float())
    assert [path for path, _ in server.asked] == ["resnet18"]
    assert [path.name for path in (find("far").path.parent / "detectron2").iterdir()] == [Path(cfg.MODEL.WEIGHTS).name]


def test_adco_is_light_and_the_zoo_needs_no_torch():
    code = "import sys, adco, adco.weights.zoo, tools.zoo; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    assert adco.load_backbone is load_backbone
    with pytest.raises(AttributeError, match="'adco' has no attribute 'nothing'"):
        _ = adco.nothing


def test_torch_hub_has_every_model(server, monkeypatch):
    entries = {name for name, value in vars(hubconf).items() if callable(value) and not name.startswith("_")}
    assert entries == {name.replace("-", "_") for name in models()} | {"backbone"}
    net = torch.hub.load(str(ROOT), "backbone", "random:resnet18", source="local")
    expected = load_backbone("random:resnet18").module()
    images = torch.rand(1, 3, 64, 64)
    assert torch.equal(net(images), expected(images)) and net(images).shape == (1, 512)
    monkeypatch.setenv("ADCO_OFFLINE", "1")
    with pytest.raises(UserError, match="zoo://dino-r50: not in the cache, and offline"):
        torch.hub.load(str(ROOT), "dino_r50", source="local")
