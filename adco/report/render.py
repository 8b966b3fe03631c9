"""The three forms of a report: one self-contained HTML file, Markdown, and CSV with a row for every number."""

from __future__ import annotations

import base64
import csv
import io
import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from adco.report.charts import swatch
from adco.report.elements import MEASURED, NOT_RUN, PUBLISHED, Cell, Column, Figure, Report, Table
from adco.report.text_table import markdown_table
from adco.utils.files import output_folder, write_text

HERE = Path(__file__).parent
FORMATS = {MEASURED: "**{}**", PUBLISHED: "_{}_"}  # of a cell's text in Markdown


def write(report: Report, out: Path) -> list[Path]:
    """Write `report.html`, `report.md` and `report.csv` to the folder `out`; returns their paths."""
    out = output_folder(out)
    forms = {"report.html": as_html(report), "report.md": as_markdown(report), "report.csv": as_csv(report)}
    for name, text in forms.items():
        write_text(out / name, text)
    return [out / name for name in forms]


def as_html(report: Report) -> str:
    """The page. It loads nothing; every text of the records is escaped, and the drawings are our own."""
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
    environment.filters["breakable"] = _breakable
    environment.filters["hundredths"] = _hundredths
    environment.globals |= {"spans": spans, "swatch": swatch}
    css, js = ((HERE / name).read_text() for name in ("page.css", "page.js"))
    kinds = {cell.kind for section in report.sections for t in section.tables for row in t.rows for cell in row}
    page = environment.get_template("page.html")
    return page.render(report=report, css=css, js=js, has_papers=PUBLISHED in kinds).lstrip()


def spans(columns: Sequence[Column]) -> list[tuple[str, int, str]]:
    """The row above the columns' labels: (group, number of columns, protocol)."""
    return [(name, len(list(same)), code) for (name, code), same in groupby(columns, lambda c: (c.group, c.code))]


def as_markdown(report: Report) -> str:
    """Tables as tables, figures as their captions; `**46.75**` is measured, `_68.6_` is a published number."""
    lines = [f"# {report.title}", "", report.lead, "", "**46.75** measured by this code, _68.6_ printed in a paper."]
    for section in report.sections:
        lines += ["", f"## {section.title}", *(part for text in section.lead for part in ("", text))]
        for block in section.blocks:
            lines += ["", f"### {block.title}", ""]
            lines += _figure_lines(block) if isinstance(block, Figure) else _table_lines(block)
    return "\n".join(lines) + "\n"


def _figure_lines(figure: Figure) -> list[str]:
    if figure.missing:
        return [f"not run: {figure.missing}"]
    return [*(part for panel in figure.panels for part in (panel.alt, "")), figure.caption]


def _table_lines(table: Table) -> list[str]:
    notes = [part for note in table.notes for part in ("", f"- {note}")]
    if not table.rows:
        return [table.caption, *notes]
    kept = [i for i, _ in enumerate(table.columns) if any(row[i].text for row in table.rows)]
    heads = [table.columns[i] for i in kept]
    labels = [" ".join(filter(None, (c.group, c.code and f"`{c.code}`", c.label))) for c in heads]
    rules = ["--:" if column.numeric else ":--" for column in heads]
    rows = [[_as_markdown(row[i]) for i in kept] for row in table.rows]
    return [*[table.caption, ""] * bool(table.caption), markdown_table(labels, rows, rules).rstrip("\n"), *notes]


def _as_markdown(cell: Cell) -> str:
    text = FORMATS.get(cell.kind, "{}").format(cell.text)
    if cell.href and cell.kind not in FORMATS:
        text = f"[{text}]({cell.href.replace(' ', '%20')})"
    text += f" ({cell.mark})" if cell.mark else ""
    ends = [_hundredths(end) for end in (cell.low, cell.high) if end is not None]
    return f"{text} ({' – '.join(ends)})" if ends else text


def _breakable(text: str) -> Markup:
    """A line may break after a slash or an underscore."""
    return Markup(re.sub("([/_])(?=.)", r"\1<wbr>", str(escape(text))))


def _hundredths(value: float) -> str:
    """`-0.25`; `0.00` for a negative number that rounds to zero."""
    return f"{round(value, 2) + 0.0:.2f}"


def as_csv(report: Report) -> str:
    """One row for each number, in the long form for spreadsheets and data frames."""
    with io.StringIO(newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(("section", "table", "protocol", "row", "column", "source", "value", "low95", "high95", "note"))
        for section in report.sections:
            for table in section.tables:
                out.writerows((section.title, table.title, *line) for line in _numbers(table))
        return file.getvalue()


def _numbers(table: Table) -> Iterator[tuple[object, ...]]:
    for row in table.rows:
        for column, cell in zip(table.columns[1:], row[1:], strict=True):
            if cell.kind in (MEASURED, PUBLISHED, NOT_RUN):
                label = " ".join(filter(None, (column.group, column.label)))
                ends = ("" if end is None else f"{end:.4f}" for end in (cell.low, cell.high))
                value = "" if cell.value is None else f"{cell.value:.10g}"
                yield column.code, row[0].text, label, cell.kind, value, *ends, cell.note
