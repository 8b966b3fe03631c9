"""The tables of MODEL_ZOO.md: cells, and the measured rows by protocol, data and image size."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from adco.config.loading import RECIPES
from adco.evaluation.comparison import Column, column_key, incompatibilities
from adco.evaluation.published import Published
from adco.evaluation.records import Data, Record
from adco.evaluation.score import Score
from adco.report.elements import MISSING, Notes
from adco.report.result_tables import split_sizes
from adco.report.text_table import HEADLINES, markdown_table, score_text

FAMILIES = {  # title -> first parts of the protocols' names
    "Pretraining, its own kNN probe": ("pretrain",),
    "Image folders: kNN, linear, few labels": ("knn", "linear", "imagenet-linear", "imagenet-semi"),
    "Places205, linear": ("places205-linear",),
    "VOC07 classification, SVM": ("voc07-svm",),
    "VOC07 classification, low-shot SVM": ("voc07-lowshot",),
    "VOC07 classification as the AdCo paper's": ("voc07-linear",),
    "Detection": ("detection",),
}


def models_table(records: Mapping[str, Record]) -> str:
    """A row for each evaluated model, with its checkpoint as pretraining wrote it."""
    of_models: dict[str, list[Record]] = {}
    for path, record in records.items():
        of_models.setdefault(path.split("/")[-2], []).append(record)
    rows = []
    for model, own in of_models.items():
        checkpoints = [record.checkpoint.pretrained for record in own if record.checkpoint.pretrained.sha256]
        shas = dict.fromkeys(f"`{c.sha256 if c.source == 'random' else c.sha256[:12] + '…'}`" for c in checkpoints)
        trained = next((f"{c.method}, {c.epochs} epochs" for c in checkpoints if c.method and c.epochs), "not known")
        arch = next((checkpoint.arch for checkpoint in checkpoints if checkpoint.arch), "-")
        random = all(checkpoint.source == "random" for checkpoint in checkpoints)
        rows.append((linked(model), arch, "none" if random else trained, "<br>".join(shas) or "-"))
    return markdown_table(("model", "architecture", "pretraining", "checkpoint (sha256)"), rows)


def measured(records: Mapping[str, Record], published: Sequence[Published], notes: Notes) -> list[str]:
    """A table for each family of protocols on each data set at each image size, with its heading."""
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
        data = next(iter(group.values())).data
        px = f" at {place[2].removesuffix('px')} px" if place[2] else ""
        protocols = {record.protocol.partition("@")[0] for record in group.values()}
        protocol = f" `{protocols.pop()}`" if len(protocols) == 1 else ""
        parts += [f"### {place[1]}{protocol}: {describe_data(data)}{px}\n", group_table(group, published, notes)]
    return parts


def group_table(group: Mapping[str, Record], published: Sequence[Published], notes: Notes) -> str:
    """A row for each model (folder of results), a column for each protocol and metric; published numbers are apart."""
    columns: dict[tuple[Column, str], None] = {}
    cells: dict[str, dict[tuple[Column, str], list[str]]] = {}
    papers: dict[tuple[Column, str], dict[str, list[Published]]] = {}
    for path, record in group.items():
        model = path.split("/")[-2]
        for metric in headlines(record):
            column = (column_key(record), metric)
            columns[column] = None
            cells.setdefault(model, {}).setdefault(column, []).append(cell(record.scores[metric], path))
            same = [row for row in published if row.metric == metric and comparable(record, row)]
            if same:
                papers.setdefault(column, {})[model] = same
    protocols, metrics = ({column[i] for column in columns} for i in (0, 1))
    header, rows = ["model"], {model: [linked(model)] for model in cells}
    for column in columns:
        protocol = column[0].protocol.partition("@")[0].replace("/", "/<br>")
        names = [protocol] * (len(protocols) > 1) + [column[1]] * (len(metrics) > 1 or len(protocols) == 1)
        header.append("<br>".join(names))
        for model, row in rows.items():
            row.append("<br>".join(cells[model].get(column, ())) or MISSING.text)
        if column in papers:
            header.append(f"{protocol}<br>paper")
            for model, row in rows.items():
                row.append(printed(papers[column].get(model, ()), notes))
    return markdown_table(header, rows.values())


def headlines(record: Record) -> list[str]:
    """The scores that get a cell; of low-shot the mAP for every k."""
    names = [name for name in record.scores if name in HEADLINES or name.startswith("mAP/k")]
    return sorted(names, key=lambda name: HEADLINES.index(name) if name in HEADLINES else len(HEADLINES))


def cell(score: Score, path: str, interval: str = "<br>{} to {}") -> str:
    """A score that links to its record, with its interval below or its deviation beside."""
    return score_text(score, interval=interval, link=path)


def describe_data(data: Data) -> str:
    """Name and size of the data; a subset is named as such."""
    sizes = ", ".join(f"{count} {split}" for split, count, _ in split_sizes(data))
    subset = "; not the official set" if data.official is False else ""
    return f"{data.name} ({sizes}{subset})" if sizes else data.name


def family_of(record: Record) -> str:
    """The title of a record's family, empty for records without one."""
    kind = record.protocol.partition("/")[0]
    return next((title for title, kinds in FAMILIES.items() if kind in kinds), "")


def comparable(record: Record, row: Published) -> bool:
    """Whether a record and a published number are comparable apart from cautions."""
    return all(reason.startswith("caution") for reason in incompatibilities(record, row))


def linked(model: str) -> str:
    """The name of a model, with a link to its recipe if there is one."""
    config = RECIPES / f"{model}.yaml"
    return f"[`{model}`](adco/recipes/{config.name})" if config.is_file() else f"`{model}`"


def printed(rows: Iterable[Published], notes: Notes) -> str:
    """Published numbers with their sources: `68.6 (AdCo, table 1, table 5)`; `-` for none."""
    by_value: dict[str, list[Published]] = {}
    for row in rows:
        by_value.setdefault(row.text, []).append(row)
    cells = []
    for value, same in by_value.items():
        marks = notes.marks(*dict.fromkeys(text for row in same for text in (row.caution, row.ambiguous)))
        sources = list(dict.fromkeys(row.source for row in same))
        ours = [source.removeprefix("AdCo, ") for source in sources if source.startswith("AdCo, ")]
        where = [f"AdCo, {', '.join(ours)}"] * bool(ours) + [s for s in sources if not s.startswith("AdCo, ")]
        cells.append(f"{value} ({'; '.join(where)}){marks}")
    return "<br>".join(cells) or "-"
