"""A checkpoint that was written before packages, classes and functions had the names they have now."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path

import torch

from adco.config.diff import changed_fields
from adco.config.loading import as_recipe
from adco.train import checkpoint
from adco.train.trainer import Trainer
from adco.utils.files import sha256_of
from tests.conftest import write_pictures
from tests.faults import toy

OLD = Path(__file__).with_name("data") / "checkpoint_of_0.1.0.pt"  # 4 steps of tests/faults/toy.py's small AdCo


def test_its_recipe_reads_as_it_was_written():
    recipe = checkpoint.load(OLD).recipe
    assert recipe["bank"]["size"] == 24 and recipe["views"][0]["px"] == 16
    assert changed_fields(recipe, asdict(as_recipe(OLD, recipe))) == []
    assert asdict(as_recipe(OLD, recipe)) == recipe


def test_a_run_goes_on_from_it(tmp_path):
    path = shutil.copy(OLD, tmp_path / "checkpoint_00000004.pth")
    Path(f"{path}.sha256").write_text(f"{sha256_of(path)}  checkpoint_00000004.pth\n")
    images = write_pictures(tmp_path / "images" / "train", 2, 12).parent
    state = checkpoint.load(OLD)
    recipe = as_recipe(OLD, state.recipe | {"epochs": 3, "data": state.recipe["data"] | {"root": str(images)}})
    with toy.small():
        run = Trainer(recipe, tmp_path, toy.CPU, resume=True, force=True)  # other images, another length
        assert run.step == 4
        loaded = run.method.state_dict()
        assert loaded.keys() == state.method.keys()
        assert all(torch.equal(loaded[name], state.method[name]) for name in loaded)
        assert run.fit().name == "checkpoint_00000006.pth"
