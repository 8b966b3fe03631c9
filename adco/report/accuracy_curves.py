"""Accuracy over epochs: figure 1 of the AdCo paper, and the difference between AdCo and MoCo v2."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from adco.config.validation import METHOD_NAMES
from adco.evaluation.comparison import over_trials
from adco.evaluation.published import Published, load_published
from adco.evaluation.score import Score
from adco.report.charts import Point, Series, line_chart
from adco.report.collect import Item, Study
from adco.report.elements import Cell, Figure, Panel, Section, Table, columns, measured, number
from adco.report.result_tables import describe_data, link, minus, slug, verdict

WIDE, NARROW = (760, 400), (358, 320)  # width and height of a chart in px
LOW = (WIDE[0], 280), (NARROW[0], 260)
METHOD_STYLES = {  # name, and the slot of the palette for the method on the whole page
    method: (name, slot) for slot, (method, name) in enumerate(METHOD_NAMES.items(), 1)
}
IGNORED = ("seed", "device", "data", "compute", "monitor", "probe", "checkpoint")  # keys that do not change the method
OWN = "pretraining/probe"  # the kNN probe that a run makes while it trains
EARLY = 10, 20, 50  # epochs
PRINTED = "adco-1", "adco-3", "adco-text"  # published tables with points of figure 1


@dataclass(frozen=True)
class Curve:
    """One run under one protocol on one data set. values: epoch -> percent."""

    protocol: str
    data: str
    recipe: Mapping[str, Any]
    values: Mapping[float, float]


@dataclass
class Group:
    """Runs that differ only in the seed. curves: protocol -> for each seed, epoch -> percent."""

    name: str
    slot: int
    symmetric: bool
    recipe: Mapping[str, Any]
    curves: Mapping[str, list[dict[float, float]]] = field(default_factory=lambda: defaultdict(list))

    def of(self, method: str) -> bool:
        """Whether the runs are of the method, symmetric or not."""
        return self.slot == METHOD_STYLES[method][1]


def curves_of(study: Study) -> list[Curve]:
    """The recorded curves (`pretraining/curve-...`), or the runs' own probes if nothing was recorded."""
    curves = []
    for record in (item.record for item in study.items):
        rows = record.settings.get("curve")
        if record.protocol.startswith("pretraining/curve") and isinstance(rows, list) and len(rows) > 1:
            values = {float(row["epoch"]): float(row["top1"]) for row in rows}
            recipe = record.settings.get("pretraining") or {}
            curves.append(Curve(record.protocol, describe_data(record.data), recipe, values))
    if curves:
        return curves
    own = [(run, {float(r["epoch"]): float(r["knn_top1"]) for r in run.rows if "knn_top1" in r}) for run in study.runs]
    return [Curve(OWN, run.record.data.name if run.record else "", run.recipe, values) for run, values in own if values]


def groups_of(curves: Sequence[Curve]) -> list[Group]:
    """Curves grouped by recipe; AdCo first, then MoCo v2, as in the paper."""
    groups: dict[str, Group] = {}
    for curve in curves:
        if curve.recipe.get("method") not in METHOD_STYLES:
            continue
        name, slot = METHOD_STYLES[curve.recipe["method"]]
        kept = {key: value for key, value in curve.recipe.items() if key not in IGNORED}
        symmetric = bool((kept.get("contrast") or {}).get("symmetric"))
        new = Group(f"{name} symmetric" if symmetric else name, slot, symmetric, kept)
        group = groups.setdefault(json.dumps(kept, sort_keys=True, default=str), new)
        group.curves[curve.protocol].append(dict(curve.values))
    ordered = sorted(groups.values(), key=lambda group: (group.slot, group.symmetric))
    for name in {group.name for group in ordered}:
        _distinguish([group for group in ordered if group.name == name])
    return ordered


def _distinguish(groups: Sequence[Group]) -> None:
    """Append the first keys in which the recipes differ to the names of groups with equal names."""
    recipes = [flat(group.recipe) for group in groups]
    keys = sorted({key for recipe in recipes for key in recipe if len({other.get(key) for other in recipes}) > 1})
    for group, recipe in zip(groups, recipes, strict=True):
        if len(groups) > 1:
            group.name += " · " + ", ".join(f"{key.split('.')[-1]} {recipe.get(key)}" for key in keys[:2])


def flat(tree: object, prefix: str = "") -> dict[str, str]:
    """Nested mappings as `section.key` -> text of the value."""
    if not isinstance(tree, Mapping):
        return {prefix: str(tree)}
    parts = [flat(value, f"{prefix}.{key}" if prefix else str(key)) for key, value in tree.items()]
    return {key: text for part in parts for key, text in part.items()}


def mean_curve(curves: Sequence[Mapping[float, float]]) -> list[Point]:
    """The mean over seeds with the lowest and highest value, at the epochs that all seeds have."""
    epochs = sorted(set.intersection(*(set(curve) for curve in curves)))
    values = {epoch: [curve[epoch] for curve in curves] for epoch in epochs}
    return [Point(epoch, fmean(at), min(at), max(at)) for epoch, at in values.items()]


def section(study: Study, out: Path, papers: bool = True) -> Section:
    """Figure 1 for each protocol with its table. Our curves are not on the scale of the paper's figure.

    Args:
        study: The results.
        out: Folder of the report, for links.
        papers: Also show the published points, and say so if there is no curve of ours.
    """
    curves = curves_of(study)
    groups, recorded, blocks = groups_of(curves), recorded_leads(study, out), []
    for protocol in sorted({protocol for group in groups for protocol in group.curves}, reverse=True):
        data = "; ".join(sorted({c.data for c in curves if c.protocol == protocol and c.data})) or "data not recorded"
        encoders = [group.recipe.get("encoder") or {} for group in groups if group.curves.get(protocol)]
        archs = sorted({str(encoder.get("arch", "?")) for encoder in encoders})
        what = "The runs' own kNN probe" if protocol == OWN else protocol
        blocks.append(figure(groups, protocol, f"{what} on {data}; {', '.join(archs)}."))
        blocks.append(None if recorded else lead_table(groups, protocol))
    if papers and not blocks:
        missing = "No run with an accuracy over epochs is among the results: a metrics.jsonl whose rows have knn_top1."
        blocks = [Figure("figure-1", "Figure 1: accuracy over epochs", "", missing=missing)]
    blocks += [*recorded, published_figure(load_published()) if papers else None]
    return Section("epochs", "Accuracy over epochs", [], [block for block in blocks if block])


def figure(groups: Sequence[Group], protocol: str, description: str) -> Figure:
    """Figure 1 under one protocol. description: first sentence of its caption."""
    having, label = [group for group in groups if group.curves.get(protocol)], name_of(protocol)
    series = [Series(g.name, mean_curve(g.curves[protocol]), g.slot, g.symmetric) for g in having]
    series = [one for one in series if one.points]
    ends = [(one.name, one.points[0], one.points[-1]) for one in series]
    alt = "; ".join(f"{name}: {a.y:.1f} at epoch {a.x:g}, {b.y:.1f} at {b.x:g}" for name, a, b in ends)
    wide, narrow = (line_chart(series, size, "epoch", f"{label} (%)", size == WIDE) for size in (WIDE, NARROW))
    seeds = ", ".join(f"{group.name} {len(group.curves[protocol])}" for group in having)
    caption = f"{description} Line: mean over seeds; band: from the lowest to the highest seed. Seeds: {seeds}."
    panel = Panel(f"{label} over epochs. {alt}.", wide, narrow)
    legend = [(one.name, one.slot, "dashed" if one.dashed else "line") for one in series]
    title = f"Figure 1: {label} over epochs"
    return Figure(f"figure-1-{slug(protocol)}", title, caption, [panel], legend, named=True)


def published_figure(rows: Sequence[Published]) -> Figure:
    """The points of figure 1 that the paper prints as numbers; its curve is given as a drawing only."""
    series = []
    for method, slot in (METHOD_STYLES["adco"], METHOD_STYLES["moco"]):
        same = [n for n in rows if n.method == method and n.table in PRINTED and not (n.multicrop or n.symmetric)]
        same = [n for n in same if n.metric == "top1" and n.negatives in (None, 65536)]
        values = sorted({(n.epochs, n.value) for n in same if n.epochs})
        series.append(Series(method, [Point(x, y, y, y) for x, y in values], slot, lone=True))
    points = [(one.name, ", ".join(f"{p.y:g} at {p.x:g} epochs" for p in one.points)) for one in series]
    text = "; ".join(f"{name}: {values}" for name, values in points)
    wide, narrow = (
        line_chart(series, size, "epochs of pretraining", "linear top-1 (%)", size == LOW[0]) for size in LOW
    )
    caption = (
        f"{text}. ResNet-50, ImageNet, single crop, K = 65536. AdCo under imagenet-linear/adco; MoCo v2 quoted from "
        "elsewhere, under its own protocol; at 10 epochs the text puts MoCo v2 “almost 5%” below."
    )
    legend = [(one.name, one.slot, "line") for one in series]
    title = "Figure 1 as published: the points that are given as numbers"
    panel = Panel(f"Published points. {text}.", wide, narrow)
    return Figure("figure-1-published", title, caption, [panel], legend, named=True)


def lead_table(groups: Sequence[Group], protocol: str) -> Table | None:
    """AdCo (and its symmetric form) minus MoCo v2 at 10, 20, 50 epochs and at the last one that both have."""
    having = [group for group in groups if group.curves.get(protocol)]
    theirs = next((group for group in having if group.of("moco")), None)
    rows = []
    for ours in having if theirs else ():
        if theirs is None or not ours.of("adco"):
            continue
        shared = set.intersection(*(set(curve) for curve in ours.curves[protocol] + theirs.curves[protocol]))
        for epoch in sorted({e for e in EARLY if e in shared} | ({max(shared)} if shared else set())):
            a, b = (Score.over_trials([c[epoch] for c in group.curves[protocol]]) for group in (theirs, ours))
            several = min(a.trials, b.trials) > 1
            test = over_trials(a, b, "top1") if several else None
            interval = (test.low, test.high) if test else None
            rows.append(_lead_row(minus(ours.name, theirs.name), epoch, b - a, interval, f"{b.trials}, {a.trials}"))
    caption = f"Difference of the mean {name_of(protocol)} in points. 95% interval: Welch's t over the seeds."
    return _lead_table(slug(protocol), rows, caption)


def recorded_leads(study: Study, out: Path) -> list[Table]:
    """The same from records of benchmarks/experiments/lead.py, whose intervals resample the test images.

    Of several records of one pair of methods on the same data, the one with the most seeds is shown.
    """
    best: dict[tuple[object, ...], Item] = {}
    for item in study.items:
        record = item.record
        if record.protocol.startswith("pretraining/lead"):
            pair = record.protocol, record.data.fingerprint, record.settings["first"], record.settings["second"]
            best[pair] = max(best.get(pair, item), item, key=lambda item: item.record.settings["seeds"])
    return [table for item in best.values() if (table := _recorded_lead(item, out))]


def _recorded_lead(item: Item, out: Path) -> Table | None:
    settings, rows = item.record.settings, []
    first, second = (METHOD_STYLES[settings[side]][0] for side in ("first", "second"))
    for row in settings["rows"]:
        pair, seeds = minus(first, second, name_of(row["probe"])), f"{row['seeds']}, {row['seeds']}"
        interval = tuple(row["interval95_images"])
        rows.append(_lead_row(pair, row["epoch"], row["lead"], interval, seeds, link(item.path, out)))
    caption = (
        f"{describe_data(item.record.data)}. Difference of the means over seeds in points. 95% interval: bootstrap of "
        "the test images, the same images for both; it does not include the spread between seeds."
    )
    return _lead_table(slug(item.path.stem), rows, caption)


def _lead_row(
    pair: str, epoch: float, points: float, interval: tuple[float, float] | None, seeds: str, href: str = ""
) -> list[Cell]:
    difference = measured(points, interval=interval, href=href)
    return [Cell(pair), number(epoch, "g"), difference, Cell(seeds), Cell(verdict(interval))]


def _lead_table(key: str, rows: Sequence[Sequence[Cell]], caption: str) -> Table | None:
    heads = columns("difference of", numeric=False) + columns("epoch", "points", "seeds")
    heads += columns("reading", numeric=False)
    return Table(f"lead-{key}", "Does AdCo lead early?", heads, rows, caption) if rows else None


def name_of(protocol: str) -> str:
    """`kNN top-1` or `linear top-1`."""
    return "linear top-1" if "linear" in protocol else "kNN top-1"
