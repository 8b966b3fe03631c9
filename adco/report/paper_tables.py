"""The published tables, each printed column split by protocol, with our own numbers for the same recipe beside."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from adco.evaluation.published import Published, load_published
from adco.evaluation.records import Record
from adco.report.collect import Study
from adco.report.elements import MISSING, NOTHING, PUBLISHED, Cell, Column, Notes, Section, Table
from adco.report.result_tables import score_cell, score_label

TITLES = {
    "adco-1": "Table 1: ImageNet linear, 200 epochs",
    "adco-2": "Table 2: GPU time of an epoch",
    "adco-3": "Table 3: ImageNet linear, more epochs",
    "adco-4": "Table 4: transfer and detection",
    "adco-5": "Table 5: symmetric loss, number of negatives, GPU time",
    "adco-text": "In the running text",
    "caco": "CaCo",
    "moco-detection": "MoCo's detection README",
    "voc07": "VOC07 SVM and low-shot",
    "vicreg": "VICReg",
}
HEADS = {"gpu_hours_per_epoch": "GPU hours an epoch", "sample_AP": "AP by image", "APs": "AP small"}
FACTS = ("epochs", "batch", "negatives", "symmetric", "hardware")  # a column each, if the rows differ in it


def section(study: Study, out: Path) -> Section:
    """Every published table. out: folder of the report, for links."""
    lead = (
        "A printed column whose numbers were obtained under several protocols is split, so that each column here has "
        "one. “own/” marks a protocol that is not one of this project's or that the source does not name; no number of "
        "ours is comparable with it. For our protocols our own number for the same recipe is beside the paper's."
    )
    rows = load_published()
    keys = dict.fromkeys(row.table for row in rows)
    tables = [paper_table(key, [row for row in rows if row.table == key], study, out) for key in keys]
    return Section("papers", "Published results", [lead], tables)


def paper_table(key: str, numbers: Sequence[Published], study: Study, out: Path) -> Table:
    """One published table: a row for each method and setting, and for each metric and protocol the paper's number and
    ours."""
    notes = Notes()
    heads = list(dict.fromkeys((n.data, n.metric, n.protocol) for n in numbers))
    heads.sort(key=lambda head: [(n.data, n.metric) for n in numbers].index(head[:2]))
    facts = [name for name in FACTS if len({getattr(n, name) for n in numbers}) > 1]
    shared = [f"{name} {value}" for name in FACTS if name not in facts and (value := getattr(numbers[0], name))]
    columns = [Column("method", numeric=False), *(Column(n, numeric=n != "hardware") for n in facts)]
    for data, metric, protocol in heads:
        group = f"{data} {HEADS.get(metric) or score_label(metric)}"
        columns.append(Column("paper", group, protocol))
        columns += [] if protocol.startswith("own/") else [Column("ours", group, protocol)]
    rows = []
    for same in _by_row(numbers, facts):
        cells = [_method(same[0]), *(_fact(same[0], name) for name in facts)]
        for head in heads:
            one = next((n for n in same if (n.data, n.metric, n.protocol) == head), None)
            cells.append(published_cell(one, notes) if one else NOTHING)
            if not head[2].startswith("own/"):
                cells.append(ours(one, study, out) if one else NOTHING)
        rows.append(cells)
    caption = f"Printed in: {'; '.join(dict.fromkeys(n.source for n in numbers))}."
    caption += f" All rows: {', '.join(shared)}." if shared else ""
    return Table(f"paper-{key}", TITLES.get(key, key), columns, rows, caption, notes.lettered())


def _by_row(numbers: Iterable[Published], facts: Sequence[str]) -> list[list[Published]]:
    """The numbers that the paper prints in one row."""
    rows: dict[tuple[object, ...], list[Published]] = {}
    for n in numbers:
        key = (n.method, n.multicrop, *(getattr(n, name) for name in facts if name != "hardware"), n.epochs)
        rows.setdefault(key, []).append(n)
    return list(rows.values())


def _method(n: Published) -> Cell:
    printed = f"printed as {n.printed_as}" if n.printed_as else ""
    return Cell(n.method + (", multi-crop" if n.multicrop else ""), note=printed)


def _fact(n: Published, name: str) -> Cell:
    value = getattr(n, name)
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return Cell("yes" if value else "no")
    return Cell(f"{value}", value=None if isinstance(value, str) else float(value))


def ours(n: Published, study: Study, out: Path) -> Cell:
    """Our number for the same recipe, protocol, metric and official data; `not run` if there is none."""
    return next((score_cell(item, n.metric, out) for item in study.items if same_thing(n, item.record)), MISSING)


def same_thing(n: Published, record: Record) -> bool:
    """Whether a record has the recipe, the protocol and the metric of a published number, on the official data."""
    recipe = record.checkpoint.pretrained.recipe
    same = record.protocol == n.protocol and recipe is not None and recipe == n.recipe
    return same and n.metric in record.scores and record.data.official is True


def published_cell(n: Published, notes: Notes) -> Cell:
    """A published number with its footnotes."""
    inferred = "protocol inferred from the cited method's code; the source does not name it" if n.inferred else ""
    marks = notes.letters(n.caution, n.ambiguous, inferred)
    return Cell(n.text, PUBLISHED, n.value, note=n.source, mark=marks)


def gpu_hours(rows: Iterable[Published] | None = None) -> Mapping[str, float]:
    """recipe -> GPU hours of an epoch in the AdCo paper. rows: published numbers, all by default."""
    rows = load_published() if rows is None else rows
    return {n.recipe: n.value for n in rows if n.metric == "gpu_hours_per_epoch" and n.recipe}
