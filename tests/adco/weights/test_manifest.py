"""The manifest against the code that it names, and every mistake in a manifest named."""

from __future__ import annotations

import json

import pytest

from adco.utils.errors import UserError
from adco.weights.layouts import SOURCES
from adco.weights.manifest import MANIFEST, read_manifest
from adco.weights.zoo import models
from tests import ROOT
from tests.adco.weights.misbehaving_server import SHA


def test_every_name_in_the_manifest_is_one_of_ours():
    code = "".join((ROOT / "transfer" / file / "protocols.py").read_text() for file in ("classifier", "svm"))
    for model in read_manifest(MANIFEST).values():
        assert model.layout in SOURCES and model.licence and model.source and model.method, model.name
        assert model.recipe is None or (ROOT / f"adco/recipes/{model.recipe}.yaml").is_file(), model.name
        assert model.file is None or model.path.is_file(), model.name
        for score in model.scores:
            room, _, name = score["protocol"].partition("/")
            known = f'"{score["protocol"]}"' in code or room == "own"
            assert known or (ROOT / f"detection/configs/{name}_adco.yaml").is_file(), score
            metrics = [value for key, value in score.items() if key not in ("protocol", "source")]
            assert metrics and all(0 < value < 100 for value in metrics), score


def test_torchvisions_rows_are_torchvisions():
    from torchvision.models import ResNet18_Weights, ResNet50_Weights

    for weights in (ResNet50_Weights.IMAGENET1K_V1, ResNet50_Weights.IMAGENET1K_V2, ResNet18_Weights.IMAGENET1K_V1):
        (row,) = (model for model in models().values() if weights.url in model.mirrors)
        assert row.hash_prefix == "sha256:" + weights.url.split("-")[-1].removesuffix(".pth")
        assert row.bytes is None or round(row.bytes / 2**20, 3) == pytest.approx(weights.meta["_file_size"], abs=1e-3)
        assert row.scores[0]["top1"] == weights.meta["_metrics"]["ImageNet-1K"]["acc@1"]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"mirors": ["http://x/y"]}, "unknown key 'mirors'; did you mean mirrors"),
        ({"mirrors": ["file:///x"]}, "mirrors: expected a list of http"),
        ({"mirrors": "http://x/y"}, "mirrors: expected a list"),
        ({}, "file: expected mirrors or else"),
        ({"mirrors": ["http://x/y"], "file": "a.pth", "sha256": SHA}, "file: expected mirrors or else"),
        ({"file": "../a.pth", "sha256": SHA}, "file: expected"),
        ({"file": "a.pth"}, "sha256: expected 64 digits"),
        ({"mirrors": ["http://x/y"], "hash_prefix": "0676ba61"}, "hash_prefix: expected sha256: or md5:"),
        ({"mirrors": ["http://x/y"], "bytes": "97 MB"}, "bytes: expected a whole number"),
        ({"mirrors": ["http://x/y"], "scores": [{"top1": 70}]}, "scores: expected protocol"),
    ],
)
def test_a_fault_in_a_manifest_is_named(tmp_path, row, words):
    file = tmp_path / "zoo.yaml"
    file.write_text(json.dumps({"schema": 1, "models": {"some-model": row}}))
    with pytest.raises(UserError, match=f"zoo.yaml: some-model: {words}"):
        read_manifest(file)
