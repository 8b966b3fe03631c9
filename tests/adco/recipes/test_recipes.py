"""The recipes: their headers, their published hyper-parameters and scores, and a training step of each."""

from __future__ import annotations

from dataclasses import asdict, replace
from unittest import mock

import pytest
import torch
import yaml

from adco.config.diff import recipe_name
from adco.config.loading import RECIPES, load_recipe
from adco.config.validation import METHOD_NAMES
from adco.methods import build_method
from adco.methods.base import TrainingProgress
from adco.train.gradient_cache import backward, split
from adco.train.optimizer import build_optimizer
from tests.adco.methods.test_many_ranks import tiny_backbone

NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml"))
PUBLISHED = {  # name: (method, epochs, batch, rows of the bank, views, ImageNet linear top-1 as published)
    "adco_r50_200ep": ("adco", 200, 256, 65536, 2, 68.6),
    "adco_r50_200ep_k16384": ("adco", 200, 256, 16384, 2, 68.6),
    "adco_r50_200ep_k8192": ("adco", 200, 256, 8192, 2, 68.4),
    "adco_r50_sym_200ep": ("adco", 200, 256, 65536, 2, 70.6),
    "adco_r50_sym_200ep_k16384": ("adco", 200, 256, 16384, 2, 70.2),
    "adco_r50_sym_200ep_k8192": ("adco", 200, 256, 8192, 2, 70.2),
    "adco_r50_multicrop_200ep": ("adco", 200, 256, 65536, 6, 73.2),
    "adco_r50_multicrop_sym_200ep": ("adco", 200, 256, 65536, 6, 73.6),
    "adco_r50_800ep": ("adco", 800, 256, 65536, 2, 72.8),
    "adco_r50_multicrop_800ep": ("adco", 800, 1024, 65536, 6, 75.7),
    "caco_r50_200ep_b1024": ("caco", 200, 1024, 65536, 2, 71.3),
    "caco_r50_200ep_b4096": ("caco", 200, 4096, 65536, 2, 72.0),
    "caco_r50_800ep_b4096": ("caco", 800, 4096, 65536, 2, 75.3),
    "caco_r50_multicrop_800ep_b2048": ("caco", 800, 2048, 65536, 8, 75.7),
    "moco_r50_200ep": ("moco", 200, 256, 65536, 2, 67.5),
    "mochi_r50_200ep": ("mochi", 200, 512, 65536, 2, 68.0),
    "simclr_r50_200ep": ("simclr", 200, 8192, None, 2, 67.0),
    "byol_r50_200ep": ("byol", 200, 4096, None, 2, 70.6),
    "simsiam_r50_200ep": ("simsiam", 200, 256, None, 2, 70.0),
    "swav_r50_multicrop_200ep": ("swav", 200, 256, None, 8, 72.7),
}


def header(name: str) -> dict[str, str]:
    """Each entry of a recipe's header with its text on one line."""
    entries, entry = {}, None
    for line in (RECIPES / f"{name}.yaml").read_text().splitlines():
        if not line.startswith("# "):
            continue
        label, colon, text = line[2:].partition(":")
        if colon and label in ("command", "hardware", "expected", "choices"):
            entry, line = label, f"# {text}"
        if entry:
            entries[entry] = f"{entries.get(entry, '')} {line[2:].strip()}".strip()
    return entries


def lineage(name: str) -> list[str]:
    """The recipe and the recipes it is built on."""
    base = yaml.safe_load((RECIPES / f"{name}.yaml").read_text()).get("base")
    return [name, *lineage(base)] if base else [name]


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_reports_on_itself(name):
    entries = header(name)
    assert set(entries) == {"command", "hardware", "expected", "choices"}
    assert f"tools/train_adco.py --config-file adco/recipes/{name}.yaml data.root=" in entries["command"]
    assert "not run" in entries["expected"] or "measured" in entries["expected"] or "kNN" in entries["expected"]
    assert load_recipe(name) == load_recipe(RECIPES / f"{name}.yaml")


def test_all_published_rows_have_a_recipe_and_no_recipe_claims_another():
    assert {name for name in NAMES if "_r50_" in name} == PUBLISHED.keys()


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_rows_have_their_numbers(name):
    method, epochs, batch, rows, views, score = PUBLISHED[name]
    recipe = load_recipe(name)
    assert (recipe.method, recipe.epochs, recipe.batch, len(recipe.views)) == (method, epochs, batch, views)
    assert recipe.encoder.arch == "resnet50"
    assert rows in (recipe.bank.size, None)
    assert f"top-1 {score} (" in header(name)["expected"]
    assert recipe.contrast.symmetric == ("sym" in name or method == "caco")


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("adco_")])
def test_adco_recipes_name_their_choice_wherever_paper_and_code_differ(name):
    text = "".join((RECIPES / f"{ancestor}.yaml").read_text() for ancestor in lineage(name))
    for choice in ("in_batch_negatives:", "renormalize:", "lr_schedule:", "init:", "schedule_by:", "symmetric:"):
        assert choice in text, f"{name} does not set {choice}"


def test_every_method_has_a_small_twin_that_sees_the_same_images_as_often():
    adco = load_recipe("adco_r18_imagenette")
    for method in METHOD_NAMES:
        twin = load_recipe(f"{method}_r18_imagenette")
        assert twin.method == method
        for key in ("views", "epochs", "batch", "data", "seed", "probe", "compute"):
            assert getattr(twin, key) == getattr(adco, key), f"{method}: {key}"
        assert (twin.encoder.arch, twin.encoder.stem) == (adco.encoder.arch, adco.encoder.stem)
        assert twin.encoder.key_momentum == 0.99 or method not in ("adco", "caco", "moco", "mochi", "byol")


def small(name: str):
    """The recipe with its method, views and options, at a size of milliseconds."""
    recipe = load_recipe(name, ["batch=8", "bank.size=24", "mix.hard=5", "encoder.arch=resnet18"])
    images = [replace(view, px=16 if view.px == recipe.views[0].px else 12) for view in recipe.views]
    encoder = replace(recipe.encoder, dim=6, head_width=8, predictor_width=min(recipe.encoder.predictor_width, 5))
    swap = replace(recipe.swap, prototypes=7, queue=8 if recipe.swap.queue else 0)
    mix = replace(recipe.mix, pairs=4, with_query=3, from_epoch=0)
    return replace(recipe, views=images, encoder=encoder, swap=swap, mix=mix)


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_takes_a_step(name):
    recipe = small(name)
    torch.manual_seed(0)
    with mock.patch("adco.models.encoder.build_resnet", tiny_backbone):
        method = build_method(recipe)
    optimizer = build_optimizer(recipe.optimizer, method.encoder, fused=False)
    before = [p.clone() for p in method.encoder.parameters()]
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    for number in range(2):
        views = [torch.randn(8, 3, view.px, view.px) for view in recipe.views]
        optimizer.zero_grad()
        step = backward(method, method.encoder, split(views, 1), TrainingProgress(number, 4, 2), scaler)
        optimizer.step()
        method.update(step, TrainingProgress(number, 4, 2), recipe.bank.lr)
    assert torch.isfinite(step.loss)
    assert torch.isfinite(torch.stack([p.norm() for p in method.encoder.parameters()])).all()
    moved = [not torch.equal(a, b) for a, b in zip(before, method.encoder.parameters(), strict=True)]
    still = {n for (n, _), m in zip(method.encoder.named_parameters(), moved, strict=True) if not m}
    assert still <= {"tail.weight"} if recipe.method == "swav" else not still, still
    for rows in (step.queries, step.keys):
        assert rows.shape == (8, 6)
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(8))


def test_a_checkpoint_knows_which_recipe_it_has():
    for name in ("adco_r50_200ep", "caco_r50_200ep_b4096", "mochi_r18_imagenette"):
        assert recipe_name(asdict(load_recipe(name, ["seed=7", "data.root=elsewhere", "data.workers=3"]))) == name
    changed = recipe_name(asdict(load_recipe("adco_r50_200ep", ["contrast.tau=0.2"])))
    assert changed.startswith("sha256:") and changed != recipe_name({"method": "adco"})
