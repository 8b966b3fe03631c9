"""A packed checkpoint computes the same as the original, and what cannot be packed is refused."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open

from adco.evaluation.records import Record
from adco.utils.errors import UserError
from adco.utils.files import sha256_of
from adco.weights.backbone import Backbone, load_backbone
from adco.weights.export import BOUND, features_differ, pack, rounded
from adco.weights.manifest import MANIFEST, read_manifest
from adco.weights.zoo import verify
from tests import ROOT
from tools.zoo import main


def test_a_packed_model_is_the_same_network_at_half_the_size(ended_run, tmp_path, capsys, monkeypatch):
    out = tmp_path / "models" / "adco_tiny.safetensors"
    assert main(["pack", str(ended_run), str(out), "--recipe", "adco_r18_sample", "--data", "the sample"]) == 0
    rows = yaml.safe_load(capsys.readouterr().out)
    (tmp_path / "zoo.yaml").write_text(yaml.safe_dump({"schema": 1, "models": rows}))
    model = read_manifest(tmp_path / "zoo.yaml")["adco-tiny"]
    assert (model.method, model.epochs, model.arch, model.data) == ("AdCo", 3, "resnet18", "the sample")
    assert "bank.size: 2048 -> 64" in model.note and "epochs: 20 -> 3" in model.note
    assert verify(model) == sha256_of(out) and model.path == out and model.bytes == out.stat().st_size < 23e6
    with safe_open(out, "pt") as file:
        reported = file.metadata()
    assert (reported["recipe"], reported["commit"], reported["from_sha256"]) == (
        "adco_r18_sample",
        "c" * 40,
        sha256_of(ended_run),
    )

    monkeypatch.setattr("adco.weights.zoo._packaged", lambda: {"adco-tiny": model})
    original, small = load_backbone(ended_run), load_backbone("zoo://adco-tiny")
    for name, tensor in original.state.items():
        if tensor.ndim == 4:
            assert (small.state[name] - tensor).abs().max() <= 2**-11 * tensor.abs().max()
        else:
            assert torch.equal(small.state[name], tensor), name
    assert 0 < features_differ(original, small) <= BOUND
    images = torch.rand(4, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(small.module()(images), original.module()(images), rtol=0.01, atol=0.01)


def test_what_cannot_be_packed_is_said_and_leaves_no_file(ended_run, tmp_path, monkeypatch):
    def refused(words: str, path: Path = ended_run, out: Path = tmp_path / "x.safetensors"):
        with pytest.raises(UserError, match=words):
            pack(path, out, "adco_r18_sample", "x", "MIT")
        assert not out.exists()

    refused("ends in .safetensors", out=tmp_path / "x.pth")
    other = tmp_path / "other.pth"
    other.write_bytes(ended_run.read_bytes())
    refused("record.json: not a result record", other)
    Record("pretrain/adco", {}, {"name": "y", "sha256": "0" * 64}, {"name": "x"}).write(tmp_path / "record.json")
    refused("not the record of other.pth", other)
    with monkeypatch.context() as patch:
        patch.setattr("adco.weights.export.BOUND", 1e-7)
        refused("its features change by .* more than 1e-07")
    with pytest.raises(UserError, match="conv1.weight holds values beyond"):
        rounded(ended_run, load_backbone(ended_run).state | {"conv1.weight": torch.full((2, 2, 1, 1), 1e6)})


def test_a_coarser_rounding_would_be_noticed(ended_run):
    original = load_backbone(ended_run)
    coarse = {name: tensor.bfloat16().float() for name, tensor in original.state.items()}
    assert features_differ(original, Backbone(**(vars(original) | {"state": coarse}))) > BOUND


@pytest.mark.slow
def test_an_installed_wheel_carries_its_models(ended_run, tmp_path, monkeypatch):
    """Built from a copy of the project with one more model, unpacked elsewhere, loaded with no network."""
    project, site = tmp_path / "project", tmp_path / "site"
    for name in ("adco", "detection", "transfer"):
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, project / name)
    weights = project / "adco" / "weights"
    row = pack(ended_run, weights / "models" / "tiny.safetensors", "adco_r18_sample", "x", "MIT").row
    rows = yaml.safe_load(MANIFEST.read_text())
    rows["models"]["tiny"] = row
    (weights / "zoo.yaml").write_text(yaml.safe_dump(rows))
    build = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=project, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    monkeypatch.setenv("ADCO_OFFLINE", "1")
    monkeypatch.setenv("ADCO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(site))
    code = "import adco; net = adco.load_backbone('zoo://tiny'); print(adco.__file__, net.sha256)"
    line = [sys.executable, "-c", code]
    reported = subprocess.run(line, cwd=tmp_path, check=True, capture_output=True, text=True).stdout.split()
    assert Path(reported[0]).is_relative_to(site) and reported[1] == row["sha256"]
