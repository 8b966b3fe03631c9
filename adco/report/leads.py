"""Accuracy over epochs as a chapter: figure 1, and what AdCo leads MoCo v2 by."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from adco.evaluation.comparison import over_trials
from adco.evaluation.published import Published, load_published
from adco.evaluation.records import Score
from adco.report.accuracy_curves import METHOD_STYLES, NARROW, OWN, WIDE, Group, curves_of, figure, groups_of, name_of
from adco.report.charts import Point, Series, line_chart
from adco.report.collect import Study
from adco.report.elements import Cell, Column, Figure, Panel, Section, Table, measured
from adco.report.result_tables import data_in_words, link, minus, slug, verdict

EARLY = 10, 20, 50  # epochs
PRINTED = "adco-1", "adco-3", "adco-text"  # published tables with points of figure 1
LOW = (WIDE[0], 280), (NARROW[0], 260)


def published_figure(rows: Sequence[Published]) -> Figure:
    """What the paper's text and tables say of its figure 1 in numbers: its curve itself is only drawn there."""
    series = []
    for method, slot in (METHOD_STYLES["adco"], METHOD_STYLES["moco"]):
        same = [n for n in rows if n.method == method and n.table in PRINTED and not (n.multicrop or n.symmetric)]
        values = sorted({(n.epochs, n.value) for n in same if n.metric == "top1" and n.negatives in (None, 65536)})
        series.append(Series(method, [Point(x, y, y, y) for x, y in values], slot, lone=True))
    reported = "; ".join(
        f"{one.name}: " + ", ".join(f"{p.y:g} at {p.x:g} epochs" for p in one.points) for one in series
    )
    charts = [line_chart(series, size, "epochs of pretraining", "linear top-1 (%)", size == LOW[0]) for size in LOW]
    caption = (
        f"{reported}. ResNet-50, ImageNet, single crop, K = 65536. AdCo's under imagenet-linear/adco, MoCo v2's quoted "
        "from elsewhere, under its own protocol; at 10 epochs the text puts MoCo v2 “almost 5%” below."
    )
    legend = [(one.name, one.slot, "line") for one in series]
    title = "Figure 1 as published: the points that are given as numbers"
    return Figure(
        "figure-1-published", title, caption, [Panel(f"Published points. {reported}.", *charts)], legend, named=True
    )


def section(study: Study, out: Path, papers: bool = True) -> Section:
    """Figure 1 for each protocol with its table; nothing of it is on the scale of the paper's own figure."""
    curves = curves_of(study)
    groups, reported, blocks = groups_of(curves), recorded_lead(study, out), []
    for protocol in sorted({protocol for group in groups for protocol in group.curves}, reverse=True):
        data = "; ".join(sorted({c.data for c in curves if c.protocol == protocol and c.data})) or "data not recorded"
        archs = sorted(
            {str((g.recipe.get("encoder") or {}).get("arch", "?")) for g in groups if g.curves.get(protocol)}
        )
        what = "The runs' own kNN probe" if protocol == OWN else protocol
        blocks.append(figure(groups, protocol, f"{what} on {data}; {', '.join(archs)}."))
        blocks.append(None if reported else lead_table(groups, protocol))
    if papers and not blocks:
        missing = "No run with an accuracy over epochs is among the results: a metrics.jsonl whose rows have knn_top1."
        blocks = [Figure("figure-1", "Figure 1: accuracy over epochs", "", missing=missing)]
    blocks += [*reported, published_figure(load_published()) if papers else None]
    return Section("epochs", "Accuracy over epochs", [], [block for block in blocks if block])


def lead_table(groups: Sequence[Group], protocol: str) -> Table | None:
    """AdCo (and its symmetric form) minus MoCo v2 at 10, 20, 50 epochs and the last one that both have."""
    having = [group for group in groups if group.curves.get(protocol)]
    theirs = next((group for group in having if group.slot == METHOD_STYLES["moco"][1]), None)
    rows = []
    for ours in having if theirs else ():
        if ours.slot != METHOD_STYLES["adco"][1]:
            continue
        shared = set.intersection(*(set(curve) for curve in ours.curves[protocol] + theirs.curves[protocol]))
        for epoch in sorted({e for e in EARLY if e in shared} | ({max(shared)} if shared else set())):
            sides = [Score.over_trials([c[epoch] for c in group.curves[protocol]]) for group in (theirs, ours)]
            seeds = f"{sides[1].trials}, {sides[0].trials}"
            cells = Cell(minus(ours.name, theirs.name)), Cell(f"{epoch:g}", value=epoch)
            rows.append((*cells, *_difference(*sides, seeds)))
    caption = f"Difference of the mean {name_of(protocol)} in points. 95% interval: Welch's t over the seeds."
    return _lead_table(slug(protocol), rows, caption)


def _difference(theirs: Score, ours: Score, seeds: str) -> tuple[Cell, Cell, Cell]:
    """The points, the seeds of each side, and how it reads."""
    try:
        found = over_trials(theirs, ours, "top1")
    except ValueError:
        return measured(ours - theirs), Cell(seeds), Cell("one seed: no interval")
    points = measured(found.difference, low=found.low, high=found.high)
    return points, Cell(seeds), Cell(verdict(found.low, found.high))


def recorded_lead(study: Study, out: Path) -> list[Table]:
    """The same from records of experiments/lead.py, which resample the test images, the same for both methods.

    Of several of one pair of methods on the same data the one with the most seeds.
    """
    found, tables = {}, []
    for item in study.items:
        if item.record.protocol.startswith("pretraining/lead"):
            settings = item.record.settings
            pair = item.record.protocol, item.record.data.fingerprint, settings["first"], settings["second"]
            found[pair] = max(found.get(pair, item), item, key=lambda item: item.record.settings["seeds"])
    for item in found.values():
        settings, rows = item.record.settings, []
        first, second = (METHOD_STYLES[settings[side]][0] for side in ("first", "second"))
        for row in settings["rows"]:
            low, high = row["interval95_images"]
            difference = measured(row["lead"], low=low, high=high, href=link(item.path, out))
            cells = Cell(minus(first, second, name_of(row["probe"]))), Cell(f"{row['epoch']}", value=row["epoch"])
            rows.append((*cells, difference, Cell(f"{row['seeds']}, {row['seeds']}"), Cell(verdict(low, high))))
        caption = (
            f"{data_in_words(item.record.data)}. Difference of the means over seeds in points. 95% interval: bootstrap "
            "of the test images, the same images for both; it does not hold the spread between seeds."
        )
        tables.append(_lead_table(slug(item.path.stem), rows, caption))
    return tables


def _lead_table(key: str, rows: Sequence[Sequence[Cell]], caption: str) -> Table | None:
    columns = [Column("difference of", numeric=False), Column("epoch"), Column("points"), Column("seeds")]
    columns.append(Column("reading", numeric=False))
    return Table(f"lead-{key}", "Does AdCo lead early?", columns, rows, caption) if rows else None
