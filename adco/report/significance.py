"""What differences are worth: between models under one protocol, and between published numbers that are not of one."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import groupby, product
from pathlib import Path

from adco.evaluation.comparison import Difference, column_key, incompatibilities, significance
from adco.evaluation.published import Published, load_published
from adco.evaluation.records import Record, load_record
from adco.report.collect import Item, Study, is_evaluation
from adco.report.elements import Cell, Column, Section, Table, measured
from adco.report.paper_tables import HEADS
from adco.report.result_tables import SCORES, headline_scores, minus, score_label, verdict
from adco.utils.errors import UserError

FOLLOWERS = 4  # models that a column's leader is compared with, the next best
RIVALS = ("supervised", "MoCo v2", "SwAV")  # whom the AdCo paper's text compares AdCo with
SAME_COLUMN = {"sample_AP": "mAP"}  # printed in one column


def section(study: Study, papers: bool) -> Section:
    """Tests where there are two models under one protocol; reasons where the papers compare across protocols."""
    blocks = [test_table(study)] + ([published_table(load_published())] if papers else [])
    return Section("differences", "What differences are worth", [], [block for block in blocks if block])


def test_table(study: Study) -> Table | None:
    """In each column its leader minus the next best, with interval and p; pairs that cannot be tested are counted."""
    rows, reasons = [], Counter()
    judged = sorted(
        (item for item in study.items if is_evaluation(item.record)), key=lambda item: column_key(item.record)
    )
    for key, same in groupby(judged, key=lambda item: column_key(item.record)):
        for leader, other, metric in _pairs(list(same)):
            found = significance(other.record, leader.record, metric)
            if isinstance(found, Difference):
                rows.append(_row(leader, other, key.protocol, metric, found))
            else:
                reasons[found.removeprefix("not possible, because ")] += 1
    notes = [f"{count} pair{'s' * (count > 1)} not tested: {reason}" for reason, count in reasons.items()]
    if not rows and not notes:
        return None
    columns = [
        Column("protocol", numeric=False),
        Column("score", numeric=False),
        Column("difference of", numeric=False),
    ]
    columns += [Column("points"), Column("p"), Column("reading", numeric=False), Column("how", numeric=False)]
    caption = (
        f"In each column the best model minus each of the next {FOLLOWERS}. 95% intervals; p is two-sided and not "
        "corrected for the number of pairs. The bootstrap draws both models' images at once, Welch's t is of trials."
    )
    return Table("tests", "Models under one protocol", columns, rows, caption, notes=notes)


def _pairs(items: Sequence[Item]) -> Iterator[tuple[Item, Item, str]]:
    """(leader, other, metric) for the column's main score."""
    metric = headline_scores(items)[0] if headline_scores(items) else ""
    having = {item.model: item for item in items if metric in item.record.scores}
    ranked = sorted(having.values(), key=lambda item: -item.record.scores[metric])
    for other in ranked[1 : 1 + FOLLOWERS]:
        yield ranked[0], other, metric


def _row(leader: Item, other: Item, protocol: str, metric: str, found: Difference) -> tuple[Cell, ...]:
    points = measured(found.difference, low=found.low, high=found.high)
    p = Cell("< 0.001" if found.p < 0.001 else f"{found.p:.3f}", value=found.p)
    pair = Cell(minus(leader.model, other.model))
    reading, how = Cell(verdict(found.low, found.high)), Cell(found.how.partition(",")[0], note=found.how)
    return Cell(protocol), Cell(score_label(metric)), pair, points, p, reading, how


def published_table(rows: Sequence[Published]) -> Table:
    """AdCo beside its rivals in each printed column of the paper, and why the two are not to be compared."""
    found: dict[tuple[str, tuple[str, ...]], list[str]] = defaultdict(list)
    for one, other in product(rows, rows):
        same = (one.table, one.data, _printed(one)) == (other.table, other.data, _printed(other))
        if one.method != "AdCo" or other.method not in RIVALS or not same:
            continue
        reasons = tuple(incompatibilities(one, other))
        if reasons:
            column = f"{one.source}: {one.data} {HEADS.get(_printed(one)) or score_label(_printed(one))}"
            found[column, reasons].append(f"{_short(one)} against {_short(other)}")
    columns = [Column("printed in", numeric=False), Column("numbers", numeric=False), Column("why", numeric=False)]
    cells = [
        (Cell(column), Cell("; ".join(pairs)), Cell(". ".join(r[0].upper() + r[1:] for r in reasons) + "."))
        for (column, reasons), pairs in found.items()
    ]
    caption = "Numbers of one printed column between which the paper, or a reader of it, draws a comparison."
    return Table("not-comparable", "Why these are not comparable", columns, cells, caption, prose=True)


def _printed(row: Published) -> str:
    return SAME_COLUMN.get(row.metric, row.metric)


def _short(row: Published) -> str:
    more = [f"{row.negatives} negatives" if row.negatives else "", "symmetric" if row.symmetric else ""]
    words = ", ".join(filter(None, [row.method, "multi-crop" if row.multicrop else "", *more]))
    return f"{words} {row.value:g}"


def compared(first: str, second: str) -> list[str]:
    """Two numbers in words: what they are, why they are not comparable, or how sure the difference is.

    Each is a record's file, or TABLE/METHOD/METRIC of a published one. Raises UserError for neither.
    """
    one, other = _number(first), _number(second)
    lines = [f"A: {_in_words(one)}", f"B: {_in_words(other)}"]
    reasons = incompatibilities(one, other)
    if reasons:
        return [*lines, "not comparable:", *(f"  - {reason}" for reason in reasons)]
    if isinstance(one, Published) or isinstance(other, Published):
        return [*lines, "comparable; a published number carries no interval, so their difference has none"]
    shared = [name for name in one.scores if name in other.scores and name in SCORES] or list(one.scores)[:1]
    return [*lines, "comparable; B - A:", *(f"  {_sure(one, other, name)}" for name in shared)]


def _sure(one: Record, other: Record, metric: str) -> str:
    found = significance(one, other, metric)
    if isinstance(found, str):
        return f"{metric} {other.scores.get(metric, 0) - one.scores.get(metric, 0):+.2f}; a test is {found}"
    interval = f"95% {found.low:+.2f} to {found.high:+.2f}, p = {found.p:.3f}"
    return f"{metric} {found.difference:+.2f} ({interval}; {found.how})"


def _number(name: str) -> Record | Published:
    if Path(name).is_file():
        return load_record(Path(name))
    rows, parts = load_published(), name.split("/")
    found = [
        n
        for n in rows
        if len(parts) == 3 and [n.table, n.method.lower(), n.metric] == [parts[0], parts[1].lower(), parts[2]]
    ]
    if not found:
        near = sorted({f"{n.table}/{n.method}/{n.metric}" for n in rows if n.table == parts[0]})
        known = ", ".join(near) or ", ".join(sorted({n.table for n in rows}))
        raise UserError(
            f"{name}: neither a record's file nor TABLE/METHOD/METRIC of a published number; known: {known}"
        )
    return found[0]


def _in_words(number: Record | Published) -> str:
    if isinstance(number, Published):
        return f"{number.label}, {number.metric} {number.value:g} ({number.source}; {number.protocol} on {number.data})"
    scores = ", ".join(f"{name} {value:.2f}" for name, value in number.scores.items() if name in SCORES)
    return f"{number.checkpoint.name}, {scores} ({column_key(number).title})"
