"""detectron2's own loader executes nothing of a file, and never loads a part of a backbone."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest
import torch

import detection  # noqa: F401  (patches before detectron2)

# isort: split
from detectron2.checkpoint import DetectionCheckpointer

from adco.utils.errors import UserError
from adco.weights.backbone import load_backbone
from detection.register import setup_environment
from detection.verify import detectron2_resnet
from detection.weights import to_detectron2, write_weights


class Executes:
    """Unpickled without care, it would run a command."""

    def __reduce__(self):
        return os.system, ("echo executed > executed",)


@pytest.fixture
def checkpointer():
    setup_environment()
    return DetectionCheckpointer(detectron2_resnet("resnet18"))


@pytest.fixture(scope="module")
def arrays():
    return to_detectron2(load_backbone("random:resnet18"))


def test_what_detectron2_unpickles_is_not_run(tmp_path, monkeypatch, checkpointer):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"model": {"a": Executes()}, "__author__": "x"}))
    with pytest.raises(UserError, match="x.pkl: detectron2 cannot load this file: .*system is refused"):
        checkpointer.load("x.pkl")
    torch.save({"model": Executes()}, tmp_path / "x.pth")
    with pytest.raises(UserError, match="x.pth: detectron2 cannot load this file"):
        checkpointer.load("x.pth")
    assert not (tmp_path / "executed").exists()


def test_all_tensors_are_counted_and_reported(tmp_path, checkpointer, arrays, capsys):
    write_weights(arrays, {}, tmp_path / "x.pkl")
    checkpointer.load(str(tmp_path / "x.pkl"))
    assert (checkpointer.backbone_loaded, checkpointer.backbone_total) == (100, 100)
    assert "backbone: 100 of 100 tensors loaded, from" in capsys.readouterr().out
    checkpointer.load("")
    assert checkpointer.backbone_loaded == 0
    assert "0 of 100 tensors loaded, random initialisation" in capsys.readouterr().out


@pytest.mark.parametrize(("keep", "count"), [(lambda name: False, 0), (lambda name: "running_" not in name, 60)])
def test_none_or_fewer_than_all_stops(tmp_path, checkpointer, arrays, keep, count):
    kept = {name: array for name, array in arrays.items() if keep(name)} | {"other": np.zeros(1)}
    write_weights(kept, {}, tmp_path / "x.pkl")
    with pytest.raises(UserError, match=f"{count} of 100 tensors were loaded"):
        checkpointer.load(str(tmp_path / "x.pkl"))


def test_the_check_is_installed_once(checkpointer):
    before = DetectionCheckpointer.load
    setup_environment()
    assert DetectionCheckpointer.load is before


def test_a_model_without_a_resnet_is_left_alone(tmp_path):
    setup_environment()
    model = torch.nn.Linear(2, 2)
    torch.save({"model": {"weight": torch.ones(2, 2), "bias": torch.ones(2)}}, tmp_path / "x.pth")
    DetectionCheckpointer(model).load(str(tmp_path / "x.pth"))
    assert torch.equal(model.weight, torch.ones(2, 2))
