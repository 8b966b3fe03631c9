"""Recipes: what is in them, and one clear line for every way to get one wrong."""

from __future__ import annotations

import pytest

from adco.config.loading import load_recipe
from adco.utils.errors import UserError


@pytest.fixture
def recipe_file(tmp_path):
    def write(text: str):
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return path

    return write


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


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("optimizer.lr", "1e-2", 0.01),  # YAML 1.1 reads a text
        ("optimizer.lr", "'0.5'", 0.5),
        ("optimizer.lr", "1", 1.0),
        ("bank.size", "'64'", 64),
        ("data.workers", "3", 3),
        ("data.workers", "auto", "auto"),
        ("bank.renormalize", "yes", True),
        ("contrast.symmetric", "off", False),
    ],
)
def test_numbers_may_be_written_as_texts_and_have_the_type_of_the_key(recipe_file, key, text, expected):
    section, name = key.split(".")
    for recipe in (
        load_recipe("adco_r50_200ep", [f"{key}={text}"]),
        load_recipe(recipe_file(f"{section}: {{{name}: {text}}}")),
    ):
        value = getattr(getattr(recipe, section), name)
        assert value == expected and type(value) is type(expected)


@pytest.mark.parametrize("name", ["2024-01-31", "2024", "007", "1e3", "yes", "1:30", "~", "${oc.env:HOME}", ""])
def test_a_text_of_the_command_line_stays_as_it_is_written(name):
    assert load_recipe("adco_r50_200ep", [f"data.root={name}"]).data.root == name


def test_the_resolved_recipe_reads_back_as_itself(recipe_file):
    recipe = load_recipe("adco_r18_imagenette", ["bank.size=7"])
    assert load_recipe(recipe_file(recipe.to_yaml())) == recipe


def test_a_recipe_changes_its_base_mapping_by_mapping_and_replaces_lists_whole(tmp_path):
    first = "batch: 64\noptimizer: {lr: 0.5, final_lr: 0.1}\nviews: [{px: 32}, {px: 48}, {}]"
    (tmp_path / "first.yaml").write_text(first)
    (tmp_path / "second.yaml").write_text("base: first.yaml\nepochs: 9\noptimizer: {lr: 0.7}")
    (tmp_path / "third.yaml").write_text("base: second.yaml\nviews: [{}, {gray_p: 0.5}]")
    second, third = (load_recipe(tmp_path / name, ["bank.lr=2"]) for name in ("second.yaml", "third.yaml"))
    assert (second.batch, second.epochs, second.optimizer.lr, second.optimizer.final_lr) == (64, 9, 0.7, 0.1)
    assert [view.px for view in second.views] == [32, 48, 224]
    assert [(view.px, view.gray_p) for view in third.views] == [(224, 0.2), (224, 0.5)]
    assert (third.optimizer, third.bank.lr) == (second.optimizer, 2.0)


def test_a_base_is_found_by_its_bare_name(recipe_file):
    recipe = load_recipe(recipe_file("base: adco_r50_200ep\nepochs: 3"))
    assert recipe == load_recipe("adco_r50_200ep", ["epochs=3"])


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("base: mine.yaml", ["mine.yaml: base: mine.yaml", "stand on its own"]),
        ("base: adco_r51", ["mine.yaml: base: adco_r51: no such recipe", "adco_r50_200ep"]),
        ("base: other.yaml", ["other.yaml: unknown key 'bank.sizes'"]),
        ("base: adco_r50_200ep\nbank: 3", ["mine.yaml: bank: expected keys and values, found 3"]),
    ],
)
def test_mistakes_in_a_base_are_named_in_one_line(recipe_file, tmp_path, text, parts):
    (tmp_path / "other.yaml").write_text("bank: {sizes: 3}")
    with pytest.raises(UserError) as caught:
        load_recipe(recipe_file(text))
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("text", "overrides", "parts"),
    [
        ("optimiser: {lr: 1}", [], ["mine.yaml", "unknown key 'optimiser'", "did you mean optimizer?"]),
        ("optimizer: {learning_rate: 1}", [], ["unknown key 'optimizer.learning_rate'", "did you mean optimizer."]),
        ("views: [{pixels: 3}, {}]", [], ["unknown key 'views.0.pixels'", "did you mean views.0."]),
        ("", ["bank.sizes=3"], ["command line", "unknown key bank.sizes", "did you mean bank.size?"]),
        ("", ["views.7.px=3"], ["unknown key views.7.px", "did you mean views.0.px?"]),
        ("", ["epochs"], ["epochs", "expected key.sub=value"]),
        ("epochs: many", [], ["mine.yaml: epochs: expected a whole number, found 'many'"]),
        ("optimizer: {lr: fast}", [], ["mine.yaml: optimizer.lr: expected a number, found 'fast'"]),
        ("optimizer: 3", [], ["mine.yaml: optimizer: expected keys and values, found 3"]),
        ("", ["optimizer=3"], ["command line: optimizer: expected keys and values, found 3"]),
        ("views: [{px: wide}, {}]", [], ["mine.yaml: views.0.px: expected a whole number, found 'wide'"]),
        ("", ["bank.size=big"], ["command line: bank.size: expected a whole number, found 'big'"]),
        ("epochs: 2.0", [], ["mine.yaml: epochs: expected a whole number, found 2.0"]),
        ("epochs: true", [], ["mine.yaml: epochs: expected a whole number, found True"]),
        ("optimizer: {lr: yes}", [], ["mine.yaml: optimizer.lr: expected a number, found True"]),
        ("optimizer: {lr: }", [], ["mine.yaml: optimizer.lr: expected a number, found None"]),
        ("data: {root: 2024}", [], ["mine.yaml: data.root: expected a text, found 2024"]),
        ("data: {workers: 1.5}", [], ["mine.yaml: data.workers: expected a whole number or a text, found 1.5"]),
        ("views: 3", [], ["mine.yaml: views: expected a list, found 3"]),
        ("views: [{}, 3]", [], ["mine.yaml: views.1: expected keys and values, found 3"]),
        ("", ["views.1.scale=[0.1,wide]"], ["command line: views.1.scale.1: expected a number, found 'wide'"]),
        ("", ["views.1.scale=[0.1,[1]]"], ["command line: views.1.scale.1: expected a number, found [1]"]),
        ("", ["bank.renormalize=1"], ["command line: bank.renormalize: expected true or false, found 1"]),
        ("", ["bank.size=${batch}"], ["command line: bank.size: expected a whole number, found '${batch}'"]),
        ("", ["seed=0x" + "f" * 5000], ["command line: seed: not a readable value", "more than 64 bits"]),
        ("", ["device=${oc.env:HOME}"], ["device=${oc.env:HOME}", "expected auto, cpu, cuda or cuda:INDEX"]),
        ("", ["bank.init=guess"], ["bank.init='guess'", "choose one of encode, train_and_fill"]),
        ("", ["method=mocha"], ["method='mocha'", "adco"]),
        (
            "",
            ["contrast.tau=0"],
            ["mine.yaml and the command line: contrast.tau=0.0 is out of range; expected above 0"],
        ),
        ("batch: 1", [], ["mine.yaml: batch=1 is out of range; expected at least 2"]),
        ("", ["optimizer.lr=.inf"], ["optimizer.lr=inf", "a finite number"]),
        ("", ["views.0.scale=[0.9,0.2]"], ["views.0.scale", "low <= high"]),
        ("", ["optimizer.warmup_epochs=3", "epochs=2"], ["optimizer.warmup_epochs=3", "from 0 to epochs=2"]),
        ("", ["data.max_bad_share=1.5"], ["data.max_bad_share=1.5"]),
        ("- a list", [], ["mine.yaml: expected a mapping of keys, found ['a list']"]),
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
