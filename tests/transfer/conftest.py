"""Fixtures of the tests of transfer/: an image folder and a backbone with random weights."""

from __future__ import annotations

import pytest

from adco.weights.backbone import load_backbone
from tests.transfer.data import make_folder, make_voc


@pytest.fixture
def folder(tmp_path):
    """An image folder with train/CLASS and val/CLASS."""
    return make_folder(tmp_path / "shapes")


@pytest.fixture(scope="session")
def backbone():
    """A ResNet-18 with random weights."""
    return load_backbone("random:resnet18")


@pytest.fixture
def voc(tmp_path):
    """VOCdevkit/VOC2007 with three classes, 24 trainval and 12 test images."""
    return make_voc(tmp_path / "data")
