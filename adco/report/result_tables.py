"""Our own records as tables: one table for each benchmark and data set, one column for each protocol."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from adco.evaluation.comparison import column_key
from adco.evaluation.records import Data
from adco.report.collect import Item, Study, is_evaluation
from adco.report.elements import MISSING, Cell, Column, Section, Table, measured

SCORES = {  # names in records -> labels, in the order of the columns
    "mAP": "mAP",
    "sample_AP": "AP by image",
    "top1": "top-1",
    "AP": "AP",
    "AP50": "AP50",
    "AP75": "AP75",
    "APs": "AP small",
    "segm/AP": "mask AP",
}
FAMILIES = {  # first part of a protocol's name -> title of its table
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
INTERVALS = {"images": "bootstrap of the test images", "trials": "Student's t of the mean of {} trials"}


def section(study: Study, out: Path) -> Section | None:
    """The tables of all evaluations; None without any. out: folder of the report, for links."""
    evaluations = sorted((item for item in study.items if is_evaluation(item.record)), key=_order)
    blocks = [benchmark_table(list(items), study.models, out) for _, items in groupby(evaluations, key=_order)]
    lead = (
        "Each table is one benchmark on one data set, each column one protocol; numbers of different columns are not "
        "comparable. The small numbers beside a score are its 95% interval. Each score links to its record, which has "
        "the hardware, the commit and the command."
    )
    return Section("measured", "Measured by this code", [lead], blocks) if blocks else None


def _order(item: Item) -> tuple[int, str, str, bool, str]:
    """What the records of one table share: the benchmark and the data."""
    family, key = item.record.protocol.split("/")[0], column_key(item.record)
    place = list(FAMILIES).index(family) if family in FAMILIES else len(FAMILIES)
    return place, family, key.data, key.official, key.fingerprint


def benchmark_table(items: Sequence[Item], models: Sequence[str], out: Path) -> Table:
    """The records of one benchmark on one data set: a row for each model, a column for each protocol and score."""
    by_place = {(item.record.protocol, item.model): item for item in items}  # of two equal measurements the later file
    heads, rows = [Column("model", numeric=False)], {m: [Cell(m)] for m in models if any(i.model == m for i in items)}
    for protocol in sorted({item.record.protocol for item in items}):
        for name in headline_scores([item for item in items if item.record.protocol == protocol]):
            heads.append(Column(score_label(name), code=protocol.partition("/")[2] or protocol))
            for model, cells in rows.items():
                cells.append(score_cell(by_place.get((protocol, model)), name, out))
    family, data = items[0].record.protocol.split("/")[0], items[0].record.data
    key = slug(f"{family}-{data.fingerprint[:8] or data.name}")
    caption = ". ".join([*dict.fromkeys(describe_data(i.record.data) for i in items), describe_intervals(items)])
    return Table(key, FAMILIES.get(family, family), heads, list(rows.values()), f"{caption}.")


def headline_scores(items: Sequence[Item]) -> list[str]:
    """The scores that get a column: those of SCORES, low-shot's mAP by k, or else the first four by name."""
    names = {name for item in items for name in item.record.scores}
    shots = sorted((name for name in names if re.fullmatch(r"mAP/k\d+", name)), key=lambda name: int(name[5:]))
    headlines = [name for name in SCORES if name in names] + shots
    return headlines or sorted(name for name in names if not name.endswith("_std"))[:4]


def score_label(name: str) -> str:
    """The label of a score's column."""
    return SCORES.get(name) or (f"mAP, k = {name[5:]}" if name.startswith("mAP/k") else name)


def score_cell(item: Item | None, name: str, out: Path) -> Cell:
    """A score with its interval and a link to its record; "not run" if there is no such record or score."""
    score = item.record.scores.get(name) if item else None
    if item is None or score is None:
        return MISSING
    note = f"{item.record.hardware}; {score.trials} trial{'s' * (score.trials > 1)}"
    return measured(score.value, interval=score.interval, href=link(item.path, out), note=note)


def describe_intervals(items: Sequence[Item]) -> str:
    """What the intervals of these records are, for a caption."""
    scores = [score for item in items for score in item.record.scores.values()]
    kinds = sorted({INTERVALS[score.over].format(score.trials) for score in scores if score.over})
    return f"95% intervals: {', '.join(kinds)}" if kinds else "No intervals in these records"


def split_sizes(data: Data) -> Iterator[tuple[str, int, int | None]]:
    """(`train` or `test`, number of images, official number of images if known) of each split that has a size."""
    for split, names in (("train", ("train", "trainval")), ("test", ("test", "val"))):
        sizes = [data.counts.get(f"{name}_images") for name in names]
        parts = data.details.get(split)  # detection: data sets that were used together
        if isinstance(parts, Sequence):
            sizes.append(sum(part["images"] for part in parts if isinstance(part, dict) and "images" in part))
        size = next(filter(None, sizes), None) or (data.counts.get("images") if split == "train" else None)
        if size:
            yield split, size, next((n for name in names if (n := data.counts.get(f"{name}_official"))), None)


def describe_data(data: Data) -> str:
    """Name and size of the data; a subset is named as such, with the official size."""
    sizes = [
        f"{n:,} {split}{f' of {whole:,}' if whole and whole != n else ''}" for split, n, whole in split_sizes(data)
    ]
    subset = " – a subset, not the official set" if data.official is False else ""
    return f"{data.name}: {', '.join(sizes)} images{subset}" if sizes else data.name or "unnamed data"


def link(path: Path, out: Path) -> str:
    """The relative address of a record from the report's folder."""
    return Path(os.path.relpath(path.resolve(), out.resolve())).as_posix()


def minus(first: str, *second: str) -> str:
    """`first − second, more`, whose line breaks before the sign."""
    return f"{first} −\N{NO-BREAK SPACE}{', '.join(second)}"


def verdict(interval: tuple[float, float] | None) -> str:
    """What the 95% interval of a difference says."""
    if interval is None:
        return "one seed: no interval"
    low, high = interval
    if low <= 0 <= high:
        return "no significant difference"
    return "ahead" if low > 0 else "behind"


def slug(text: str) -> str:
    """A text as an anchor: lower case, words joined by `-`."""
    return re.sub(r"\W+", "-", text).strip("-").lower()
