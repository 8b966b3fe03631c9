"""One table of records for a terminal, which never puts two protocols on a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from adco.evaluation.records import Record

HEADLINES = "mAP", "sample_AP", "top1", "AP", "AP50", "AP75", "segm/AP", "knn_top1"  # what a table shows, in this order


@dataclass(frozen=True)
class Row:
    """One score under one protocol, for each model that has it; values in percent."""

    protocol: str
    score: str
    values: Mapping[str, float]


def table_rows(records: Mapping[str, Sequence[Record]]) -> list[Row]:
    """model -> its records; one row per (protocol, headline score), in the order in which the protocols first come."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for model, its_records in records.items():
        for record in its_records:
            for score in HEADLINES:
                if score in record.scores:
                    found.setdefault((record.protocol, score), {})[model] = record.scores[score]
    return [Row(protocol, score, values) for (protocol, score), values in found.items()]


def as_text(rows: Sequence[Row], models: Sequence[str]) -> str:
    """The table for a terminal; of several models the last column is the last one minus the first."""
    compares = ["difference"] * (len(models) > 1)
    cells = [("protocol", "score", *models, *compares), *(_cells(row, models) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
        for line in cells
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def _cells(row: Row, models: Sequence[str]) -> tuple[str, ...]:
    values = [row.values.get(model) for model in models]
    reported = [row.protocol, row.score, *("not run" if value is None else f"{value:.2f}" for value in values)]
    if len(models) > 1:
        reported.append("" if None in (values[0], values[-1]) else f"{values[-1] - values[0]:+.2f}")
    return tuple(reported)
