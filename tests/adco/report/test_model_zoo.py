"""MODEL_ZOO.md agrees with its sources: never stale, one protocol a column, published numbers in separate columns."""

from __future__ import annotations

import re

import pytest

from adco.evaluation.published import load_published
from adco.evaluation.records import Record, Score
from adco.report.elements import Notes
from adco.report.model_zoo import README_TABLE, page, readme_table, transfer_table
from adco.report.model_zoo_tables import group_table, measured, printed
from adco.report.text_table import markdown_table
from adco.utils.errors import UserError
from adco.utils.files import between
from tests import ROOT
from tools import report

PUBLISHED = load_published()


def record(protocol, scores, official=False, **checkpoint) -> Record:
    data = {"name": "VOC2007" if protocol.startswith("voc") else "tiny", "fingerprint": "f", "official": official}
    facts = {"name": "x", "sha256": "a" * 64, "arch": "resnet50"} | checkpoint
    return Record(protocol, scores, facts, data | {"train_images": 5, "test_images": 2}, code="c")


def rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]


def test_the_committed_pages_are_not_stale():
    """python tools/report.py --zoo MODEL_ZOO.md --readme README.md"""
    assert page(ROOT / "results") == (ROOT / "MODEL_ZOO.md").read_text()
    readme = ROOT / "README.md"
    assert between(readme, *README_TABLE, readme_table(ROOT / "results")) == readme.read_text()


def test_text_goes_between_its_two_lines_alone(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- x -->\nold\n<!-- y -->\nb\n")
    assert between(page, "<!-- x -->", "<!-- y -->", "new\n") == "a\n<!-- x -->\nnew\n<!-- y -->\nb\n"
    for broken in ("a\n", "<!-- y -->\n<!-- x -->\n", "<!-- x -->\n<!-- x -->\n<!-- y -->\n"):
        page.write_text(broken)
        with pytest.raises(UserError, match="page.md: expected one line '<!-- x -->'"):
            between(page, "<!-- x -->", "<!-- y -->", "new\n")


def test_cells_are_short_enough_to_be_read():
    shown = re.sub(r"\]\([^)]*\)|[`\[]", "", (ROOT / "MODEL_ZOO.md").read_text())
    lines = [part for row in rows(shown) for cell in row for part in cell.split("<br>")]
    assert len(lines) > 300 and max(map(len, lines)) < 75


def test_every_footnote_is_asked_for_and_answered():
    text = (ROOT / "MODEL_ZOO.md").read_text()
    answered = re.findall(r"^\[\^(\d+)\]:", text, re.MULTILINE)
    asked = set(re.findall(r"\[\^(\d+)\](?!:)", text))
    assert answered == [str(n + 1) for n in range(len(answered))] and asked == set(answered)


def test_a_model_is_a_row_and_a_protocol_is_a_column():
    group = {
        "results/a/1.json": record("knn/k20", {"top1": Score(42.5, 41.04, 44.03, over="images")}),
        "results/a/2.json": record("knn/k200", {"top1": Score.over_trials([40.0, 42.0])}),
        "results/b/1.json": record("knn/k20", {"top1": 35.0}),
    }
    header, _, first, second = rows(group_table(group, PUBLISHED, Notes()))
    assert header == ["model", "knn/<br>k20", "knn/<br>k200"]
    assert first == ["`a`", "[42.50](results/a/1.json)<br>41.04 to 44.03", "[41.00](results/a/2.json) ± 1.41"]
    assert second == ["`b`", "[35.00](results/b/1.json)", "not run"]


def test_sizes_and_data_sets_have_tables_of_their_own():
    first = record("knn/k20", {"top1": 1.0})
    others = [record("knn/k20@96px", {"top1": 2.0}), record("voc07-svm/pcl", {"mAP": 3.0})]
    parts = measured({f"results/m/{n}.json": r for n, r in enumerate([first, *others])}, PUBLISHED, Notes())
    heads = [part.strip() for part in parts if part.startswith("#")]
    assert len(heads) == 3 and sum("at 96 px" in head for head in heads) == 1
    assert sum("VOC2007 (5 train, 2 test; not the official set)" in head for head in heads) == 1


def test_a_papers_number_stands_beside_in_its_own_column_on_official_data_alone():
    group = {"results/m/1.json": record("voc07-svm/pcl", {"mAP": 85.0}, official=True, epochs=200)}
    header, _, row = rows(group_table(group, PUBLISHED, Notes()))
    assert header == ["model", "mAP", "voc07-svm/<br>pcl<br>paper"]
    assert row[1:] == ["[85.00](results/m/1.json)", "85.4 (AdCo, table 4; PCL README)[^1]"]
    group = {"results/m/1.json": record("voc07-svm/pcl", {"mAP": 85.0}, epochs=200)}
    assert rows(group_table(group, PUBLISHED, Notes()))[0] == ["model", "mAP"]


def test_table_4_shows_ours_under_the_same_protocol_only():
    own = [row for row in PUBLISHED if row.table == "adco-4"]
    ours = {
        "results/m/a.json": record("voc07-linear/adco", {"sample_AP": 92.0, "mAP": 87.0}, official=True),
        "results/m/b.json": record("voc07-svm/vissl", {"mAP": 88.0}, official=True),
    }
    text = transfer_table(own, ours, Notes())
    assert "[92.00](results/m/a.json)" in text and "87.00" not in text and "88.00" not in text
    assert {row[1] for row in rows(text)[2:]} & {"`own/coco-detr`", "`own/voc07-svm`"} == set()


def test_equal_numbers_are_printed_once_with_all_their_sources():
    numbers = [row for row in PUBLISHED if row.recipe == "adco_r50_200ep" and row.metric == "top1"]
    assert printed(numbers, Notes()) == "68.6 (AdCo, table 1, table 5)"
    assert printed([], Notes()) == "-" and markdown_table(("a",), [("x|y",)]).splitlines()[-1] == "| x\\|y |"


@pytest.mark.parametrize("broken", ["no records", "bad record"])
def test_broken_results_are_one_line_and_the_page_stays(tmp_path, capsys, broken):
    zoo, results = tmp_path / "ZOO.md", tmp_path / "results"
    zoo.write_text("before")
    if broken == "bad record":
        (results / "m").mkdir(parents=True)
        (results / "m" / "b.json").write_text("{}")
    with pytest.raises(UserError):
        page(results)
    assert report.main(["--zoo", str(zoo), "--results", str(results)]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and errors.count("\n") == 1 and zoo.read_text() == "before"
