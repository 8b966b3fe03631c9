"""Which rows are outliers, and that the tool reads our checkpoints, draws them, and says what is wrong in one line."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from adco.config.loading import load_recipe
from adco.data.images import index_folder
from adco.methods import build_method
from adco.report import bank_tsne
from tools import draw_bank


def test_outliers_are_rows_farther_from_every_query_than_queries_are_from_each_other():
    """Queries at 0, 1, 2 and 4 degrees: their nearest other query is at 1, 1, 1 and 2 degrees."""

    def at(*degrees: float) -> torch.Tensor:
        angles = torch.tensor(degrees).deg2rad().double()
        return torch.stack([angles.cos(), angles.sin()], dim=1)

    outliers = bank_tsne.outliers(at(0, 1, 2, 4), at(0.5, 4.9, 6.5, -1.5, 180), percentile=0)
    assert outliers.floor == pytest.approx(np.cos(np.deg2rad(2)), abs=1e-9)
    assert outliers.mask.tolist() == [False, False, True, False, True]
    assert outliers.share == pytest.approx(0.4)
    outliers = bank_tsne.outliers(at(0, 1, 2, 4), at(-1.5), percentile=50)  # now 1 degree is the limit
    assert outliers.mask.tolist() == [True]


def test_a_bank_spread_as_the_queries_are_has_the_percentile_as_outliers_and_a_distant_one_all():
    generator = torch.Generator().manual_seed(0)
    points = F.normalize(torch.randn(4000, 8, generator=generator), dim=1)
    assert bank_tsne.outliers(points[:2000], points[2000:]).share == pytest.approx(0.05, abs=0.02)
    half = points * torch.where(points[:, :1] > 0, 1.0, -1.0)  # one side of the sphere against the other
    assert bank_tsne.outliers(half[:2000], -half[2000:]).share > 0.5


def checkpoint(folder, method: str, bank: str | None = "rows"):
    """A checkpoint as tools/train_adco.py writes it, of a network that has seen nothing."""
    views = ["views.0.px=32", "views.1.px=32"]
    small = ["encoder.arch=resnet18", "encoder.dim=16", "bank.size=64", "batch=8", "bank.init=encode", *views]
    recipe = load_recipe("adco_r50_200ep", [f"method={method}", *small])
    torch.manual_seed(0)
    state = build_method(recipe).state_dict()
    if bank is None:
        state = {name: value for name, value in state.items() if not name.startswith("bank.")}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "checkpoint_00000012.pth"
    torch.save({"schema": 1, "step": 12, "recipe": asdict(recipe), "method": state}, path)
    return path


def run(images, output, *checkpoints, **options) -> int:
    options = {"data": images, "output": output, "rows": 30, "images": 40, "workers": 0, "device": "cpu"} | options
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return draw_bank.main([*map(str, checkpoints), *words])


def test_adco_beside_moco(images, tmp_path, capsys):
    paths = [checkpoint(tmp_path / method, method) for method in ("adco", "moco")]
    output = tmp_path / "new" / "figure.png"
    assert run(images, output, *paths) == 0
    with Image.open(output) as image:
        width, height = image.size
        colors = {color for _, color in image.convert("RGB").getcolors(1 << 20)}
    assert width > 1.5 * height
    assert tuple(bytes.fromhex(bank_tsne.FAR[1:])) in colors  # random rows are far from the queries
    reported = json.loads(output.with_suffix(".json").read_text())
    assert [(row["name"], row["method"], row["step"]) for row in reported["runs"]] == [
        ("adco", "adco", 12),
        ("moco",) * 2 + (12,),
    ]
    for row in reported["runs"]:
        assert row["outlier_share"] == 1
        assert (row["bank_rows"], row["queries"]) == (64, 40)
    assert reported["settings"] == {
        "rows": 30, "images": 40, "seed": 0, "outlier_percentile": 5.0, "precision": "float32",
    }  # fmt: skip
    assert "100.0% of 64 rows are outliers" in capsys.readouterr().out


def test_the_queries_are_those_of_the_checkpoints_encoder_and_unreadable_images_are_left_out(
    images, tmp_path, monkeypatch
):
    shutil.copytree(images / "train", tmp_path / "data")
    (tmp_path / "data" / "class1" / "003.png").write_bytes(b"not an image")
    loaded, index = bank_tsne.load_run(checkpoint(tmp_path / "adco", "adco")), index_folder(tmp_path / "data")
    queries = bank_tsne.queries_of(loaded, index, 1000, 0, torch.device("cpu"), 0)
    assert queries.shape == (47, 16)
    assert torch.allclose(queries.norm(dim=1), torch.ones(47))
    monkeypatch.setattr(os, "fork", None)
    assert torch.equal(queries, bank_tsne.queries_of(loaded, index, 1000, 0, torch.device("cpu"), 3))
    with torch.no_grad():
        for parameter in loaded.encoder.get_submodule("head.2").parameters():  # the last layer
            parameter.neg_()
    assert torch.allclose(-queries, bank_tsne.queries_of(loaded, index, 1000, 0, torch.device("cpu"), 0), atol=1e-5)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("absent", "no such checkpoint file"),
        ("text", "not readable"),
        ("foreign", "not a checkpoint of tools/train_adco.py"),
        ("no bank", "adco has no bank; give checkpoints of adco, caco, moco, mochi"),
        ("misshapen", "its query encoder does not fit its own recipe"),
        ("output", "expected a name that ends in .png"),
        ("data", "no such image folder"),
        ("rows", "--rows 1: expected at least 10"),
        ("workers", "--workers many: expected auto or a number of threads"),
    ],
)
def test_what_is_wrong_is_one_line_and_nothing_is_written(fault, words, images, tmp_path, capsys):
    path, output, options = tmp_path / "run" / "checkpoint_00000012.pth", tmp_path / "figure.png", {}
    if fault != "absent":
        path = checkpoint(tmp_path / "run", "adco", None if fault == "no bank" else "rows")
    if fault == "text":
        path.write_text("not a checkpoint")
    if fault == "foreign":
        torch.save({"state_dict": {"weight": torch.zeros(1)}}, path)
    if fault == "misshapen":
        content = torch.load(path)
        content["method"]["encoder.head.2.weight"] = torch.zeros(3, 3)
        torch.save(content, path)
    output = tmp_path / "figure.pdf" if fault == "output" else output
    options = {"rows": {"rows": 1}, "workers": {"workers": "many"}}.get(fault, options)
    assert run(tmp_path / "absent" if fault == "data" else images, output, path, **options) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1
    assert errors[0].startswith("error: ")
    assert words in errors[0]
    assert not output.exists()
    assert not output.with_suffix(".json").exists()
