"""Sections of benchmarks/gpu.py that check: in miniature on the CPU, and a check that fails says so."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import pytest
import torch

from adco.config.loading import load_recipe
from adco.config.schema import ViewConfig
from adco.config.validation import check_recipe
from adco.data.images import index_folder
from adco.train import checkpoint, trainer
from adco.utils import distributed
from adco.utils.errors import Failure
from benchmarks.on_gpu.sections import SECTIONS, Context, correctness, input_races, learning, nccl
from benchmarks.on_gpu.sections.checks import Finding, perform
from benchmarks.speed.photographs import write_photographs

CPU = torch.device("cpu")


@pytest.fixture
def context(tmp_path):
    """A context of section `number` in miniature."""

    def made(number: int, seconds: float = 600.0, data=None) -> Context:
        return Context(SECTIONS[number], CPU, True, seconds, data, tmp_path, tmp_path / "figures.jsonl")

    return made


def figures(context: Context) -> dict[str, dict]:
    lines = map(json.loads, context.file.read_text().splitlines())
    return {line["name"]: line for line in lines}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return correctness.write_images(tmp_path_factory.mktemp("images"), small=True)


def test_a_check_that_fails_is_a_figure_and_the_others_go_on(context):
    def broken():
        raise ValueError("no such kernel")

    found = context(1)
    with pytest.raises(Failure, match="2 checks failed: wrong, broken"):
        perform(
            found,
            [
                ("wrong", lambda: Finding(False, {"difference": 0.5})),
                ("broken", broken),
                ("not_here", lambda: Finding(None, {"reason": "needs two GPUs"})),
                ("right", lambda: Finding(True)),
            ],
        )
    lines = figures(found)
    assert (lines["wrong"]["value"], lines["wrong"]["difference"]) == (False, 0.5)
    assert (lines["broken"]["value"], lines["broken"]["error"]) == (False, "ValueError: no such kernel")
    assert (lines["not_here"]["value"], lines["not_here"]["reason"]) == (None, "not run: needs two GPUs")
    assert lines["right"]["value"] is True


def test_no_check_but_the_first_begins_once_the_time_is_up(context):
    found = context(1, seconds=0.0)
    perform(found, [("first", lambda: Finding(True)), ("late", pytest.fail)])
    assert figures(found)["first"]["value"] is True
    assert figures(found)["late"]["reason"] == "not run: the time was up"


def test_section_1_in_miniature(context):
    found = context(1)
    correctness.run(found)
    values = {name: line["value"] for name, line in figures(found).items()}
    assert not [name for name, value in values.items() if value is False]
    assert values["adco_equals_cpu"] and values["swav_bf16"] and values["resumed"] and values["micro_batches"]
    assert values["adco_tf32"] is None and values["adco_does_not_wait"] is None  # there is no GPU
    assert figures(found)["resumed"]["bitwise"] and values["probe_and_compile"]


def test_other_weights_and_other_losses_are_noticed(images):
    """The comparison is not so wide that another network or another loss would pass."""
    recipe = correctness.small_recipe("adco", images, small=True)
    assert not correctness.compared(recipe, replace(recipe, seed=1), CPU, CPU).passed
    other = replace(recipe, contrast=replace(recipe.contrast, in_batch_negatives=False))
    assert not correctness.compared(recipe, other, CPU, CPU).passed
    faster = replace(recipe, optimizer=replace(recipe.optimizer, weight_decay=1.0))
    assert not correctness.compared(recipe, faster, CPU, CPU).passed
    assert correctness.loss_difference([1.0, float("nan")], [1.0, 1.0]) == float("inf")


def test_buffers_that_a_resume_mixes_up_are_noticed(images, monkeypatch):
    recipe = correctness.small_recipe("adco", images, small=True)
    monkeypatch.setattr(trainer, "load_state", lambda optimizer, state: optimizer.load_state_dict(state))
    finding = correctness.resumed(recipe, CPU, channels_last=False)
    assert not finding.passed and finding.facts["weights_difference"] > 0.5


def test_section_3_in_miniature(context):
    found = context(3)
    input_races.run(found)
    lines = figures(found)
    for backend in ("native", "device"):
        line = lines[f"{backend}_under_load"]
        assert line["value"] is True and line["compared"] == line["batches"] == 6
    assert lines["nvjpeg_under_load"]["reason"].startswith("not run: data.backend=nvjpeg: needs an NVIDIA GPU")
    assert lines["nvjpeg_equals_native"]["value"] is True
    assert lines["nvjpeg_equals_native"]["unreadable"] == ["empty.jpg", "truncated.jpg"]
    assert len(index_folder(found.work / "many_kinds")) == 16 + 2 * (16 + 4) + 12  # links count as files


def test_both_decoders_name_the_same_unreadable_files(tmp_path):
    for name, content in input_races.odd_files().items():
        (tmp_path / name).write_bytes(content)
    load = input_races.Load(1, 12, (ViewConfig(px=16),), 8, 0, 60.0)
    finding = input_races.nvjpeg_equals_native(index_folder(tmp_path), load, CPU)
    assert finding.passed and finding.facts["unreadable"] == ["empty.jpg", "truncated.jpg"]


def test_a_batch_that_is_painted_over_is_noticed(tmp_path, monkeypatch):
    write_photographs(tmp_path, 12, width=40, height=30)
    load = input_races.Load(3, 4, (ViewConfig(px=16),), 8, 0, 60.0)
    monkeypatch.setattr(input_races, "loaded", partial(painted_over, input_races.loaded))
    finding = input_races.same_under_load(index_folder(tmp_path), load, "device", CPU)
    assert not finding.passed and finding.facts["different"] == [1]


def painted_over(loaded, *args):
    found = loaded(*args)
    found[1][0][2] += 1
    return found


def test_checksums_tell_places_and_values_apart():
    view = torch.randn(2, 3, 4, 4)
    (sums,) = input_races.checksums([view])
    assert torch.equal(input_races.checksums([view.contiguous(memory_format=torch.channels_last)])[0], sums)
    moved = view.roll(1, dims=3)
    assert (input_races.checksums([moved])[0] != sums).all()
    view[1, 2, 3, 3] = view[1, 2, 3, 3].nextafter(torch.tensor(9.0))
    assert (input_races.checksums([view])[0] != sums).tolist() == [False, True]


def test_every_beginning_of_the_order_is_spread_over_all():
    assert input_races.spread(6) == [0, 4, 2, 1, 5, 3]
    assert sorted(input_races.spread(40)) == list(range(40)) and input_races.spread(1) == [0]


def test_section_9_in_miniature(context):
    found = context(9)
    nccl.run(found)
    lines = figures(found)
    assert all(lines[name]["value"] is True for name in ("exchanges", "gradients", "training", "error_exit"))
    assert lines["error_exit"]["lines"] == [f"error: {nccl.PURPOSE}"] and lines["exchanges"]["backend"] == "gloo"
    assert not distributed._running()


def test_an_exchange_that_gives_something_else_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "all_reduce_max", lambda rows: rows.neg())
    with nccl.one_rank(CPU, tmp_path):
        wrong = nccl.exchanges(CPU).facts["wrong"]
    assert len(wrong) == 2 * len(nccl.DTYPES) + 1 and all(name.startswith("all_reduce_max") for name in wrong)


def test_section_11_in_miniature_and_its_second_call_has_nothing_to_do(context, monkeypatch):
    first = context(11)
    learning.run(first)
    lines = figures(first)
    for key in ("seed0/adco/epoch1", "seed0/moco/epoch1", "seed0/adco/epoch2", "seed0/moco/epoch2"):
        assert 0 <= lines[f"{key}/knn_top1"]["value"] <= 100 and 0 <= lines[f"{key}/linear_top1"]["value"] <= 100
        assert lines[f"{key}/images_per_second"]["value"] > 0
    assert "state" not in lines and len(lines) == 12
    monkeypatch.setattr(learning.Trainer, "fit", pytest.fail)
    first.file.unlink()
    learning.run(context(11))
    assert figures(first) == lines  # those of the first call


def test_section_11_stops_where_the_next_turn_would_not_fit_and_resumes_there(context, monkeypatch):
    times = iter([600.0, 0.0])  # left before the first turn and before the second
    found = context(11)
    monkeypatch.setattr(Context, "left", lambda _: next(times, 600.0))
    learning.run(found)
    lines = figures(found)
    assert lines["state"]["value"] == "1 of 2 epochs; the next call resumes"
    assert "seed0/moco/epoch1/knn_top1" in lines and "seed0/moco/epoch2/knn_top1" not in lines
    learning.run(context(11))
    assert "seed0/moco/epoch2/knn_top1" in figures(found)
    stopped = checkpoint.load(checkpoint.newest_intact(learning.folder_of(found, 0, "adco")))
    recipe = learning.small(learning.recipe_of("adco", 0, found.work / "few_images"))
    state = checkpoint.load(learning.Trainer(recipe, found.work / "whole", CPU).fit())  # uninterrupted
    assert stopped.step == state.step == 6
    assert all(torch.equal(stopped.method[name], state.method[name]) for name in state.method)


def test_section_11_needs_images_on_a_gpu(context):
    found = context(11)
    found.small = False
    learning.run(found)
    assert "--data FOLDER" in figures(found)["learning"]["reason"]


def test_learning_recipes_are_for_200_epochs_in_larger_batches(tmp_path):
    for method in learning.COMPARED:
        recipe = learning.recipe_of(method, 1, tmp_path)
        check_recipe(recipe)
        base = load_recipe(f"{method}_r18_imagenette")
        assert recipe.optimizer.lr / base.optimizer.lr == recipe.batch / base.batch == 4
        assert (recipe.epochs, recipe.seed, recipe.bank.lr) == (200, 1, base.bank.lr)
        assert recipe.views == base.views and recipe.method == method
    assert learning.turns()[:5] == [1, 5, 10, 15, 20] and learning.turns()[-1] == 200
    assert set(learning.EVALUATED) <= set(learning.turns())
