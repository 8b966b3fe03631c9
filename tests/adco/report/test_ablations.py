"""Table 5 in small, ablations and GPU hours: what was timed, what the paper prints, and what was not run."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from adco import report
from adco.config.loading import load_recipe
from adco.evaluation.published import load_published
from adco.methods import METHODS, build_method
from adco.report import ablations, cost, elements
from adco.report.elements import Cell, Table
from benchmarks.speed import times
from tests.adco.report.data import HARDWARE, make_results, record


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> report.Study:
    return report.gather([str(make_results(tmp_path_factory.mktemp("results"), runs=False))])


@pytest.fixture(scope="module")
def table5(study, tmp_path_factory) -> Table:
    return ablations.section(study, tmp_path_factory.mktemp("out"), papers=True).tables[0]


def row(table: Table, *head: str) -> dict[str, Cell]:
    """The row that begins with these texts: the columns' group, protocol and label -> cell."""
    names = [" ".join(filter(None, (column.group, column.code, column.label))) for column in table.columns]
    (cells,) = (cells for cells in table.rows if tuple(cell.text for cell in cells[: len(head)]) == head)
    return dict(zip(names, cells, strict=True))


OURS, PAPER = "an epoch, timed here", "an epoch, the paper"
KNN = "curve-knn-k20@64px kNN top-1"


def test_what_was_timed_and_what_was_run_and_what_is_printed_of_one_thing_share_a_row(table5):
    cells = row(table5, "AdCo", "65,536", "no")
    (printed,) = (n.value for n in load_published() if n.metric == "gpu_hours_per_epoch"
                  if (n.table, n.method, n.negatives, n.symmetric) == ("adco-5", "AdCo", 65536, False))  # fmt: skip
    assert cells[f"{OURS} seconds"].text == "130.0"
    assert cells[f"{OURS} to MoCo v2"].value == pytest.approx(1.3)
    assert cells[f"{OURS} bank's share"].text == "14.5 %"
    assert cells[f"{OURS} step, MiB"].text == "900"
    assert cells[KNN].value == 41.0
    assert cells[f"{PAPER} GPU hours"].value == printed


def test_what_was_not_run_says_so_and_what_the_paper_does_not_print_is_empty(table5):
    not_timed = row(table5, "AdCo", "256", "yes")
    assert {cell.kind for name, cell in not_timed.items() if name.startswith(OURS)} == {elements.NOT_RUN}
    assert {cell.text for name, cell in not_timed.items() if name.startswith(PAPER)} == {""}
    assert not_timed[KNN].value == 44.0
    not_judged = row(table5, "BYOL", "–", "yes")
    assert not_judged[KNN].kind == not_judged[f"{OURS} step, MiB"].kind == elements.NOT_RUN
    assert not_judged[f"{OURS} bank's share"].text == ""  # it has none


def test_one_thing_that_was_timed_twice_is_one_row_with_a_note(table5):
    assert [cells[0].text for cells in table5.rows].count("AdCo") == 4  # 65,536, 8,192, symmetric, and the run of 256
    assert row(table5, "AdCo", "8,192", "no")[f"{OURS} seconds"].text == "112.0"
    assert table5.notes[0] == "adco_k8192 was timed twice: 110.0 s an epoch the other time"
    assert "up to 25 %" in table5.caption  # of whole steps; the bank's own rounds are another thing


def test_the_table_without_the_papers_has_none_of_their_numbers(study, tmp_path):
    table = ablations.section(study, tmp_path, papers=False).tables[0]
    assert not any(cell.kind == elements.PUBLISHED for cells in table.rows for cell in cells)


def test_every_contestant_of_the_benchmark_is_read_as_what_its_recipe_is():
    for name, recipe, change in times.contestants():
        made = load_recipe(recipe, change)
        symmetric = bool(made.contrast.symmetric)
        assert ablations._entry(name) == ablations.Entry.of(made.method, made.bank.size, symmetric), name


@pytest.mark.parametrize("name", METHODS)
def test_methods_with_a_bank_and_with_one_query_view_are_those_there_are(name):
    made = build_method(load_recipe(f"{name}_r18_imagenette"))
    entry = ablations.Entry.of(name, 8192, symmetric=False)
    assert bool(entry.negatives) == (made.bank is not None)
    assert entry.symmetric == (len(made.query_views) == 2)


def test_an_ablation_says_what_it_changes_and_its_difference_from_the_base(study, tmp_path):
    (table,) = (table for table in ablations.section(study, tmp_path, True).tables if table.title == "Ablations")
    assert [cells[0].text for cells in table.rows] == ["base", "bank_still", "symmetric_small"]
    assert [cells[1].text for cells in table.rows] == [
        "nothing",
        "bank.lr 0.0",
        "bank.size 256, contrast.symmetric True",
    ]
    base, still = table.rows[0], table.rows[1]
    assert base[3].text == ""
    assert (still[2].value, still[3].value) == (39.0, -1.0)
    assert (still[3].low, still[3].high) == pytest.approx((-1 - 1.5 * 2**0.5, -1 + 1.5 * 2**0.5))


# GPU hours


def test_gpu_hours_are_of_gpus_alone(study, tmp_path):
    hours = {run.name: cost.hours_cell(run, tmp_path) for run in study.runs}
    assert hours["trained/gpu"].value == pytest.approx(9000 / 3600 * 8 / 50)
    assert hours["trained/cpu"] == hours["trained/apart"] == Cell("not run on a GPU", elements.NOT_RUN)
    table = cost.run_table(study.runs, tmp_path)
    assert row(table, "trained/cpu")["hardware"].text == HARDWARE


def test_a_published_recipes_hours_come_from_the_same_recipe_on_the_whole_of_imagenet_alone(tmp_path):
    recipe = load_recipe("adco_r50_200ep")
    whole = record("pretrain/adco", {"loss": 2.0}, "a", {"name": "ImageNet", "images": cost.IMAGENET},
                   settings=asdict(recipe), duration_seconds=72000.0, hardware="8 x NVIDIA H100")  # fmt: skip
    other = replace(whole, settings=asdict(load_recipe("adco_r50_200ep", ["batch=512"])))
    part = replace(whole, data=record("a/b", {}).data)
    for wrong in (other, part):
        assert ours(wrong, tmp_path) == {"AdCo": "not run"}
    assert ours(whole, tmp_path) == {"AdCo": f"{20 * 8 / 200:.2f}"}
    assert ours(replace(whole, hardware=HARDWARE), tmp_path) == {"AdCo": "not run on a GPU"}


def ours(made, folder: Path) -> dict[str, str]:
    """The column `ours` of AdCo's row, when there is only the record of its run."""
    made.write(folder / "a" / "record.json")
    table = cost.recipe_table({}, report.gather([str(folder / "a")]).runs, folder)
    reported = {cells[0].text: cells[2].text for cells in table.rows}
    assert all(text == "not run" for name, text in reported.items() if name != "AdCo")
    return {"AdCo": reported["AdCo"]}
