"""Figures that are images or bars: the bank's map (figure 2), detections side by side, AP by class."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from adco.report.accuracy_curves import NARROW, WIDE
from adco.report.charts import Point, Series, bar_chart
from adco.report.collect import Item, Study, is_evaluation
from adco.report.elements import MEASURED, Cell, Column, Figure, Panel, Section, Table, measured
from adco.report.result_tables import FAMILIES, data_in_words, slug

CLASS = re.compile(r"(?:(?P<part>.*)/)?AP[/-](?P<name>[^/]+)")
OUTLIERS = "pretraining/bank-outliers"  # a record of the same numbers
SEEN = 0.05  # percent, the least AP that a bar can show
MOST = 3  # models whose classes are drawn in one figure


def bank_section(study: Study, papers: bool = True) -> Section:
    """Figure 2: PNG files of tools/draw_bank.py with the numbers beside them, as it writes them or in a record.

    papers: beside the paper's figures, so that it is said when there is none
    """
    reported = [(path, json.loads(path.read_text())) for path in study.maps]
    reported += [(item.path, item.record.settings) for item in study.items if item.record.protocol == OUTLIERS]
    blocks = [block for path, numbers in reported for block in _bank_map(path, numbers)]
    if papers and not blocks:
        missing = "No image of the bank is among the results; tools/draw_bank.py draws it from checkpoints."
        blocks = [Figure("figure-2", "Figure 2: the bank among the queries", "", missing=missing)]
    return Section("bank", "The bank, drawn", [], blocks)


def _bank_map(path: Path, reported: Mapping) -> list[Figure | Table]:
    runs, image, key = reported["runs"], path.with_suffix(".png"), slug(f"{path.parent.name}-{path.stem}")
    columns = [Column("run", numeric=False), Column("outliers"), Column("rows"), Column("queries")]
    columns += [Column("median nearest cosine"), Column("effective rank of bank"), Column("of queries")]
    rows = [
        (
            Cell(f"{run['name']}, step {run['step']:,}"),
            Cell(f"{100 * run['outlier_share']:.1f} %", MEASURED, 100 * run["outlier_share"]),
            Cell(f"{run['bank_rows']:,}", value=run["bank_rows"]),
            Cell(f"{run['queries']:,}", value=run["queries"]),
            measured(run["median_nearest_cosine"], 3),
            measured(run["bank_effective_rank"], 1),
            measured(run["query_effective_rank"], 1),
        )
        for run in runs
    ]
    caption = (
        "A negative is an outlier if its largest cosine to any query is below the "
        f"{reported['settings'].get('outlier_percentile', 5):g}th percentile of what queries have to their "
        "nearest other."
    )
    blocks: list[Figure | Table] = []
    if image.is_file():
        alt = "t-SNE of bank rows among queries: " + "; ".join(
            f"{run['name']}: {run['outlier_share']:.1%} of {run['bank_rows']} negatives are outliers" for run in runs
        )
        shown = reported["settings"].get("rows", "some")
        blocks.append(
            Figure(
                f"figure-2-{key}",
                "Figure 2: the bank among the queries",
                f"t-SNE of {shown} bank rows among queries of {reported['settings'].get('images', 'as many')} images.",
                [Panel(alt, png=image.read_bytes())],
            )
        )
    return [*blocks, Table(f"outliers-{key}", "Outlier negatives", columns, rows, caption)]


def detection_figure(images: Mapping[str, Sequence[tuple[str, bytes]]], reported: str) -> Figure:
    """Test images drawn on by several detectors, side by side. images: image -> (whose boxes, PNG) from the left."""
    panels = [
        Panel(f"{name} with boxes: {whose}", png=image, title=f"{name}, {whose}")
        for name, drawn in images.items()
        for whose, image in drawn
    ]
    columns = max((len(drawn) for drawn in images.values()), default=1)
    return Figure("detections", "Detections, side by side", reported, panels, columns=columns)


def class_figures(study: Study) -> list[Figure]:
    """AP by class with intervals: for each benchmark and data set, under the protocol that judged the most models."""
    found = defaultdict(lambda: defaultdict(dict))
    for item in study.items:
        if is_evaluation(item.record) and class_scores(item):
            benchmark = item.record.protocol.split("/")[0], item.record.data.fingerprint
            found[benchmark][item.record.protocol].setdefault(item.model, item)
    most = [max(protocols.values(), key=len) for _, protocols in sorted(found.items())]
    return [figure for items in most if (figure := _class_figure(list(items.values())))]


def _apart(items: Sequence[Item]) -> list[Item]:
    """At most MOST items, of different methods as far as there are any: the best of each, then the next best."""
    ranked = sorted(items, key=lambda item: -item.record.scores.get("mAP", item.record.scores.get("AP", 0)))
    first = {item.record.checkpoint.pretrained.method or item.model: item for item in reversed(ranked)}
    chosen = [item for item in ranked if item in first.values()]
    return (chosen + [item for item in ranked if item not in chosen])[:MOST]


def class_scores(item: Item) -> dict[str, str]:
    """class -> the score's name, for `AP/cat`, `AP-cat`, `bbox/AP-cat`; masks are left to their own tables."""
    found = {}
    for name in item.record.scores:
        match = CLASS.fullmatch(name)
        if match and match["part"] in (None, "bbox"):
            found[match["name"]] = name
    return found


def _class_figure(items: Sequence[Item]) -> Figure | None:
    """None where no model finds any class."""
    first, more, items = items[0], len(items) - MOST, _apart(items)
    every = sorted(class_scores(first), key=lambda name: -items[0].record.scores.get(class_scores(first)[name], 0))
    names = [n for n in every if any(item.record.scores.get(class_scores(item).get(n), 0) >= SEEN for item in items)]
    if not names:
        return None
    series, spread = [], False
    for slot, item in enumerate(items, 1):
        scores, points = class_scores(item), []
        for row, name in enumerate(names):
            if name in scores:
                score = item.record.scores[scores[name]]
                spread = spread or score.low is not None
                ends = (score.value, score.value) if score.low is None else (score.low, score.high)
                points.append(Point(row, score.value, *ends))
        series.append(Series(item.model, points, slot))
    charts = [bar_chart(names, series, width, "AP (%)") for width, _ in (WIDE, NARROW)]
    title = f"AP by class: {FAMILIES.get(first.record.protocol.split('/')[0], '')} {first.record.protocol}"
    caption = f"{data_in_words(first.record.data)}. "
    caption += "Whiskers: 95% intervals of the records." if spread else "No intervals by class in these records."
    if out := len(every) - len(names):
        caption += f" Left out, below {SEEN}: {out} class{'es' * (out > 1)}."
    caption += f" {more} more models are not drawn." if more > 0 else ""
    best = ", ".join(f"{one.name} {names[0]} {one.points[0].y:.1f}" for one in series if one.points)
    alt = f"{title}: {len(names)} classes, sorted by the first model. First class: {best}."
    legend = [(one.name, one.slot, "hollow" if number % 2 else "bar") for number, one in enumerate(series)]
    return Figure(f"classes-{slug(first.record.protocol)}", title, caption, [Panel(alt, *charts)], legend)
