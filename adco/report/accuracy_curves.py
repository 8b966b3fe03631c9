"""Figure 1: accuracy over epochs, method by method, several seeds as their mean with the range."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from adco.config.validation import METHOD_NAMES
from adco.report.charts import Point, Series, line_chart
from adco.report.collect import Study
from adco.report.elements import Figure, Panel
from adco.report.result_tables import data_in_words, slug

WIDE, NARROW = (760, 400), (358, 320)
METHOD_STYLES = {  # name, and the slot of the palette that stands for it on the whole page
    method: (name, slot) for slot, (method, name) in enumerate(METHOD_NAMES.items(), 1)
}
ASIDE = ("seed", "device", "data", "compute", "monitor", "probe", "checkpoint")  # keys that make no other method
OWN = "pretraining/probe"  # the kNN probe that a run makes of itself while it trains


@dataclass
class Group:
    """Runs of one recipe that differ in their seed alone. curves: protocol -> for each seed, epoch -> percent."""

    name: str
    slot: int
    symmetric: bool
    recipe: Mapping[str, object]
    curves: dict[str, list[dict[float, float]]] = field(default_factory=lambda: defaultdict(list))


@dataclass(frozen=True)
class Curve:
    """One run under one protocol on one data set: epoch -> percent."""

    protocol: str
    data: str
    recipe: Mapping[str, object]
    values: Mapping[float, float]


def curves_of(study: Study) -> list[Curve]:
    """The recorded curves (`pretraining/curve-...`); runs' own probes where nothing was recorded."""
    found = []
    for record in (item.record for item in study.items):
        rows = record.settings.get("curve")
        if record.protocol.startswith("pretraining/curve") and isinstance(rows, list) and len(rows) > 1:
            values = {float(row["epoch"]): float(row["top1"]) for row in rows}
            recipe = record.settings.get("pretraining") or {}
            found.append(Curve(record.protocol, data_in_words(record.data), recipe, values))
    if found:
        return found
    own = [(run, {float(r["epoch"]): float(r["knn_top1"]) for r in run.rows if "knn_top1" in r}) for run in study.runs]
    return [Curve(OWN, run.record.data.name if run.record else "", run.recipe, values) for run, values in own if values]


def groups_of(curves: Sequence[Curve]) -> list[Group]:
    """Curves grouped by recipe; AdCo first, then MoCo v2, as in the paper."""
    found: dict[str, Group] = {}
    for curve in curves:
        method = curve.recipe.get("method")
        if method not in METHOD_STYLES:
            continue
        kept = {key: value for key, value in curve.recipe.items() if key not in ASIDE}
        name, slot = METHOD_STYLES[method]
        symmetric = bool((kept.get("contrast") or {}).get("symmetric"))
        group = found.setdefault(
            json.dumps(kept, sort_keys=True, default=str),
            Group(f"{name} symmetric" if symmetric else name, slot, symmetric, kept),
        )
        group.curves[curve.protocol].append(dict(curve.values))
    groups = sorted(found.values(), key=lambda group: (group.slot, group.symmetric))
    _name_apart(groups)
    return groups


def _name_apart(groups: Sequence[Group]) -> None:
    """Groups of one name get the recipe's keys in which they differ behind it."""
    for name in {group.name for group in groups}:
        same = [group for group in groups if group.name == name]
        values = [flat(group.recipe) for group in same]
        keys = sorted({key for one in values for key in one if len({other.get(key) for other in values}) > 1})
        for group, one in zip(same, values, strict=True):
            if len(same) > 1:
                group.name += " · " + ", ".join(f"{key.split('.')[-1]} {one.get(key)}" for key in keys[:2])


def flat(tree: object, prefix: str = "") -> dict[str, str]:
    """A tree of mappings as `section.key` -> its value's text."""
    if not isinstance(tree, Mapping):
        return {prefix: str(tree)}
    found = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}.{key}" if prefix else str(key))
    return found


def mean_curve(curves: Sequence[Mapping[float, float]]) -> list[Point]:
    """The mean over seeds with their lowest and highest value, at the epochs that all seeds have."""
    epochs = sorted(set.intersection(*(set(curve) for curve in curves)))
    points = []
    for epoch in epochs:
        values = [curve[epoch] for curve in curves]
        points.append(Point(epoch, fmean(values), min(values), max(values)))
    return points


def figure(groups: Sequence[Group], protocol: str, reported: str) -> Figure:
    """Figure 1 under one protocol. told: what was measured, on what."""
    having = [group for group in groups if group.curves.get(protocol)]
    series = [Series(g.name, mean_curve(g.curves[protocol]), g.slot, g.symmetric) for g in having]
    series = [one for one in series if one.points]
    alt = "; ".join(
        f"{one.name}: {first.y:.1f} at epoch {first.x:g}, {last.y:.1f} at {last.x:g}"
        for one in series
        for first, last in [(one.points[0], one.points[-1])]
    )
    charts = [line_chart(series, size, "epoch", f"{name_of(protocol)} (%)", size == WIDE) for size in (WIDE, NARROW)]
    seeds = ", ".join(f"{group.name} {len(group.curves[protocol])}" for group in having)
    caption = f"{reported} Line: mean over seeds; band: from the lowest to the highest seed. Seeds: {seeds}."
    panel = Panel(f"{name_of(protocol)} over epochs. {alt}.", *charts)
    legend = [(one.name, one.slot, "dashed" if one.dashed else "line") for one in series]
    return Figure(
        f"figure-1-{slug(protocol)}", f"Figure 1: {name_of(protocol)} over epochs", caption, [panel], legend, named=True
    )


def name_of(protocol: str) -> str:
    """`kNN top-1` or `linear top-1`."""
    return "linear top-1" if "linear" in protocol else "kNN top-1"
