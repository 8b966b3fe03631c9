"""Tables as text: Markdown for MODEL_ZOO.md, README.md and docs/, aligned columns for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from adco.evaluation.records import Record
from adco.evaluation.score import Score
from adco.report.elements import MISSING

HEADLINES = "mAP", "sample_AP", "top1", "AP", "AP50", "AP75", "segm/AP", "knn_top1"  # scores that tables show, in order


def score_text(score: Score | None, form: str = ".2f", interval: str = " ({} to {})", link: str = "") -> str:
    """A score as Markdown: with its deviation over trials, else with its 95% interval.

    Args:
        score: The score; "not run" for None.
        form: Format specification of its numbers.
        interval: Template of the interval.
        link: Address of the record.
    """
    if score is None:
        return MISSING.text
    text = f"[{score:{form}}]({link})" if link else f"{score:{form}}"
    if score.std is not None:
        return f"{text} ± {score.std:.2f}"
    return text + interval.format(*(f"{end:{form}}" for end in score.interval)) if score.interval else text


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[object]], rules: Sequence[str] = ()) -> str:
    """A Markdown table. A `|` in a cell is escaped.

    Args:
        heads: Heads of the columns.
        rows: Cells, shown by `str`.
        rules: Alignment of each column, `---`, `:--` or `--:`; none by default.
    """
    lines = [heads, rules or ["---"] * len(heads), *rows]
    cells = ([str(cell).replace("|", r"\|").replace("\n", " ") for cell in line] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


@dataclass(frozen=True)
class Row:
    """One score under one protocol. values: model -> percent, for each model that has it."""

    protocol: str
    score: str
    values: Mapping[str, float]


def table_rows(records: Mapping[str, Sequence[Record]]) -> list[Row]:
    """model -> its records; one row for each (protocol, headline score), in the order of their first appearance."""
    values: dict[tuple[str, str], dict[str, float]] = {}
    for model, its_records in records.items():
        for record in its_records:
            for score in HEADLINES:
                if score in record.scores:
                    values.setdefault((record.protocol, score), {})[model] = record.scores[score]
    return [Row(protocol, score, of_models) for (protocol, score), of_models in values.items()]


def as_text(rows: Sequence[Row], models: Sequence[str]) -> str:
    """The table for a terminal. With several models the last column is the last one minus the first."""
    heads = ["protocol", "score", *models, *["difference"] * (len(models) > 1)]
    lines = [heads, *(_line(row, models) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "  ".join(
            text.ljust(w) if i < 2 else text.rjust(w) for i, (text, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def _line(row: Row, models: Sequence[str]) -> list[str]:
    values = [row.values.get(model) for model in models]
    line = [row.protocol, row.score, *(MISSING.text if value is None else f"{value:.2f}" for value in values)]
    if len(models) > 1:
        first, last = values[0], values[-1]
        line.append("" if first is None or last is None else f"{last - first:+.2f}")
    return line
