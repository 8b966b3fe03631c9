"""Our own records as tables: one table a protocol and data set, and what their differences are worth."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

from adco.evaluation.comparison import column_key
from adco.evaluation.records import Data
from adco.report.collect import Item, Study, is_evaluation
from adco.report.elements import MISSING, Cell, Column, Section, Table, measured

SCORES = {
    "mAP": "mAP",
    "sample_AP": "AP by image",
    "top1": "top-1",
    "AP": "AP",
    "AP50": "AP50",
    "AP75": "AP75",
    "APs": "AP small",
    "segm/AP": "mask AP",
}
FAMILIES = {
    "imagenet-linear": "Linear classifier",
    "imagenet-semi": "Fine-tuning with few labels",
    "linear": "Linear probe on cached features",
    "knn": "Nearest neighbours",
    "voc07-svm": "VOC07 SVM",
    "voc07-linear": "VOC07 linear",
    "voc07-lowshot": "VOC07 low-shot SVM",
    "places205": "Places205 linear",
    "detection": "Detection",
}


def section(study: Study, out: Path) -> Section | None:
    """A table a benchmark and data set, in it a column a protocol. out: the report's folder, for links."""
    judged = sorted((item for item in study.items if is_evaluation(item.record)), key=_order)
    blocks = [benchmark_table(list(items), study.models, out) for _, items in groupby(judged, key=_order)]
    lead = (
        "One table is one benchmark on one data set, one column is one protocol: numbers under different heads are not "
        "comparable. Small print beside a score is its 95% interval. Each score leads to its record, which names the "
        "hardware, the commit and the command."
    )
    return Section("measured", "Measured by this code", [lead], blocks) if blocks else None


def _order(item: Item) -> tuple[int, str, str, bool, str]:
    """What the records of one table share: the benchmark and the data."""
    family, key = item.record.protocol.split("/")[0], column_key(item.record)
    place = list(FAMILIES).index(family) if family in FAMILIES else len(FAMILIES)
    return place, family, key.data, key.official, key.fingerprint


def benchmark_table(items: Sequence[Item], models: Sequence[str], out: Path) -> Table:
    """The records of one benchmark on one data set: a row a model, a column a protocol and score."""
    protocols = sorted({item.record.protocol for item in items})
    found = {(item.record.protocol, item.model): item for item in items}  # of two runs of one thing the later file
    columns, rows = [Column("model", numeric=False)], {m: [Cell(m)] for m in models if any(i.model == m for i in items)}
    for protocol in protocols:
        of_it = [item for item in items if item.record.protocol == protocol]
        for name in headline_scores(of_it):
            columns.append(Column(score_label(name), code=protocol.partition("/")[2] or protocol))
            for model, cells in rows.items():
                item = found.get((protocol, model))
                cells.append(score_cell(item, name, out) if item else MISSING)
    family = protocols[0].split("/")[0]
    key = slug(f"{family}-{items[0].record.data.fingerprint[:8] or items[0].record.data.name}")
    caption = ". ".join([*dict.fromkeys(data_in_words(i.record.data) for i in items), interval_in_words(items)])
    return Table(key, FAMILIES.get(family, family), columns, [tuple(cells) for cells in rows.values()], f"{caption}.")


def headline_scores(items: Sequence[Item]) -> list[str]:
    """The scores worth a column, in the order of SCORES; low-shot's by k; the first few where it has none of these."""
    there = {name for item in items for name in item.record.scores}
    found = [name for name in SCORES if name in there]
    shots = sorted((name for name in there if re.fullmatch(r"mAP/k\d+", name)), key=lambda name: int(name[5:]))
    return found + shots or sorted(name for name in there if not name.endswith("_std"))[:4]


def score_label(name: str) -> str:
    return SCORES.get(name) or (f"mAP, k = {name[5:]}" if name.startswith("mAP/k") else name)


def score_cell(item: Item, name: str, out: Path, ends: tuple[float, float] | None = None) -> Cell:
    """A score with its interval (or `ends`) that leads to its record; what is not in the record was not run."""
    score = item.record.scores.get(name)
    if score is None:
        return MISSING
    low, high = ends or (score.low, score.high)
    note = f"{item.record.hardware}; {score.trials} trial{'s' * (score.trials > 1)}"
    return measured(score.value, low=low, high=high, href=link(item.path, out), note=note)


def interval_in_words(items: Sequence[Item]) -> str:
    """What the small print under the scores is, for a caption."""
    kinds = set()
    for score in (score for item in items for score in item.record.scores.values()):
        kinds |= {OVER[score.over].format(score.trials)} if score.over else set()
    return f"95% intervals: {', '.join(sorted(kinds))}" if kinds else "No intervals in these records"


OVER = {"images": "bootstrap of the test images", "trials": "Student's t of the mean of {} trials"}


def data_in_words(data: Data) -> str:
    """Name and size of what was measured on; a subset says so beside the official size."""
    words = []
    for split, names in (("train", ("train", "trainval")), ("test", ("test", "val"))):
        parts = data.details.get(split)
        counts = [data.counts.get(f"{name}_images") for name in names] + [_boxed(parts)]
        whole = next((n for name in names if (n := data.counts.get(f"{name}_official"))), None)
        count = next(filter(None, counts), None) or (data.counts.get("images") if split == "train" else None)
        if count:
            words.append(f"{count:,} {split}{f' of {whole:,}' if whole and whole != count else ''}")
    subset = " – a subset, not the official set" if data.official is False else ""
    return f"{data.name}: {', '.join(words)} images{subset}" if words else data.name or "unnamed data"


def _boxed(parts: object) -> int | None:
    """Images of the data sets that detection was trained or tested on together."""
    if not isinstance(parts, Sequence):
        return None
    return sum(part["images"] for part in parts if isinstance(part, Mapping) and "images" in part)


def link(path: Path, out: Path) -> str:
    """The way from the report's folder to a record."""
    return Path(os.path.relpath(path.resolve(), out.resolve())).as_posix()


def minus(first: str, *second: str) -> str:
    """`first − second, more`, whose line breaks before the sign."""
    return f"{first} −\N{NO-BREAK SPACE}{', '.join(second)}"


def verdict(low: float, high: float) -> str:
    """How an interval of a difference reads."""
    if low <= 0 <= high:
        return "not told apart from zero"
    return "ahead" if low > 0 else "behind"


def slug(text: str) -> str:
    return re.sub(r"\W+", "-", text).strip("-").lower()
