"""The AdCo paper's tables, each printed column split by protocol, with our own numbers beside where we have them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from string import ascii_lowercase

from adco.evaluation.published import Published, load_published
from adco.evaluation.records import Record
from adco.report.collect import Study
from adco.report.elements import MISSING, NOTHING, Cell, Column, Section, Table, published
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
FACTS = ("epochs", "batch", "negatives", "symmetric", "hardware")  # of a row, a column each where any row says it


def section(study: Study, out: Path) -> Section:
    """Every published table. A printed column that mixes protocols becomes several."""
    lead = (
        "A column of the paper whose numbers were obtained under several protocols is split, so that no column here "
        "has two. “own/” names a way that is not one of this project's, or that the source does not tell; nothing can "
        "stand beside it. Where a protocol is ours, our own number for the same recipe stands beside the paper's."
    )
    rows = load_published()
    keys = dict.fromkeys(row.table for row in rows)
    tables = [paper_table(key, [row for row in rows if row.table == key], study, out) for key in keys]
    return Section("papers", "What the papers print", [lead], tables)


def paper_table(key: str, numbers: Sequence[Published], study: Study, out: Path) -> Table:
    """One published table: a row a method and setting, for each (metric, protocol) the paper's number and ours."""
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
            cells.append(notes.cell(one) if one else NOTHING)
            if not head[2].startswith("own/"):
                cells.append(ours(one, study, out) if one else NOTHING)
        rows.append(tuple(cells))
    caption = f"Printed in: {'; '.join(dict.fromkeys(n.source for n in numbers))}."
    caption += f" All rows: {', '.join(shared)}." if shared else ""
    return Table(f"paper-{key}", TITLES.get(key, key), columns, rows, caption, notes=notes.lines())


def _by_row(numbers: Iterable[Published], facts: Sequence[str]) -> list[list[Published]]:
    """The numbers that the paper prints in one row."""
    found: dict[tuple, list[Published]] = {}
    for n in numbers:
        key = (n.method, n.multicrop, *(getattr(n, name) for name in facts if name != "hardware"), n.epochs)
        found.setdefault(key, []).append(n)
    return list(found.values())


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
    """Our number for the same recipe, protocol, metric and whole data; `not run` where there is none."""
    for item in study.items:
        if same_thing(n, item.record):
            return score_cell(item, n.metric, out)
    return MISSING


def same_thing(n: Published, record: Record) -> bool:
    """Whether a record measures what was published: by recipe, protocol and metric, on the official data."""
    recipe = record.checkpoint.pretrained.recipe
    same = record.protocol == n.protocol and recipe is not None and recipe == n.recipe
    return same and n.metric in record.scores and record.data.official is True


@dataclass
class Notes:
    """Footnotes of a table: a letter for each text, in the order in which they are needed."""

    letters: dict[str, str] = field(default_factory=dict)

    def cell(self, n: Published) -> Cell:
        marks = "".join(sorted(self.letter(text) for text in cautions(n)))
        decimals = 2 if n.unit == "GPU hours" or round(n.value, 1) != n.value else 1
        return replace(published(n.value, f"{n.value:.{decimals}f}", n.source), mark=marks)

    def letter(self, text: str) -> str:
        return self.letters.setdefault(text, ascii_lowercase[len(self.letters)])

    def lines(self) -> list[str]:
        return [f"{letter}  {text}" for text, letter in self.letters.items()]


def cautions(n: Published) -> list[str]:
    """What a reader of the number must be told."""
    inferred = "protocol inferred from the cited method's code; the source does not name it" if n.inferred else ""
    return [text for text in (n.caution, n.ambiguous, inferred) if text]


def gpu_hours(rows: Iterable[Published] | None = None) -> Mapping[str, float]:
    """recipe -> GPU hours an epoch that the AdCo paper prints."""
    rows = load_published() if rows is None else rows
    return {n.recipe: n.value for n in rows if n.metric == "gpu_hours_per_epoch" and n.recipe}
