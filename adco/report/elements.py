"""What a report is made of: cells, tables, figures, sections. Renderers read these and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

PUBLISHED, MEASURED, NOT_RUN, TEXT = "published", "measured", "not-run", "text"


@dataclass(frozen=True)
class Cell:
    """One cell. kind: whose number it is; note: what it belongs to; href: the record behind it; mark: its footnotes.

    value: the number itself, for sorting and CSV; low, high: the ends of its 95% interval
    """

    text: str
    kind: str = TEXT
    value: float | None = None
    low: float | None = None
    high: float | None = None
    note: str = ""
    href: str = ""
    mark: str = ""


NOTHING = Cell("")
MISSING = Cell("not run", NOT_RUN)


def published(value: float | None, text: str = "", note: str = "") -> Cell:
    """A number of a paper, as printed there; nothing printed is a dash."""
    if value is None:
        return Cell("–", note=note or "not in the paper")
    return Cell(text or f"{value:g}", PUBLISHED, value, note=note)


def measured(value: float, decimals: int = 2, **more: object) -> Cell:
    return Cell(f"{value:.{decimals}f}", MEASURED, value, **more)


@dataclass(frozen=True)
class Column:
    """A column's head. Above it, shared with its neighbours, `group` in words and `code`, a protocol's name.

    numeric: set right
    """

    label: str
    group: str = ""
    code: str = ""
    numeric: bool = True

    @property
    def head(self) -> bool:
        return bool(self.group or self.code)


@dataclass(frozen=True)
class Table:
    """rows: one tuple of cells a row, as many as columns; the first cell is the row's head. notes: below the table,
    which is not drawn where it has no rows.

    prose: cells hold sentences, whose lines may break
    """

    key: str
    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""
    notes: Sequence[str] = ()
    prose: bool = False

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"table {self.key}: a row of {len(row)} cells under {len(self.columns)} columns")


@dataclass(frozen=True)
class Panel:
    """Inline SVG for a wide and for a narrow page, or a PNG. alt: what a reader who cannot see it is told."""

    alt: str
    wide: str = ""
    narrow: str = ""
    png: bytes = b""
    title: str = ""


@dataclass(frozen=True)
class Figure:
    """Panels over one caption. missing: why there is nothing to see.

    legend: (label, slot of the palette, look: `line`, `dashed`, `bar` or `hollow`) of each series; named: the wide
        drawing names its series itself
    columns: how many panels side by side where the page is wide
    """

    key: str
    title: str
    caption: str
    panels: Sequence[Panel] = ()
    legend: Sequence[tuple[str, int, str]] = ()
    missing: str = ""
    named: bool = False
    columns: int = 1


@dataclass(frozen=True)
class Section:
    """lead: paragraphs under the heading."""

    key: str
    title: str
    lead: Sequence[str] = ()
    blocks: Sequence[Table | Figure] = ()


@dataclass(frozen=True)
class Report:
    title: str
    lead: str
    facts: Sequence[tuple[str, str]]
    sections: Sequence[Section] = field(default_factory=tuple)
