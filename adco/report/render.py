"""A report's three forms: one HTML file that loads nothing, Markdown, and CSV with a row for every number."""

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
from adco.utils.files import output_folder, write_text

HERE = Path(__file__).parent


def write(report: Report, out: Path) -> list[Path]:
    """`report.html`, `report.md` and `report.csv` in the folder `out`; their paths."""
    out = output_folder(out)
    forms = {"report.html": as_html(report), "report.md": as_markdown(report), "report.csv": as_csv(report)}
    for name, text in forms.items():
        write_text(out / name, text)
    return [out / name for name in forms]


def as_html(report: Report) -> str:
    """The page; every text of the records is escaped, drawings are our own."""
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
    environment.filters["breakable"] = _breakable
    environment.filters["hundredths"] = _hundredths
    environment.globals |= {"spans": spans, "swatch": swatch}
    css, js = ((HERE / name).read_text() for name in ("page.css", "page.js"))
    return (
        environment.get_template("page.html").render(report=report, css=css, js=js, has_papers=_quotes(report)).lstrip()
    )


def _quotes(report: Report) -> bool:
    """Whether any cell is a paper's."""
    tables = (block for section in report.sections for block in section.blocks if isinstance(block, Table))
    return any(cell.kind == PUBLISHED for table in tables for row in table.rows for cell in row)


def spans(columns: Sequence[Column]) -> list[tuple[str, int, str]]:
    """The head above the columns' own: (group, how many columns it spans, its protocol)."""
    return [(name, len(list(same)), code) for (name, code), same in groupby(columns, lambda c: (c.group, c.code))]


def as_markdown(report: Report) -> str:
    """Tables as tables, figures as their captions; `_68.6_` is a paper's number, `**46.75**` measured."""
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
    kept = [i for i, _ in enumerate(table.columns) if not all(not row[i].text for row in table.rows)]
    heads = [_escaped(" ".join(filter(None, (c.group, c.code and f"`{c.code}`", c.label)))) for c in table.columns]
    lines = [table.caption, ""] * bool(table.caption) + [f"| {' | '.join(heads[i] for i in kept)} |"]
    lines.append(f"|{'|'.join('--:' if table.columns[i].numeric else ':--' for i in kept)}|")
    lines += [f"| {' | '.join(_marked(row[i]) for i in kept)} |" for row in table.rows]
    return [*lines, *notes]


def _marked(cell: Cell) -> str:
    text = _escaped(cell.text)
    if cell.kind == MEASURED:
        text = f"**{text}**"
    elif cell.kind == PUBLISHED:
        text = f"_{text}_"
    elif cell.href:
        text = f"[{text}]({cell.href.replace(' ', '%20')})"
    text += f" ({cell.mark})" if cell.mark else ""
    return text if cell.low is None else f"{text} ({_hundredths(cell.low)} – {_hundredths(cell.high)})"


def _breakable(text: str) -> Markup:
    """A name may go over to the next line after a slash or an underscore."""
    return Markup(re.sub("([/_])(?=.)", r"\1<wbr>", str(escape(text))))


def _hundredths(value: float) -> str:
    """`-0.25`, and `0.00` for what rounds to nothing from below."""
    return f"{round(value, 2) + 0.0:.2f}"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def as_csv(report: Report) -> str:
    """One row a number, in the long form that spreadsheets and data frames read."""
    with io.StringIO(newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(("section", "table", "protocol", "row", "column", "source", "value", "low95", "high95", "note"))
        for section in report.sections:
            for table in (block for block in section.blocks if isinstance(block, Table)):
                for line in _numbers(table):
                    out.writerow((section.title, table.title, *line))
        return file.getvalue()


def _numbers(table: Table) -> Iterator[tuple[object, ...]]:
    for row in table.rows:
        for column, cell in zip(table.columns[1:], row[1:], strict=True):
            if cell.kind in (MEASURED, PUBLISHED, NOT_RUN):
                label = " ".join(filter(None, (column.group, column.label)))
                ends = ("" if end is None else f"{end:.4f}" for end in (cell.low, cell.high))
                value = "" if cell.value is None else f"{cell.value:.10g}"
                yield column.code, row[0].text, label, cell.kind, value, *ends, cell.note
