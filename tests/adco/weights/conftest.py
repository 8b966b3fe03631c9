"""Fixtures of the tests of this folder: the misbehaving server, and checkpoints."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from adco.config.loading import load_recipe
from adco.evaluation.records import Record
from adco.methods import build_method
from adco.train import checkpoint
from adco.utils.files import sha256_of
from tests.adco.weights.misbehaving_server import serve
from tests.adco.weights.public_checkpoints import network
from tests.detection.helpers import trained_state

server = pytest.fixture(serve)


@pytest.fixture(scope="module")
def resnet18(tmp_path_factory) -> Path:
    """A torchvision ResNet-18 in float16, as a file."""
    path = tmp_path_factory.mktemp("weights") / "r18.pth"
    torch.save({name: value.half() for name, value in network().state_dict().items()}, path)
    return path


@pytest.fixture(scope="module")
def ended_run(tmp_path_factory) -> Path:
    """The last checkpoint of a pretraining run, with BatchNorm statistics unlike a new model's, and its record."""
    folder, recipe = tmp_path_factory.mktemp("run"), load_recipe("adco_r18_sample", ["bank.size=64", "epochs=3"])
    method, state = build_method(recipe), trained_state("resnet18")
    method.encoder.backbone.load_state_dict(state)
    tensors = {"method": method.state_dict(), "optimizer": {}, "scaler": {}}
    path = checkpoint.save(folder, checkpoint.State(9, asdict(recipe), data="", bad_images={}, seconds=0, **tensors), 1)
    facts = {"name": path.name, "sha256": sha256_of(path)}
    Record("pretrain/adco", {}, facts, {"name": "x"}, asdict(recipe), commit="c" * 40).write(folder / "record.json")
    return path
