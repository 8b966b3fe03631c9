"""The tables of MODEL_ZOO.md: cells, footnotes, and the measured rows by protocol, data and image size."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from adco.config.loading import RECIPES
from adco.evaluation.comparison import Column, column_key, incompatibilities
from adco.evaluation.published import Published
from adco.evaluation.records import Data, Record, Score

HEADLINES = ("mAP", "sample_AP", "top1", "AP", "AP50", "AP75", "segm/AP", "knn_top1")  # worth a cell, in this order
FAMILIES = {
    "Pretraining, its own kNN probe": ("pretrain",),
    "Image folders: kNN, linear, few labels": ("knn", "linear", "imagenet-linear", "imagenet-semi"),
    "Places205, linear": ("places205-linear",),
    "VOC07 classification, SVM": ("voc07-svm",),
    "VOC07 classification, low-shot SVM": ("voc07-lowshot",),
    "VOC07 classification as the AdCo paper's": ("voc07-linear",),
    "Detection": ("detection",),
}


@dataclass
class Notes:
    """Footnotes in the order in which they are first asked for."""

    texts: list[str] = field(default_factory=list)

    def mark(self, *texts: str | None) -> str:
        """`[^1][^2]` for those texts that are not None."""
        marks = []
        for text in filter(None, texts):
            if text not in self.texts:
                self.texts.append(text)
            marks.append(f"[^{self.texts.index(text) + 1}]")
        return "".join(marks)

    def lines(self) -> str:
        return "".join(f"[^{number}]: {text}.\n" for number, text in enumerate(self.texts, 1))


def models_table(records: Mapping[str, Record]) -> str:
    """What was judged: a row a model, with its checkpoint as pretraining wrote it."""
    found: dict[str, list[Record]] = {}
    for path, record in records.items():
        found.setdefault(path.split("/")[-2], []).append(record)
    rows = []
    for model, own in found.items():
        checkpoints = [record.checkpoint.pretrained for record in own if record.checkpoint.pretrained.sha256]
        shas = dict.fromkeys(f"`{c.sha256 if c.source == 'random' else c.sha256[:12] + '…'}`" for c in checkpoints)
        trained = next((f"{c.method}, {c.epochs} epochs" for c in checkpoints if c.method and c.epochs), "not known")
        arch = next((checkpoint.arch for checkpoint in checkpoints if checkpoint.arch), "-")
        random = all(checkpoint.source == "random" for checkpoint in checkpoints)
        rows.append((linked(model), arch, "none" if random else trained, "<br>".join(shas) or "-"))
    return table(("model", "architecture", "pretraining", "checkpoint (sha256)"), rows)


def measured(records: Mapping[str, Record], published: Sequence[Published], notes: Notes) -> list[str]:
    """A table for each family of protocols on each data set at each image size: a row a model, a column a protocol."""
    groups: dict[tuple[str, ...], dict[str, Record]] = {}
    for path, record in records.items():
        key, family = column_key(record), family_of(record)
        protocol, _, px = record.protocol.partition("@")
        place = (key.data, family, px, key.fingerprint, protocol if "low-shot" in family else "")
        groups.setdefault(place, {})[path] = record
    order = list(FAMILIES)
    parts = []
    for place in sorted(groups, key=lambda place: (order.index(place[1]), place)):
        group = groups[place]
        first = next(iter(group.values()))
        px = f" at {place[2].removesuffix('px')} px" if place[2] else ""
        protocols = {record.protocol.partition("@")[0] for record in group.values()}
        protocol = f" `{protocols.pop()}`" if len(protocols) == 1 else ""
        parts.append(f"### {place[1]}{protocol}: {data_in_words(first.data)}{px}\n")
        parts.append(group_table(group, published, notes))
    return parts


def group_table(group: Mapping[str, Record], published: Sequence[Published], notes: Notes) -> str:
    """Rows are models (folders of results), columns (protocol, metric); a paper's number has a column of its own."""
    columns: dict[tuple[Column, str], None] = {}
    cells: dict[str, dict[tuple[Column, str], list[str]]] = {}
    papers: dict[tuple[Column, str], dict[str, list[Published]]] = {}
    for path, record in group.items():
        model = path.split("/")[-2]
        for metric in headlines(record):
            column = (column_key(record), metric)
            columns[column] = None
            cells.setdefault(model, {}).setdefault(column, []).append(cell("", record.scores[metric], path))
            beside = [row for row in published if row.metric == metric and not _differs(record, row)]
            if beside:
                papers.setdefault(column, {})[model] = beside
    protocols, metrics = ({column[i] for column in columns} for i in (0, 1))
    header, rows = ["model"], {model: [linked(model)] for model in cells}
    for column in columns:
        protocol = column[0].protocol.partition("@")[0].replace("/", "/<br>")
        names = [protocol] * (len(protocols) > 1) + [column[1]] * (len(metrics) > 1 or len(protocols) == 1)
        header.append("<br>".join(names))
        for model, row in rows.items():
            row.append("<br>".join(cells[model].get(column, ())) or "not run")
        if column in papers:
            header.append(f"{protocol}<br>paper")
            for model, row in rows.items():
                row.append(printed(papers[column].get(model, ()), notes))
    return table(header, rows.values())


def headlines(record: Record) -> list[str]:
    """The scores worth a cell, low-shot's mAP for every k among them."""
    found = [name for name in record.scores if name in HEADLINES or name.startswith("mAP/k")]
    return sorted(found, key=lambda name: HEADLINES.index(name) if name in HEADLINES else len(HEADLINES))


def cell(label: str, score: Score, path: str) -> str:
    """A linked score, and under it its interval or deviation."""
    value = f"[{score:.2f}]({path})"
    if score.std is not None:
        value += f" ± {score.std:.2f}"
    elif score.low is not None:
        value += f"<br>{score.low:.2f} to {score.high:.2f}"
    return f"{label} {value}".strip()


def data_in_words(data: Data) -> str:
    """Name and size of what was judged on, so that a subset is never taken for the whole."""
    counts, details = data.counts, data.details
    train = counts.get("train_images") or counts.get("trainval_images") or counts.get("images")
    test = counts.get("val_images") or counts.get("test_images")
    train = train or sum(part["images"] for part in details.get("train", ()))
    test = test or sum(part["images"] for part in details.get("test", ()))
    sizes = ", ".join(f"{count} {split}" for split, count in (("train", train), ("test", test)) if count)
    subset = "; not the official set" if data.official is False else ""
    return f"{data.name} ({sizes}{subset})" if sizes else data.name


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; `|` in a cell is escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(str(c).replace('|', chr(92) + '|') for c in line)} |\n" for line in lines)


def family_of(record: Record) -> str:
    kind = record.protocol.partition("/")[0]
    return next((title for title, kinds in FAMILIES.items() if kind in kinds), "")


def _differs(record: Record, row: Published) -> list[str]:
    return [reason for reason in incompatibilities(record, row) if not reason.startswith("caution")]


def linked(model: str) -> str:
    config = RECIPES / f"{model}.yaml"
    return f"[`{model}`](adco/recipes/{config.name})" if config.is_file() else f"`{model}`"


def printed(rows: Iterable[Published], notes: Notes) -> str:
    """`68.6 (AdCo, tables 1 and 5)`: equal numbers together, each with its footnotes; `-` for none."""
    found: dict[str, list[Published]] = {}
    for row in rows:
        short = row.unit == "percent" and round(row.value, 1) == row.value
        found.setdefault(f"{row.value:.1f}" if short else f"{row.value:.2f}", []).append(row)
    cells = []
    for value, same in found.items():
        marks = notes.mark(*dict.fromkeys(text for row in same for text in (row.caution, row.ambiguous)))
        tables = [row.source.removeprefix("AdCo, ") for row in same if row.source.startswith("AdCo, ")]
        where = ([f"AdCo, {', '.join(dict.fromkeys(tables))}"] if tables else []) + [
            row.source for row in same if not row.source.startswith("AdCo, ")
        ]
        cells.append(f"{value} ({'; '.join(dict.fromkeys(where))}){marks}")
    return "<br>".join(cells) or "-"
