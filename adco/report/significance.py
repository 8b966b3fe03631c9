"""Significance of differences between models, and reasons why published numbers are not comparable."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import groupby, product
from pathlib import Path

from adco.evaluation.comparison import Difference, column_key, incompatibilities, significance
from adco.evaluation.published import Published, load_published
from adco.evaluation.records import Record, load_record
from adco.report.collect import Item, Study, is_evaluation
from adco.report.elements import Cell, Section, Table, columns, measured
from adco.report.paper_tables import HEADS
from adco.report.result_tables import SCORES, headline_scores, minus, score_label, verdict
from adco.utils.errors import UserError

FOLLOWERS = 4  # next best models that the best one of a column is compared with
RIVALS = ("supervised", "MoCo v2", "SwAV")  # methods that the text of the AdCo paper compares AdCo with
SAME_COLUMN = {"sample_AP": "mAP"}  # metrics that the paper prints in one column


def section(study: Study, papers: bool) -> Section:
    """Tests between models under one protocol. papers: also why published numbers are not comparable."""
    blocks = [test_table(study)] + ([published_table(load_published())] if papers else [])
    return Section("differences", "Significance of differences", [], [block for block in blocks if block])


def test_table(study: Study) -> Table | None:
    """In each column the best model minus the next ones, with interval and p. The notes count pairs without a test."""
    rows, reasons = [], Counter()
    evaluations = [(column_key(item.record), item) for item in study.items if is_evaluation(item.record)]
    for key, same in groupby(sorted(evaluations, key=lambda pair: pair[0]), key=lambda pair: pair[0]):
        for leader, other, metric in _pairs([item for _, item in same]):
            test = significance(other.record, leader.record, metric)
            if isinstance(test, Difference):
                rows.append(_row(leader, other, key.protocol, metric, test))
            else:
                reasons[test.removeprefix("not possible, because ")] += 1
    notes = [f"{count} pair{'s' * (count > 1)} not tested: {reason}" for reason, count in reasons.items()]
    if not rows and not notes:
        return None
    heads = columns("protocol", "score", "difference of", numeric=False) + columns("points", "p")
    heads += columns("reading", "how", numeric=False)
    caption = (
        f"In each column the best model minus each of the next {FOLLOWERS}. 95% intervals; p is two-sided and not "
        "corrected for the number of pairs. The bootstrap resamples the images of both models together; Welch's t-test "
        "is over trials."
    )
    return Table("tests", "Models under one protocol", heads, rows, caption, notes)


def _pairs(items: Sequence[Item]) -> Iterator[tuple[Item, Item, str]]:
    """(leader, other, metric) for the column's main score."""
    metric = headline_scores(items)[0] if headline_scores(items) else ""
    having = {item.model: item for item in items if metric in item.record.scores}
    ranked = sorted(having.values(), key=lambda item: -item.record.scores[metric])
    for other in ranked[1 : 1 + FOLLOWERS]:
        yield ranked[0], other, metric


def _row(leader: Item, other: Item, protocol: str, metric: str, test: Difference) -> list[Cell]:
    interval = test.low, test.high
    p = Cell("< 0.001" if test.p < 0.001 else f"{test.p:.3f}", value=test.p)
    cells = [Cell(protocol), Cell(score_label(metric)), Cell(minus(leader.model, other.model))]
    cells += [measured(test.difference, interval=interval), p, Cell(verdict(interval))]
    return [*cells, Cell(test.how.partition(",")[0], note=test.how)]


def published_table(rows: Sequence[Published]) -> Table:
    """AdCo and the methods it is compared with in each printed column, and why the two numbers are not comparable."""
    pairs: dict[tuple[str, tuple[str, ...]], list[str]] = defaultdict(list)
    for one, other in product(rows, rows):
        same = (one.table, one.data, _printed(one)) == (other.table, other.data, _printed(other))
        if one.method != "AdCo" or other.method not in RIVALS or not same:
            continue
        reasons = tuple(incompatibilities(one, other))
        if reasons:
            column = f"{one.source}: {one.data} {HEADS.get(_printed(one)) or score_label(_printed(one))}"
            pairs[column, reasons].append(f"{_short(one)} against {_short(other)}")
    heads = columns("printed in", "numbers", "why", numeric=False)
    cells = [
        (Cell(column), Cell("; ".join(texts)), Cell(". ".join(r[0].upper() + r[1:] for r in reasons) + "."))
        for (column, reasons), texts in pairs.items()
    ]
    caption = "Numbers of one printed column that the paper or its reader may compare."
    return Table("not-comparable", "Why these are not comparable", heads, cells, caption, prose=True)


def _printed(row: Published) -> str:
    return SAME_COLUMN.get(row.metric, row.metric)


def _short(row: Published) -> str:
    more = [f"{row.negatives} negatives" if row.negatives else "", "symmetric" if row.symmetric else ""]
    name = ", ".join(filter(None, [row.method, "multi-crop" if row.multicrop else "", *more]))
    return f"{name} {row.value:g}"


def compared(first: str, second: str) -> list[str]:
    """A comparison of two numbers as lines of text: what they are, and why they are not comparable or the test.

    Args:
        first, second: The file of a record, or TABLE/METHOD/METRIC of a published number, e.g. `adco-4/SwAV/mAP`.

    Raises:
        UserError: A name is neither of them.
    """
    one, other = _number(first), _number(second)
    lines = [f"A: {_describe(one)}", f"B: {_describe(other)}"]
    reasons = incompatibilities(one, other)
    if reasons:
        return [*lines, "not comparable:", *(f"  - {reason}" for reason in reasons)]
    if isinstance(one, Published) or isinstance(other, Published):
        return [*lines, "comparable; a published number carries no interval, so their difference has none"]
    shared = [name for name in one.scores if name in other.scores and name in SCORES] or list(one.scores)[:1]
    return [*lines, "comparable; B - A:", *(f"  {_test(one, other, name)}" for name in shared)]


def _test(one: Record, other: Record, metric: str) -> str:
    test = significance(one, other, metric)
    if isinstance(test, str):
        return f"{metric} {other.scores.get(metric, 0) - one.scores.get(metric, 0):+.2f}; a test is {test}"
    interval = f"95% {test.low:+.2f} to {test.high:+.2f}, p = {test.p:.3f}"
    return f"{metric} {test.difference:+.2f} ({interval}; {test.how})"


def _number(name: str) -> Record | Published:
    if Path(name).is_file():
        return load_record(Path(name))
    rows, parts = load_published(), name.split("/")
    for n in rows if len(parts) == 3 else ():
        if (n.table, n.method.lower(), n.metric) == (parts[0], parts[1].lower(), parts[2]):
            return n
    near = sorted({f"{n.table}/{n.method}/{n.metric}" for n in rows if n.table == parts[0]})
    known = ", ".join(near) or ", ".join(sorted({n.table for n in rows}))
    raise UserError(f"{name}: neither a record's file nor TABLE/METHOD/METRIC of a published number; known: {known}")


def _describe(number: Record | Published) -> str:
    if isinstance(number, Published):
        return f"{number.label}, {number.metric} {number.value:g} ({number.source}; {number.protocol} on {number.data})"
    scores = ", ".join(f"{name} {value:.2f}" for name, value in number.scores.items() if name in SCORES)
    return f"{number.checkpoint.name}, {scores} ({column_key(number).title})"
