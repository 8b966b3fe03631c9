"""The examples of docs/extending.md are what they say, run, and stay short."""

from __future__ import annotations

import importlib.util
import sys

import numpy as np
import pytest
import torch

from adco import methods
from adco.config import validation
from adco.config.loading import load_recipe
from adco.evaluation.records import load_record
from adco.train.logger import read_metrics
from adco.weights.backbone import load_backbone
from tests import ROOT


def example(name: str):
    """A module of docs/examples; the caller's monkeypatch restores the tables of methods."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def barlow(monkeypatch):
    monkeypatch.setattr(methods, "METHODS", dict(methods.METHODS))
    monkeypatch.setitem(validation.CHOICES, "method", validation.CHOICES["method"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    return example("barlow_twins")


def test_the_examples_are_at_most_40_lines():
    files = list((ROOT / "docs" / "examples").glob("*.py"))
    assert len(files) >= 2 and all(len(path.read_text().splitlines()) <= 40 for path in files)


def test_the_example_objective_is_the_papers(barlow):
    """Eq. (1) of Barlow Twins with three loops: sum over i of (1 - c_ii)^2 + lambda x sum over i != j of c_ij^2."""
    method = barlow.BarlowTwins(load_recipe(ROOT / "docs/examples/barlow_twins.yaml", ["encoder.dim=5"]))
    views = [torch.randn(7, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in (0, 1)]
    loss = method.compute_loss(dict(enumerate(views)), {}, None).loss
    a, b = ([(row - view.mean(0)) / view.var(0, correction=0).sqrt() for row in view] for view in views)
    expected = 0.0
    for i in range(5):
        for j in range(5):
            c = sum(float(a[n][i] * b[n][j]) for n in range(7)) / 7
            expected += (1 - c) ** 2 if i == j else 0.005 * c**2
    assert float(loss) == pytest.approx(expected, rel=1e-12)


def test_the_example_objective_can_be_trained(barlow):
    """On one batch, two noisy views of 16 images: the loss falls by more than a half in twelve steps."""
    recipe = load_recipe(ROOT / "docs/examples/barlow_twins.yaml", ["encoder.dim=16", "encoder.head_width=64"])
    torch.manual_seed(0)
    method = barlow.BarlowTwins(recipe)
    images = torch.randn(16, 3, 32, 32)
    views = [images + 0.5 * torch.randn_like(images) for _ in range(2)]
    optimizer, losses = torch.optim.SGD(method.encoder.parameters(), 0.03, momentum=0.9), []
    for _ in range(12):
        loss = method.compute_loss(dict(enumerate(method.encoder(views))), {}, None).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_the_example_objective_runs_by_its_recipe_and_converts(barlow, images, tmp_path, capsys):
    small = ["views.0.px=32", "views.1.px=32", "batch=16", "epochs=1", "data.workers=0", "probe.every_epochs=0"]
    words = ["--config-file", str(ROOT / "docs/examples/barlow_twins.yaml"), f"data.root={images}", *small]
    assert barlow.train_adco.main([*words, "encoder.dim=32", "--device", "cpu", "--output-dir", str(tmp_path)]) == 0
    assert {"loss", "off_diagonal"} < read_metrics(tmp_path / "metrics.jsonl")[-1].keys()
    assert load_backbone(next(tmp_path.glob("checkpoint_*.pth"))).source == "adco-suite"


def test_the_example_protocol_is_what_it_says(images, tmp_path, capsys):
    module = example("nearest_mean")
    rng = np.random.default_rng(0)
    train, val, labels = rng.normal(size=(12, 4)), rng.normal(size=(5, 4)), np.arange(12) % 3
    cosines = module.votes(*map(torch.from_numpy, (train, labels, val)), 3)
    for m, row in enumerate(val):
        for c in range(3):
            mean = np.mean(
                [x / np.linalg.norm(x) for x, label in zip(train, labels, strict=True) if label == c], axis=0
            )
            expected = row @ mean / np.linalg.norm(row) / np.linalg.norm(mean)
            assert float(cosines[m, c]) == pytest.approx(expected, rel=1e-6)
    words = ["--checkpoint", "random:resnet18", "--data", str(images), "--output-dir", str(tmp_path)]
    assert module.main([*words, "--image-px", "64", "--workers", "0"]) == 0
    record = load_record(tmp_path / "nearest-mean-cosine@64px.json")
    score = record.scores["top1"]
    assert record.protocol == "nearest-mean/cosine@64px" and score.low <= score <= score.high
    assert f"top1 {score:.2f} %" in capsys.readouterr().out
