"""A report from records and metrics: one table that never mixes protocols, curves, pictures, in one HTML file."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from adco.records import Record

HEADLINES = (
    "mAP",
    "sample_AP",
    "top1",
    "AP",
    "AP50",
    "AP75",
    "segm/AP",
    "knn_top1",
)  # what a table shows, in this order


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
    """The table for a terminal; the last column is the last model minus the first."""
    cells = [("protocol", "score", *models, "difference"), *(_cells(row, models) for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = [
        "  ".join(c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
        for line in cells
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def curves(metrics: Sequence[Mapping[str, float]], baseline: float | None = None) -> bytes:
    """A PNG of the loss and the contrast accuracy by epoch beside the kNN probe; baseline: the random network's kNN."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    steps = [row for row in metrics if "loss" in row]
    left.plot([row["epoch"] for row in steps], [row["loss"] for row in steps], color="#2563eb")
    left.set(xlabel="epoch", ylabel="contrastive loss", title="Pretraining")
    share = left.twinx()
    share.plot([row["epoch"] for row in steps], [row["accuracy"] for row in steps], color="#d97706", alpha=0.6)
    share.set_ylabel("positives found first (%)", color="#d97706")
    probes = [row for row in metrics if "knn_top1" in row]
    right.plot(
        [row["epoch"] for row in probes], [row["knn_top1"] for row in probes], "o-", color="#2563eb", label="pretrained"
    )
    if baseline is not None:
        right.axhline(baseline, color="#6b7280", linestyle="--", label="random weights")
        right.legend()
    right.set(xlabel="epoch", ylabel="kNN top-1 (%)", title="Is it learning?")
    right.set_ylim(0, 1.15 * max([baseline or 0, 1, *(row["knn_top1"] for row in probes)]))
    with io.BytesIO() as file:
        figure.savefig(file, format="png", dpi=120)
        plt.close(figure)
        return file.getvalue()


def page(
    title: str,
    lead: str,
    rows: Sequence[Row],
    models: Sequence[str],
    pictures: Mapping[str, bytes],
    notes: Sequence[str],
) -> str:
    """A self-contained HTML page: no network, light and dark. pictures: caption -> PNG."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in ("protocol", "score", *models, "difference"))
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in _cells(row, models)) + "</tr>" for row in rows
    )
    figures = "".join(
        f'<figure><img src="data:image/png;base64,{base64.b64encode(png).decode()}" alt="{html.escape(caption)}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        for caption, png in pictures.items()
    )
    points = "".join(f"<li>{html.escape(note)}</li>" for note in notes)
    return _PAGE.format(
        title=html.escape(title), lead=html.escape(lead), head=head, body=body, figures=figures, notes=points
    )


def _cells(row: Row, models: Sequence[str]) -> tuple[str, ...]:
    values = [row.values.get(model) for model in models]
    first, last = values[0], values[-1]
    change = "" if first is None or last is None else f"{last - first:+.2f}"
    return (row.protocol, row.score, *("not run" if value is None else f"{value:.2f}" for value in values), change)


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>
:root {{ color-scheme: light dark; --ink: light-dark(#1f2933, #e5e7eb); --soft: light-dark(#6b7280, #9ca3af);
  --line: light-dark(#e5e7eb, #374151); --paper: light-dark(#ffffff, #111827); }}
body {{ font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 62rem;
  margin: 2rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.6rem; margin-bottom: .2rem; }} p.lead {{ color: var(--soft); margin-top: 0; }}
.wide {{ overflow-x: auto; }} table {{ border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }}
th, td {{ text-align: right; padding: .35rem .7rem; border-bottom: 1px solid var(--line); white-space: nowrap; }}
th:nth-child(-n+2), td:nth-child(-n+2) {{ text-align: left; }} th {{ color: var(--soft); font-weight: 600; }}
figure {{ margin: 2rem 0; }} img {{ width: 100%; height: auto; border-radius: 6px; background: #fff; }}
figcaption, li {{ color: var(--soft); font-size: .9rem; }}
</style></head><body>
<h1>{title}</h1><p class="lead">{lead}</p>
<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>
{figures}
<ul>{notes}</ul>
</body></html>
"""
