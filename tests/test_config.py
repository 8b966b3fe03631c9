"""Recipes: what is in them, and one clear line for every way to get one wrong."""

from __future__ import annotations

import pytest

from adco.config import RECIPES, load_recipe
from adco.errors import UserError


@pytest.fixture
def recipe_file(tmp_path):
    def write(text: str):
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_loads_and_reports_on_itself(path):
    recipe = load_recipe(path)
    assert recipe == load_recipe(path.stem)
    header = [line for line in path.read_text().splitlines() if line.startswith("# ")]
    for entry in ("command:", "hardware:", "expected:", "choices:"):
        assert any(entry in line for line in header), f"{path.name} does not say its {entry}"
    named = path.read_text()
    for choice in ("in_batch_negatives:", "renormalize:", "lr_schedule:", "init:", "schedule_by:", "symmetric:"):
        assert choice in named, f"{path.name} leaves {choice} unsaid"


@pytest.mark.parametrize(("name", "symmetric"), [("adco_r50_200ep", False), ("adco_r50_sym_200ep", True)])
def test_published_recipes_have_the_released_hyper_parameters(name, symmetric):
    r = load_recipe(name)
    assert (r.epochs, r.batch, r.encoder.arch, r.encoder.dim, r.encoder.key_momentum) == (
        200,
        256,
        "resnet50",
        128,
        0.999,
    )
    assert (r.contrast.tau, r.contrast.tau_bank, r.contrast.symmetric) == (0.12, 0.02, symmetric)
    assert (r.bank.size, r.bank.lr, r.bank.sgd_momentum, r.bank.weight_decay) == (65536, 3.0, 0.9, 1e-4)
    assert (r.optimizer.lr, r.optimizer.final_lr, r.optimizer.schedule_by) == (0.03, 0.0006, "epoch")
    assert (r.optimizer.sgd_momentum, r.optimizer.weight_decay) == (0.9, 1e-4)
    assert len(r.views) == 2
    for view in r.views:
        assert (view.px, view.scale, view.jitter, view.jitter_p) == (224, [0.2, 1.0], [0.4, 0.4, 0.4, 0.1], 0.8)
        assert (view.gray_p, view.blur_p, view.blur_sigma_px, view.flip_p) == (0.2, 0.5, [0.1, 2.0], 0.5)


def test_overrides_reach_every_level(recipe_file):
    recipe = load_recipe(
        recipe_file("epochs: 3\nviews: [{px: 32}, {px: 48}]"),
        ["epochs=5", "optimizer.lr=1e-3", "views.1.px=64", "views.0.scale=[0.5,0.9]", "data.root=/a b=c"],
    )
    assert recipe.epochs == 5
    assert recipe.optimizer.lr == 1e-3
    assert [view.px for view in recipe.views] == [32, 64]
    assert recipe.views[0].scale == [0.5, 0.9]
    assert recipe.data.root == "/a b=c"


def test_the_resolved_recipe_reads_back_as_itself(recipe_file):
    recipe = load_recipe("adco_r18_imagenette", ["bank.size=7"])
    assert load_recipe(recipe_file(recipe.to_yaml())) == recipe


@pytest.mark.parametrize(
    ("text", "overrides", "parts"),
    [
        ("optimiser: {lr: 1}", [], ["mine.yaml", "unknown key optimiser", "did you mean optimizer?"]),
        ("optimizer: {learning_rate: 1}", [], ["unknown key optimizer.learning_rate", "did you mean optimizer."]),
        ("views: [{pixels: 3}, {}]", [], ["unknown key views.0.pixels", "did you mean views.0."]),
        ("", ["bank.sizes=3"], ["command line", "unknown key bank.sizes", "did you mean bank.size?"]),
        ("", ["views.7.px=3"], ["unknown key views.7.px", "did you mean views.0.px?"]),
        ("", ["epochs"], ["epochs", "expected key.sub=value"]),
        ("epochs: many", [], ["mine.yaml", "epochs", "'many'"]),
        ("optimizer: {lr: fast}", [], ["optimizer.lr", "'fast'"]),
        ("optimizer: 3", [], ["mine.yaml", "optimizer: expected a mapping of keys, found 3"]),
        ("", ["optimizer=3"], ["command line", "optimizer: expected a mapping of keys, found 3"]),
        ("views: [{px: wide}, {}]", [], ["views.0.px", "'wide'"]),
        ("", ["bank.size=big"], ["bank.size", "'big'"]),
        ("", ["bank.init=guess"], ["bank.init='guess'", "choose one of encode, train_and_fill"]),
        ("", ["method=mocha"], ["method='mocha'", "adco"]),
        ("", ["contrast.tau=0"], ["contrast.tau=0", "above 0"]),
        ("", ["views.0.scale=[0.9,0.2]"], ["views.0.scale", "low <= high"]),
        ("", ["optimizer.warmup_epochs=3", "epochs=2"], ["optimizer.warmup_epochs=3", "from 0 to epochs=2"]),
        ("", ["data.max_bad_share=1.5"], ["data.max_bad_share=1.5"]),
        ("- a list", [], ["mine.yaml", "expected a mapping"]),
        ("epochs: [", [], ["mine.yaml", "not a readable recipe"]),
        ("epochs: !!python/object/apply:os.getcwd []", [], ["mine.yaml", "not a readable recipe"]),
    ],
)
def test_mistakes_are_named_in_one_line(recipe_file, text, overrides, parts):
    with pytest.raises(UserError) as caught:
        load_recipe(recipe_file(text), overrides)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_an_absent_recipe_names_those_there_are():
    with pytest.raises(UserError, match="no such recipe.*adco_r50_200ep"):
        load_recipe("adco_r51")
