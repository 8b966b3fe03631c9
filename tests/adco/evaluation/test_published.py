"""Published numbers: all there, under protocols that exist, with a source, and in agreement with one another."""

from __future__ import annotations

import re
from collections import Counter, defaultdict

import pytest

from adco.evaluation.published import PATH, load_published
from adco.report.model_zoo import of_zoo
from adco.utils.errors import UserError
from adco.weights.manifest import MANIFEST, read_manifest
from tests import ROOT
from transfer.classifier.protocols import IMAGENET, PLACES205, VOC_ADCO
from transfer.svm.protocols import PROTOCOLS

ROWS = load_published()
OWNERS = of_zoo(read_manifest(MANIFEST))


def ours() -> set[str]:
    """Every protocol that this project can run, by the name its records carry."""
    names = {protocol.name for protocol in PROTOCOLS.values()} | {VOC_ADCO.name}
    names |= {recipe.name for recipes in (IMAGENET, PLACES205) for recipe in recipes.values()}
    configs = (ROOT / "detection" / "configs").glob("*.yaml")
    return names | {f"detection/{re.sub('_(adco|supervised|random)$', '', path.stem)}" for path in configs}


def test_every_number_of_the_tables_is_there():
    counts = Counter(row.table for row in ROWS)
    assert counts == {
        "adco-1": 12, "adco-2": 5, "adco-3": 13, "adco-4": 42, "adco-5": 19, "adco-text": 2, "caco": 4,
        "moco-detection": 12, "voc07": 8, "vicreg": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("table", "method", "multicrop", "values"),
    [
        ("adco-1", "AdCo", False, [68.6]),
        ("adco-1", "AdCo", True, [73.2]),
        ("adco-3", "BYOL", False, [74.3]),
        ("adco-4", "supervised", False, [87.5, 53.2, 81.3, 40.8, 20.1]),
        ("adco-4", "SwAV", True, [88.9, 56.7, 82.6, 42.1, 19.7]),
        ("adco-4", "AdCo", False, [93.1, 53.7, 83.1, 41.8, 24.1]),
        ("adco-4", "AdCo", True, [92.4, 56.0, 83.0, 42.2, 24.5]),
        ("adco-5", "SimSiam", False, [70.0]),
    ],
)
def test_rows_as_printed(table, method, multicrop, values):
    printed = [r.value for r in ROWS if (r.table, r.method, r.multicrop) == (table, method, multicrop)]
    assert printed == values


@pytest.mark.parametrize("row", [*ROWS, *OWNERS], ids=lambda row: f"{row.table}-{row.label}-{row.metric}")
def test_a_row_is_plausible(row):
    assert row.protocol in ours() or row.protocol.startswith("own/")
    assert row.source and row.method and row.data in ("ImageNet", "VOC2007", "VOC07+12", "COCO", "Places205")
    low, high = {"percent": (10, 100), "GPU hours": (0.5, 10)}[row.unit]
    assert low < row.value < high
    assert row.recipe is None or (ROOT / "adco" / "recipes" / f"{row.recipe}.yaml").is_file()
    assert row.epochs is None or 10 <= row.epochs <= 1600


def test_the_mixed_columns_of_table_4_are_split_and_carry_their_caution():
    table = [row for row in ROWS if row.table == "adco-4"]
    for data, theirs, adcos in (
        ("VOC2007", {"own/voc07-svm", "voc07-svm/pcl"}, {"voc07-linear/adco"}),
        ("COCO", {"own/coco-detr"}, {"detection/coco_R_50_C4_2x"}),
    ):
        column = [row for row in table if row.data == data]
        assert {row.protocol for row in column if row.method == "AdCo"} == adcos
        assert {row.protocol for row in column if row.method != "AdCo"} == theirs
        assert all(row.caution for row in column)
    assert {row.metric for row in table if row.protocol == "voc07-linear/adco"} == {"sample_AP"}


def test_one_number_for_one_model_under_one_protocol_or_a_word_about_it():
    """Paper, README and zoo agree on a recipe's number, or the row that differs has a caution."""
    values_of = defaultdict(set)
    for row in ROWS + OWNERS:
        if row.recipe and not row.protocol.startswith("own/") and not row.caution:
            values_of[row.recipe, row.protocol, row.metric].add(row.value)
    assert len(values_of) > 15
    assert {key: values for key, values in values_of.items() if len(values) > 1} == {}


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("schema: 1", "schema: 2", "expected schema 1"),
        ("top1: 58.5", "top1: fifty", "adco-1: row 1: top1: value: expected a number, found 'fifty'"),
        ("top1: 58.5", "tpo1: 58.5", "adco-1: row 1: has none of the columns top1"),
        ("batch: 128", "bacth: 128", "adco-1: row 2: 'bacth' is neither a column"),
        ("inferred: true, caution", "infered: true, caution", "row 3: top1: unknown key 'infered'; did you mean"),
        ("source: AdCo, table 1", "sauce: x", "adco-1: expected source, about, columns and rows"),
    ],
)
def test_a_slip_in_the_file_is_named(tmp_path, old, new, says):
    text = PATH.read_text()
    path = tmp_path / "published.yaml"
    path.write_text(text.replace(old, new, 1))
    assert path.read_text() != text
    with pytest.raises(UserError, match=rf"published\.yaml: .*{says}"):
        load_published(path)
