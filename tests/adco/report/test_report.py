"""The report: one protocol a column, no number without a source, counts equal to a step's, texts are escaped."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from adco import report
from adco.config.loading import load_recipe
from adco.evaluation.published import load_published
from adco.evaluation.records import Score, load_record
from adco.methods import METHODS, build_method
from adco.methods.base import TrainingProgress
from adco.report import (
    accuracy_curves,
    collect,
    cost,
    elements,
    figures,
    paper_tables,
    render,
    result_tables,
    significance,
)
from adco.report.elements import Cell, Column, Table
from adco.utils.errors import UserError
from tests.adco.report.data import CLASSES, IMAGENETTE, SEEDS, make_results, record
from tests.adco.report.data import METHODS as DRAWN
from tools import report as tool


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    return make_results(tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="module")
def study(results) -> collect.Study:
    return report.gather([str(results)])


@pytest.fixture(scope="module")
def made(study, results) -> elements.Report:
    return report.build(study, results / "report")


def tables_of(section: elements.Section | None) -> list[Table]:
    assert section is not None
    return section.tables


def cells(table: Table):
    """(row's head, column, cell) of all but the heads."""
    for row in table.rows:
        for column, cell in zip(table.columns[1:], row[1:], strict=True):
            yield row[0].text, column, cell


def ends(cell: Cell) -> tuple[float, float, float]:
    """low, value, high of a cell with an interval."""
    assert cell.low is not None and cell.value is not None and cell.high is not None
    return cell.low, cell.value, cell.high


# what is read


def test_every_record_run_and_map_is_read_and_broken_files_are_listed(study):
    assert study.models == sorted(f"{method}_s{seed}" for method in DRAWN for seed in range(SEEDS))
    assert len([run for run in study.runs if run.rows]) == len(DRAWN) * SEEDS
    assert [run.name for run in study.runs if not run.rows] == [f"trained/{name}" for name in ("apart", "cpu", "gpu")]
    assert [path.name for path in study.maps] == ["bank.json"]
    assert {path.name: reason for path, reason in study.broken}.keys() == {"cut.json", "newer.json"}
    assert any("newer" in reason for _, reason in study.broken)


def test_a_model_is_named_by_its_folder_by_hand_or_by_its_file(tmp_path):
    record("knn/k20", {"top1": 1.0}, "a").write(tmp_path / "out" / "one" / "x.json")
    record("linear/p", {"top1": 1.0}, "a").write(tmp_path / "out" / "two" / "y.json")
    assert report.gather([str(tmp_path / "out")]).models == ["out"]  # several folders of one checkpoint
    assert report.gather([f"mine={tmp_path / 'out'}"]).models == ["mine"]
    record("knn/k20", {"top1": 1.0}, "b").write(tmp_path / "mixed" / "d" / "b-s0-knn-k20.json")
    record("knn/k20", {"top1": 1.0}, "c").write(tmp_path / "mixed" / "d" / "c-s0-knn-k20.json")
    record("linear/p", {"top1": 1.0}, "c").write(tmp_path / "mixed" / "d" / "other.json")
    assert report.gather([str(tmp_path / "mixed")]).models == ["b-s0", "c-s0"]  # the third is of c's checkpoint


@pytest.mark.parametrize("content", [None, "{}", "[1]", '{"a": 1}', '{"protocol": "knn/k20"}', "not JSON"])
def test_a_folder_without_any_record_is_one_clear_line(tmp_path, content):
    if content is not None:
        (tmp_path / "x.json").write_text(content)
    with pytest.raises(UserError, match="no records and no metrics"):
        report.gather([str(tmp_path)])


def test_a_source_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"absent: no such file or folder"):
        report.gather([str(tmp_path / "absent")])


# measured tables


def test_each_score_stands_under_its_own_protocol_and_leads_to_its_record(study, results, tmp_path):
    seen = set()
    for table in tables_of(result_tables.section(study, tmp_path)):
        for model, column, cell in cells(table):
            if cell.kind != elements.MEASURED:
                continue
            path = (tmp_path / cell.href).resolve()
            behind = load_record(path)
            assert behind.protocol.partition("/")[2] == column.code
            assert path.parent.name == model
            value = behind.scores[
                next(name for name in behind.scores if result_tables.score_label(name) == column.label)
            ]
            assert (cell.value, cell.low, cell.high) == (value.value, value.low, value.high)
            assert cell.text == f"{value:.2f}"
            seen.add((path, column.label))
    assert {path for path, _ in seen} == {
        item.path.resolve() for item in study.items if collect.is_evaluation(item.record)
    }


def test_two_data_sets_and_two_image_sizes_never_share_a_column(tmp_path):
    for number, (protocol, data) in enumerate(
        [
            ("knn/k20@64px", IMAGENETTE),
            ("knn/k20@96px", IMAGENETTE),
            ("knn/k20@64px", IMAGENETTE | {"fingerprint": "z"}),
        ]
    ):
        record(protocol, {"top1": number}, f"m{number}", data).write(tmp_path / f"m{number}" / "a.json")
    tables = tables_of(result_tables.section(report.gather([str(tmp_path)]), tmp_path))
    columns = [(table.key, column.code) for table in tables for column in table.columns[1:]]
    assert len(columns) == len(set(columns)) == 3
    assert len(tables) == 2
    assert [cell.kind for _, _, cell in cells(tables[0])].count(
        elements.NOT_RUN
    ) == 2  # each of two models under one of two


def test_captions_say_subset_size_and_what_the_intervals_are(study, tmp_path):
    reported = {table.title: table.caption for table in tables_of(result_tables.section(study, tmp_path))}
    assert "400 train of 5,011, 200 test of 4,952 images – a subset, not the official set" in reported["VOC07 SVM"]
    assert reported["VOC07 low-shot SVM"].endswith("95% intervals: Student's t of the mean of 3 trials.")
    assert reported["Nearest neighbours"] == (
        "imagenette160: 9,469 train, 3,925 test images. 95% intervals: bootstrap of the test images."
    )


# published tables


def test_every_published_number_stands_once_under_its_own_protocol(study, tmp_path):
    section, rows = paper_tables.section(study, tmp_path), load_published()
    for table in tables_of(section):
        wanted = sorted((n.protocol, n.value) for n in rows if f"paper-{n.table}" == table.key)
        shown = sorted((c.code, cell.value) for _, c, cell in cells(table) if cell.kind == elements.PUBLISHED)
        assert shown == wanted
        assert all(c.label == "paper" for _, c, cell in cells(table) if cell.kind == elements.PUBLISHED)
    assert len(section.blocks) == len({n.table for n in rows})


def test_nothing_of_ours_stands_beside_a_paper_unless_it_is_the_same_thing(tmp_path):
    whole = {"name": "ImageNet", "official": True, "fingerprint": "f", "train_images": 1281167, "val_images": 50000}
    made = record("imagenet-linear/adco", {"top1": Score(68.4)}, data=whole)
    made = replace(made, checkpoint=replace(made.checkpoint, recipe="adco_r50_200ep"))
    number = next(n for n in load_published() if n.recipe == "adco_r50_200ep" and n.table == "adco-1")
    assert paper_tables.same_thing(number, made)
    for other in (
        replace(made, protocol="imagenet-linear/moco"),
        replace(made, checkpoint=replace(made.checkpoint, recipe="moco_r50_200ep")),
        replace(made, data=record("a/b", {}).data),
    ):
        assert not paper_tables.same_thing(number, other)
    made.write(tmp_path / "m" / "a.json")
    table = tables_of(paper_tables.section(report.gather([str(tmp_path)]), tmp_path))[0]
    ours = {head: cell.text for head, _, cell in cells(table) if cell.kind == elements.MEASURED}
    assert ours == {"AdCo": "68.40"}  # and no other row
    assert {cell.text for _, column, cell in cells(table) if cell.kind == elements.NOT_RUN} == {"not run"}


def test_table_4s_mixed_columns_are_split_and_the_reasons_are_printed():
    reported = {row[1].text: row[2].text for row in significance.published_table(load_published()).rows}
    mixed = next(why for pair, why in reported.items() if "AdCo 93.1 against SwAV, multi-crop 88.9" in pair)
    assert "voc07-linear/adco against own/voc07-svm" in mixed
    assert "mean over images" in mixed
    assert any("AdCo 41.8 against SwAV, multi-crop 42.1" in pair and "DETR" in why for pair, why in reported.items())


# differences


def test_differences_are_tested_image_by_image_where_predictions_are_kept(study):
    table = significance.test_table(study)
    assert table is not None
    how = {row[0].text: row[-1].note for row in table.rows}
    assert how["knn/k20-t0.07@64px"].startswith("bootstrap, paired over 3,925 images")
    assert how["detection/smoke_voc_R_18_C4"].startswith("Welch's t")
    assert "linear/cached-features@64px" not in how  # no predictions beside it
    assert any("no predictions" in note for note in table.notes)
    pairs = [row[2].text for row in table.rows if row[0].text == "knn/k20-t0.07@64px"]
    assert len(pairs) == significance.FOLLOWERS
    for row in table.rows:
        low, value, high = ends(row[3])
        assert low <= value <= high
        assert row[5].text == result_tables.verdict((low, high))


def test_comparing_two_numbers_gives_reasons_or_a_test(results):
    knn, other = (str(results / "adco_s0" / name) for name in ("k20.json", "k200.json"))
    assert any("knn/k20-t0.07 against knn/k200-t0.07" in line for line in report.compared(knn, other))
    sure = report.compared(str(results / "moco_s0" / "k20.json"), knn)
    assert any(line.strip().startswith("top1 +") and "bootstrap, paired over" in line for line in sure)
    across = report.compared("adco-4/AdCo/sample_AP", "adco-4/SwAV/mAP")
    assert "not comparable:" in across
    with pytest.raises(UserError, match=r"adco-4/SwAV/mAP"):
        report.compared("adco-4/Swav/nothing", knn)


# figure 1


def test_seeds_of_one_recipe_are_one_line_and_other_recipes_have_other_names(study):
    groups = accuracy_curves.groups_of(accuracy_curves.curves_of(study))
    assert [group.name for group in groups] == ["AdCo", "MoCo v2", "CaCo", "SimCLR", "BYOL"]
    assert {len(group.curves[accuracy_curves.OWN]) for group in groups} == {SEEDS}
    curve = accuracy_curves.Curve(
        accuracy_curves.OWN, "d", {"method": "adco", "bank": {"size": 256}, "seed": 0}, {1: 1.0}
    )
    other = replace(curve, recipe={"method": "adco", "bank": {"size": 1024}, "seed": 0})
    assert [g.name for g in accuracy_curves.groups_of([curve, other])] == ["AdCo · size 256", "AdCo · size 1024"]


def test_the_line_is_the_mean_and_the_band_the_range_where_all_seeds_have_the_epoch():
    points = accuracy_curves.mean_curve([{1: 10.0, 2: 20.0, 3: 9.0}, {1: 14.0, 2: 30.0}])
    assert [(p.x, p.y, p.low, p.high) for p in points] == [(1, 12, 10, 14), (2, 25, 20, 30)]


def test_adcos_lead_is_that_of_the_means_and_one_seed_has_no_interval(study):
    groups = accuracy_curves.groups_of(accuracy_curves.curves_of(study))
    table = accuracy_curves.lead_table(groups, accuracy_curves.OWN)
    assert table is not None
    assert [row[1].text for row in table.rows] == ["10", "20", "50"]
    ours, theirs = (groups[i].curves[accuracy_curves.OWN] for i in (0, 1))
    mean = sum(a[10] - b[10] for a, b in zip(ours, theirs, strict=True)) / SEEDS
    low, value, high = ends(table.rows[0][2])
    assert value == pytest.approx(mean)
    assert low < mean < high
    single = accuracy_curves.lead_table([replace_curves(group, 1) for group in groups], accuracy_curves.OWN)
    assert single is not None
    assert {row[-1].text for row in single.rows} == {"one seed: no interval"}


def replace_curves(group: accuracy_curves.Group, count: int) -> accuracy_curves.Group:
    return replace(group, curves={protocol: curves[:count] for protocol, curves in group.curves.items()})


def test_recorded_curves_and_leads_are_drawn_under_their_protocol(tmp_path):
    recipe = {"method": "adco", "encoder": {"arch": "resnet18"}}
    rows = [{"epoch": e, "top1": 30.0 + e, "interval95": [29.0, 33.0]} for e in (1, 5)]
    for name, kept in (("adco-s0-knn", rows), ("short-knn", rows[:1])):
        settings = {"curve": kept, "pretraining": recipe}
        record("pretraining/curve-knn-k20@64px", {"top1": 31.0}, settings=settings).write(
            tmp_path / "f" / f"{name}.json"
        )
    for seeds, points in ((1, 7.0), (2, 2.0)):  # the one of fewer seeds is not drawn
        row = {"probe": "knn", "epoch": 5, "lead": points, "interval95_images": [1.0, 3.0], "seeds": seeds}
        settings = {"rows": [row], "first": "adco", "second": "moco", "seeds": seeds}
        made = record("pretraining/lead@64px", {"lead/knn@5ep": points}, settings=settings)
        made.write(tmp_path / "f" / f"lead-{seeds}-seeds.json")
    section = accuracy_curves.section(report.gather([str(tmp_path)]), tmp_path, papers=False)
    assert [block.title for block in section.blocks] == ["Figure 1: kNN top-1 over epochs", "Does AdCo lead early?"]
    lead = section.tables[0].rows[0]
    assert (lead[0].text, lead[2].text, lead[-1].text) == ("AdCo −\xa0MoCo v2, kNN top-1", "2.00", "ahead")


# cost


@pytest.mark.parametrize("method", METHODS)
def test_a_counted_step_is_what_a_step_computes(method):
    """fvcore's modules put together against torch's own counter on a real step; less the first layer's input gradient
    and what is between the images of a batch."""
    recipe = load_recipe(f"{method}_r18_imagenette", ["device=cpu"])
    px = 32
    recipe = replace(recipe, batch=4, views=[replace(view, px=px) for view in recipe.views])
    made, moment = build_method(recipe), TrainingProgress(0, 1000, 10)
    if method == "mochi":
        moment = TrainingProgress(10 * recipe.mix.from_epoch, 1000, 10)
    views = [torch.randn(recipe.batch, 3, px, px) for _ in recipe.views]
    with FlopCounterMode(display=False) as counter:
        targets = made.targets([views], moment)
        outputs = dict(zip(made.query_views, made.encoder([views[i] for i in made.query_views]), strict=True))
        step = made.compute_loss(outputs, targets, moment)
        step.loss.backward()
        made.update(step, moment, 0.1)
    real = counter.get_total_flops() / 2 / recipe.batch
    counted = cost.counted(recipe)[1]
    assert counted is not None
    assert counted.step == pytest.approx(real, rel=0.06)


def test_parameters_are_those_of_the_networks():
    adco, byol = (cost.counted(load_recipe(f"{name}_r50_200ep"))[0] for name in ("adco", "byol"))
    assert adco.backbone == byol.backbone == 23_508_032  # torchvision's ResNet-50 less its classifier
    assert adco.head == (2048 * 2048 + 2048) + (2048 * 128 + 128)
    assert adco.bank == 65536 * 128
    assert adco.tail == byol.bank == 0
    assert byol.tail > 1e6


def test_speed_is_the_median_after_the_first_tenth():
    rows = [{"epoch": i, "images_per_second": 1.0 if i < 2 else 50.0 + i % 3} for i in range(20)]
    speed = cost.speed_of(rows)
    assert speed is not None
    assert speed.images_per_second == 51.0
    assert cost.speed_of([{"epoch": 1, "loss": 2.0}]) is None


# images


def test_classes_of_the_best_of_each_method_have_whiskers(study):
    (figure,) = figures.class_figures(study)
    assert len(figure.legend) == figures.MOST
    assert len({name.split("_")[0] for name, _, _ in figure.legend}) == figures.MOST
    drawing = figure.panels[0].wide
    assert all(name in drawing for name in CLASSES)
    assert drawing.count('class="whisker"') == figures.MOST * len(CLASSES)
    assert f"{len(study.models) - figures.MOST} more models are not drawn" in figure.caption


def test_classes_of_a_detector_are_drawn_with_intervals_over_trials_without_those_that_are_never_detected(tmp_path):
    for name, level in (("a", 8.0), ("b", 4.0)):
        scores = {"AP": Score.over_trials([level, level + 1]), "AP/cat": Score.over_trials([level - 1, level + 2]),
                  "AP50/cat": 20.0, "AP/dog": Score.over_trials([0.0, 0.01]), "segm/AP/cow": 3.0}  # fmt: skip
        record("detection/smoke_voc_R_18_C4", scores, name).write(tmp_path / name / "d.json")
        record("detection/smoke_coco_R_18_C4", {"AP": 0.0, "AP/dog": 0.0}, name).write(tmp_path / name / "e.json")
    (figure,) = figures.class_figures(report.gather([str(tmp_path)]))
    drawing = figure.panels[0].wide
    assert drawing.count('class="whisker"') == 2
    assert ">cat<" in drawing and ">dog<" not in drawing and ">cow<" not in drawing
    assert "Left out, below 0.05: 1 class." in figure.caption


def test_the_banks_map_comes_with_its_numbers(study):
    section = figures.bank_section(study)
    (figure,), (table,) = section.figures, section.tables
    assert section.blocks == [figure, table]
    assert figure.panels[0].png.startswith(b"\x89PNG")
    assert "adco_s0: 4.1% of 8192 negatives are outliers" in figure.panels[0].alt
    assert [row[1].text for row in table.rows] == ["4.1 %", "18.7 %"]


def test_a_record_of_the_banks_outliers_is_drawn_as_its_map_is(results, tmp_path):
    reported = json.loads((results / "figure2" / "bank.json").read_text())
    record("pretraining/bank-outliers", {"outlier_percent/adco_s0": 4.1}, "", settings=reported).write(
        tmp_path / "b.json"
    )
    (tmp_path / "b.png").write_bytes((results / "figure2" / "bank.png").read_bytes())
    recorded = figures.bank_section(report.gather([str(tmp_path)]))
    drawn = figures.bank_section(collect.Study(maps=[results / "figure2" / "bank.json"]))
    assert recorded.figures[0].panels == drawn.figures[0].panels
    assert recorded.tables[0].rows == drawn.tables[0].rows


# the three forms


def test_csv_and_markdown_hold_every_number_of_the_page(made):
    rows = list(csv.DictReader(io.StringIO(render.as_csv(made))))
    kinds = [cell.kind for s in made.sections for table in tables_of(s) for _, _, cell in cells(table)]
    for kind in (elements.MEASURED, elements.PUBLISHED, elements.NOT_RUN):
        assert sum(row["source"] == kind for row in rows) == kinds.count(kind) > 0
    text = render.as_markdown(made)
    one = next(row for row in rows if row["source"] == elements.MEASURED and row["row"] == "adco_s0")
    assert f"**{float(one['value']):.2f}**" in text
    assert "_93.1_" in text
    assert all(line.count("|") > 2 for line in text.splitlines() if line.startswith("|"))


def test_texts_of_records_are_escaped(tmp_path):
    hostile = '<script>alert("x")</script>'
    made = record(
        f"knn/{hostile}", {"top1": 1.0, hostile: 2.0}, hostile, IMAGENETTE | {"name": hostile}, hardware=hostile
    )
    made.write(tmp_path / "m|<b>" / "a.json")
    page = render.as_html(report.build(report.gather([str(tmp_path)]), tmp_path, with_papers=False))
    assert "&lt;script&gt;alert(" in page
    assert page.count("<script") == 1  # the page's own
    assert "m|&lt;b&gt;" in page


def test_the_page_loads_nothing_and_every_figure_has_a_description(made):
    page = render.as_html(made)
    assert not re.search(r"""(?:src|href)=["'](?!#|data:)(?:\w+:)?//""", page)
    assert not re.search(r"@import|url\(", page)
    assert all(label for label in re.findall(r'role="img" aria-label="([^"]*)"', page))
    assert all(alt for alt in re.findall(r'<img [^>]*alt="([^"]*)"', page))
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert {link for link in re.findall(r'href="#([^"]+)"', page)} <= set(ids)


def test_a_row_of_another_width_is_refused():
    with pytest.raises(ValueError, match="2 cells under 1 columns"):
        Table("k", "t", [Column("a")], [(Cell("1"), Cell("2"))])


# in a terminal


def test_a_terminals_table_has_a_difference_between_models_and_none_of_one_alone():
    first, last = ([record("knn/k20", {"top1": value}), record("linear/p", {"top1": 1.0})] for value in (50.0, 52.5))
    both = report.as_text(report.table_rows({"a": first, "b": last[:1]}), ["a", "b"]).splitlines()
    assert both[0].split() == ["protocol", "score", "a", "b", "difference"]
    assert both[2].split() == ["knn/k20", "top1", "50.00", "52.50", "+2.50"]
    assert both[3].split() == ["linear/p", "top1", "1.00", "not", "run"]
    alone = report.as_text(report.table_rows({"a": first}), ["a"]).splitlines()
    assert alone[0].split() == ["protocol", "score", "a"]
    assert alone[2].split() == ["knn/k20", "top1", "50.00"]


# light and dark


def test_texts_and_lines_can_be_seen_in_light_and_in_dark():
    css = (Path(render.__file__).parent / "page.css").read_text()
    pairs = dict(re.findall(r"--(\w+): (light-dark\([^)]*\))", css))
    colours = {name: re.findall(r"#[0-9a-f]{3,6}", pair) for name, pair in pairs.items()}
    for theme in (0, 1):
        paper = colours["paper"][theme]
        for name, least in {"ink": 7, "soft": 4.5, "accent": 4.5, **{f"s{i}": 4.5 for i in range(1, 9)}}.items():
            assert contrast(colours[name][theme], paper) >= least, (name, theme)


def contrast(one: str, other: str) -> float:
    """WCAG 2's contrast ratio of two colours."""
    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * c for c in colour[1:])
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
              for c in (int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4))]  # fmt: skip
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


# the tool


def test_the_tool_writes_the_three_files_and_names_what_it_could_not_read(results, tmp_path, capsys):
    assert tool.main([str(results), "-o", str(tmp_path / "r"), "--no-papers", "--title", "A & B"]) == 0
    assert sorted(os.listdir(tmp_path / "r")) == ["report.csv", "report.html", "report.md"]
    reported = capsys.readouterr()
    assert reported.err.count("not read: ") == 2
    page = (tmp_path / "r" / "report.html").read_text()
    assert "<title>A &amp; B</title>" in page
    assert "cut.json" in page
    assert "printed in a paper" not in page


@pytest.mark.parametrize("words", [[], ["/nowhere"], ["--compare", "a", "b"], ["--zoo", "z", "--results", "/nowhere"]])
def test_the_tool_reports_mistakes_in_one_line(words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert tool.main(words) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert os.listdir(tmp_path) == []


def test_the_real_results_make_a_page(tmp_path):
    root = Path(tool.ROOT) / "results"
    study = report.gather([str(root)])
    assert not study.broken
    page = render.as_html(report.build(study, tmp_path))
    values = [
        v
        for item in study.items
        if result_tables.is_evaluation(item.record)
        for n, v in item.record.scores.items()
        if n == "top1"
    ]
    assert values
    assert all(f">{value:.2f}</a>" in page for value in values)
    assert json.dumps(str(root)) not in page
