"""Accuracy over epochs as a chapter: figure 1, what AdCo leads MoCo v2 by, and runs judged at one epoch alone."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, variance

from scipy.stats import t as student

from adco.report.figure1 import METHODS, OWN, Group, curves_of, figure, groups_of, name_of
from adco.report.measured import data_in_words, link, score_cell, slug
from adco.report.parts import MISSING, Cell, Column, Figure, Section, Table, measured
from adco.report.study import Item, Study

EARLY = 10, 20, 50  # epochs


def section(study: Study, out: Path) -> Section:
    """Figure 1 for each protocol with its table; nothing of it is on the scale of the paper's own figure."""
    curves = curves_of(study)
    groups, told, blocks = groups_of(curves), recorded_lead(study, out), []
    for protocol in sorted({protocol for group in groups for protocol in group.curves}, reverse=True):
        data = "; ".join(sorted({c.data for c in curves if c.protocol == protocol and c.data})) or "data not recorded"
        archs = sorted(
            {str((g.recipe.get("encoder") or {}).get("arch", "?")) for g in groups if g.curves.get(protocol)}
        )
        what = "The runs' own kNN probe" if protocol == OWN else protocol
        blocks.append(figure(groups, protocol, f"{what} on {data}; {', '.join(archs)}."))
        blocks.append(None if told else lead_table(groups, protocol))
    if not blocks:
        missing = "No run with an accuracy over epochs is among the results: a metrics.jsonl whose rows have knn_top1."
        blocks = [Figure("figure-1", "Figure 1: accuracy over epochs", "", missing=missing)]
    blocks += [*told, *short_runs(study, out)]
    return Section("epochs", "Accuracy over epochs", [], [block for block in blocks if block])


@dataclass(frozen=True)
class Lead:
    """A mean difference in points and its 95% interval (Welch); None where a side has one seed."""

    mean: float
    low: float | None
    high: float | None
    seeds: tuple[int, int]


def lead(ours: Sequence[float], theirs: Sequence[float]) -> Lead:
    """The difference of two means over seeds, with Welch's t interval."""
    mean, seeds = fmean(ours) - fmean(theirs), (len(ours), len(theirs))
    if min(seeds) < 2:
        return Lead(mean, None, None, seeds)
    parts = [variance(side) / len(side) for side in (ours, theirs)]
    if not sum(parts):
        return Lead(mean, mean, mean, seeds)
    freedom = sum(parts) ** 2 / sum(part**2 / (n - 1) for part, n in zip(parts, seeds, strict=True))
    half = float(student.ppf(0.975, freedom)) * sum(parts) ** 0.5
    return Lead(mean, mean - half, mean + half, seeds)


def lead_table(groups: Sequence[Group], protocol: str) -> Table | None:
    """AdCo (and its symmetric form) minus MoCo v2 at 10, 20, 50 epochs and the last one that both have."""
    having = [group for group in groups if group.curves.get(protocol)]
    theirs = next((group for group in having if group.slot == METHODS["moco"][1]), None)
    rows = []
    for ours in having if theirs else ():
        if ours.slot != METHODS["adco"][1]:
            continue
        shared = set.intersection(*(set(curve) for curve in ours.curves[protocol] + theirs.curves[protocol]))
        for epoch in sorted({e for e in EARLY if e in shared} | ({max(shared)} if shared else set())):
            ahead = lead([c[epoch] for c in ours.curves[protocol]], [c[epoch] for c in theirs.curves[protocol]])
            difference = measured(ahead.mean, low=ahead.low, high=ahead.high)
            words = "one seed: no interval" if ahead.low is None else verdict(ahead.low, ahead.high)
            cells = Cell(f"{ours.name} − {theirs.name}"), Cell(f"{epoch:g}", value=epoch), difference
            rows.append((*cells, Cell(f"{ahead.seeds[0]}, {ahead.seeds[1]}"), Cell(words)))
    caption = f"Difference of the mean {name_of(protocol)} in points. 95% interval: Welch's t over the seeds."
    return _lead_table(slug(protocol), rows, caption)


def recorded_lead(study: Study, out: Path) -> list[Table]:
    """The same from records of benchmarks/lead.py, which resample the test pictures, the same for both methods."""
    tables = []
    for item in study.items:
        if not item.record.protocol.startswith("pretraining/lead"):
            continue
        settings, rows = item.record.settings, []
        first, second = (METHODS[settings[side]][0] for side in ("first", "second"))
        for row in settings["rows"]:
            low, high = row["interval95_images"]
            difference = measured(row["lead"], low=low, high=high, href=link(item.path, out))
            cells = Cell(f"{first} − {second}, {name_of(row['probe'])}"), Cell(f"{row['epoch']}", value=row["epoch"])
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


def verdict(low: float, high: float) -> str:
    """How an interval of a difference reads."""
    if low <= 0 <= high:
        return "not told apart from zero"
    return "ahead" if low > 0 else "behind"


def short_runs(study: Study, out: Path) -> list[Table]:
    """Runs judged at one epoch alone (ablations, sizes of the bank): a table a folder, a column a protocol."""
    found = defaultdict(dict)
    for item in study.items:
        curve = item.record.settings.get("curve")
        if item.record.protocol.startswith("pretraining/curve") and isinstance(curve, list) and len(curve) == 1:
            name = re.sub(r"-(knn|linear)$", "", item.path.stem).removeprefix(f"{item.path.parent.name}-")
            found[item.path.parent.name].setdefault(name, {})[item.record.protocol] = item
    tables = []
    for folder, runs in found.items():
        protocols = sorted({protocol for ofs in runs.values() for protocol in ofs})
        columns = [Column("run", numeric=False), *(Column("top-1", code=p.partition("/")[2]) for p in protocols)]
        rows = []
        for name, ofs in runs.items():
            cells = [score_cell(ofs[p], "top1", out, _curve_ends(ofs[p])) if p in ofs else MISSING for p in protocols]
            rows.append((Cell(name), *cells))
        one = next(iter(next(iter(runs.values())).values())).record
        epochs = one.settings["curve"][0]["epoch"]
        caption = f"{data_in_words(one.data)}. {epochs} epochs, one seed. 95% intervals: bootstrap of the test images."
        tables.append(Table(f"short-{slug(folder)}", folder.replace("_", " ").capitalize(), columns, rows, caption))
    return tables


def _curve_ends(item: Item) -> tuple[float, float] | None:
    ends = item.record.settings["curve"][0].get("interval95")
    return tuple(ends) if ends else None
