"""Figures made of images or bars: the bank (figure 2), detections side by side, AP by class."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adco.report.accuracy_curves import NARROW, WIDE
from adco.report.charts import Point, Series, bar_chart
from adco.report.collect import Item, Study, is_evaluation
from adco.report.elements import Cell, Figure, Panel, Section, Table, columns, measured, number
from adco.report.result_tables import FAMILIES, describe_data, slug

CLASS = re.compile(r"(?:(?P<part>.*)/)?AP[/-](?P<name>[^/]+)")
OUTLIERS = "pretraining/bank-outliers"  # protocol of a record with the numbers of tools/draw_bank.py
SEEN = 0.05  # percent, the lowest AP that a bar can show
MOST = 3  # models in one figure of AP by class


def bank_section(study: Study, papers: bool = True) -> Section:
    """Figure 2: images of tools/draw_bank.py with their numbers, from its JSON files or from records.

    Args:
        study: The results.
        papers: Say so if there is no image.
    """
    numbers = [(path, json.loads(path.read_text())) for path in study.maps]
    numbers += [(item.path, item.record.settings) for item in study.items if item.record.protocol == OUTLIERS]
    blocks = [block for path, content in numbers for block in _bank_blocks(path, content)]
    if papers and not blocks:
        missing = "No image of the bank is among the results; tools/draw_bank.py draws it from checkpoints."
        blocks = [Figure("figure-2", "Figure 2: the bank among the queries", "", missing=missing)]
    return Section("bank", "The bank among the queries", [], blocks)


def _bank_blocks(path: Path, content: Mapping[str, Any]) -> list[Figure | Table]:
    runs, settings, image = content["runs"], content["settings"], path.with_suffix(".png")
    key = slug(f"{path.parent.name}-{path.stem}")
    heads = columns("run", numeric=False) + columns("outliers", "rows", "queries", "median nearest cosine")
    heads += columns("effective rank of bank", "of queries")
    rows = [
        (
            Cell(f"{run['name']}, step {run['step']:,}"),
            measured(100 * run["outlier_share"], ".1f", " %"),
            number(run["bank_rows"], ","),
            number(run["queries"], ","),
            measured(run["median_nearest_cosine"], ".3f"),
            measured(run["bank_effective_rank"], ".1f"),
            measured(run["query_effective_rank"], ".1f"),
        )
        for run in runs
    ]
    caption = (
        "A negative is an outlier if its largest cosine to any query is below the "
        f"{settings.get('outlier_percentile', 5):g}th percentile of the cosines between queries and their nearest "
        "other query."
    )
    blocks: list[Figure | Table] = []
    if image.is_file():
        alt = "t-SNE of bank rows among queries: " + "; ".join(
            f"{run['name']}: {run['outlier_share']:.1%} of {run['bank_rows']} negatives are outliers" for run in runs
        )
        shown, images = settings.get("rows", "some"), settings.get("images", "as many")
        below = f"t-SNE of {shown} bank rows among queries of {images} images."
        panel = Panel(alt, png=image.read_bytes())
        blocks.append(Figure(f"figure-2-{key}", "Figure 2: the bank among the queries", below, [panel]))
    return [*blocks, Table(f"outliers-{key}", "Outlier negatives", heads, rows, caption)]


def detection_section(study: Study, images: Mapping[str, Sequence[tuple[str, bytes]]], caption: str) -> Section:
    """Detections side by side, if there are any, and AP by class. images, caption: see `detection_figure`."""
    drawn = [detection_figure(images, caption)] if images else []
    return Section("classes", "Detections and classes", [], [*drawn, *class_figures(study)])


def detection_figure(images: Mapping[str, Sequence[tuple[str, bytes]]], caption: str) -> Figure:
    """Detections of several detectors on test images. images: image -> (whose boxes, PNG) from the left."""
    panels = [
        Panel(f"{name} with boxes: {whose}", png=image, title=f"{name}, {whose}")
        for name, drawn in images.items()
        for whose, image in drawn
    ]
    across = max((len(drawn) for drawn in images.values()), default=1)
    return Figure("detections", "Detections, side by side", caption, panels, columns=across)


def class_figures(study: Study) -> list[Figure]:
    """AP by class for each benchmark and data set, under the protocol with the most models."""
    evaluations: dict[tuple[str, str], dict[str, dict[str, Item]]] = defaultdict(lambda: defaultdict(dict))
    for item in study.items:
        if is_evaluation(item.record) and class_scores(item):
            benchmark = item.record.protocol.split("/")[0], item.record.data.fingerprint
            evaluations[benchmark][item.record.protocol].setdefault(item.model, item)
    most = [max(protocols.values(), key=len) for _, protocols in sorted(evaluations.items())]
    return [figure for items in most if (figure := _class_figure(list(items.values())))]


def _selected(items: Sequence[Item]) -> list[Item]:
    """At most MOST items: the best of each method, then the next best."""
    ranked = sorted(items, key=lambda item: -item.record.scores.get("mAP", item.record.scores.get("AP", 0)))
    first = {item.record.checkpoint.pretrained.method or item.model: item for item in reversed(ranked)}
    chosen = [item for item in ranked if item in first.values()]
    return (chosen + [item for item in ranked if item not in chosen])[:MOST]


def class_scores(item: Item) -> dict[str, str]:
    """class -> name of its score, for `AP/cat`, `AP-cat`, `bbox/AP-cat`; not for masks."""
    matches = filter(None, (CLASS.fullmatch(name) for name in item.record.scores))
    return {match["name"]: match[0] for match in matches if match["part"] in (None, "bbox")}


def _class_figure(every: Sequence[Item]) -> Figure | None:
    """None if no model reaches SEEN in any class."""
    first, items = every[0].record, _selected(every)
    scores = [{c: item.record.scores[name] for c, name in class_scores(item).items()} for item in items]
    classes = sorted(class_scores(every[0]), key=lambda c: -scores[0].get(c, 0))
    shown = [c for c in classes if any(own.get(c, 0) >= SEEN for own in scores)]
    if not shown:
        return None
    series = []
    for slot, (item, own) in enumerate(zip(items, scores, strict=True), 1):
        known = [(row, own[c]) for row, c in enumerate(shown) if c in own]
        points = [Point(row, score.value, *(score.interval or (score.value, score.value))) for row, score in known]
        series.append(Series(item.model, points, slot))
    wide, narrow = (bar_chart(shown, series, width, "AP (%)") for width, _ in (WIDE, NARROW))
    intervals = any(own[c].interval for own in scores for c in shown if c in own)
    title = f"AP by class: {FAMILIES.get(first.protocol.split('/')[0], '')} {first.protocol}"
    caption = f"{describe_data(first.data)}. "
    caption += "Whiskers: 95% intervals of the records." if intervals else "No intervals by class in these records."
    if out := len(classes) - len(shown):
        caption += f" Left out, below {SEEN}: {out} class{'es' * (out > 1)}."
    if (more := len(every) - MOST) > 0:
        caption += f" {more} more models are not drawn."
    best = ", ".join(f"{one.name} {shown[0]} {one.points[0].y:.1f}" for one in series if one.points)
    alt = f"{title}: {len(shown)} classes, sorted by the first model. First class: {best}."
    legend = [(one.name, one.slot, "hollow" if number % 2 else "bar") for number, one in enumerate(series)]
    return Figure(f"classes-{slug(first.protocol)}", title, caption, [Panel(alt, wide, narrow)], legend)
