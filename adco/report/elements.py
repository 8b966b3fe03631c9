"""The parts of a report: cells, columns, tables, footnotes, figures and sections.

Numbers become cells here, with one format for all pages. The writers (text_table.py, render.py) read nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from string import ascii_lowercase

PUBLISHED, MEASURED, NOT_RUN, TEXT = "published", "measured", "not-run", "text"  # kinds of cells


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Attributes:
        text: What is shown.
        kind: Origin of the number: `PUBLISHED`, `MEASURED`, `NOT_RUN`, or `TEXT` for everything else.
        value: The number, for sorting and CSV.
        low, high: Ends of its 95% interval.
        note: Tooltip, e.g. the source or the hardware.
        href: Link to the record.
        mark: Letters of its footnotes.
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
UNKNOWN = Cell("–")
MISSING = Cell("not run", NOT_RUN)


def number(
    value: float | None,
    form: str = ".2f",
    unit: str = "",
    kind: str = TEXT,
    interval: tuple[float, float] | None = None,
    note: str = "",
    href: str = "",
) -> Cell:
    """A cell with a number, which is a dash if there is none.

    Args:
        value: The number.
        form: Format specification of its text.
        unit: Text after the number.
        kind: `MEASURED`, `PUBLISHED`, or `TEXT` for a number that is counted or set.
        interval: Ends of its 95% interval.
        note, href: See `Cell`.
    """
    if value is None:
        return Cell("–", note=note)
    return Cell(f"{value:{form}}{unit}", kind, value, *(interval or (None, None)), note, href)


measured = partial(number, kind=MEASURED)


def published(value: float | None, form: str = "g", note: str = "") -> Cell:
    """A number as a paper prints it, or a dash. note: its source."""
    return number(value, form, kind=PUBLISHED, note=note if value is not None else "not in the paper")


@dataclass(frozen=True)
class Column:
    """The head of a column.

    Attributes:
        label: Its own text.
        group: Text above it, shared with adjacent columns.
        code: Name of a protocol above it, likewise.
        numeric: Whether its cells are aligned right.
    """

    label: str
    group: str = ""
    code: str = ""
    numeric: bool = True

    @property
    def head(self) -> bool:
        """Whether there is anything above the label."""
        return bool(self.group or self.code)


def columns(*labels: str, group: str = "", numeric: bool = True) -> list[Column]:
    """Columns that differ in their labels alone."""
    return [Column(label, group, numeric=numeric) for label in labels]


@dataclass(frozen=True)
class Table:
    """A table. A table without rows shows its caption and notes alone.

    Attributes:
        key: Anchor in the page.
        title, caption: Texts above it.
        columns: Heads of the columns.
        rows: A tuple of cells for each row, as many as columns. The first cell is the head of the row.
        notes: Lines below it.
        prose: Cells hold sentences, whose lines may break.

    Raises:
        ValueError: A row has another number of cells.
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


@dataclass
class Notes:
    """Footnotes in the order in which they are first used, with letters in a report and with numbers in Markdown."""

    texts: list[str] = field(default_factory=list)

    def letters(self, *texts: str | None) -> str:
        """`ac`: the letters of those texts that are not None or empty."""
        return "".join(ascii_lowercase[number] for number in sorted(self._numbers(texts)))

    def marks(self, *texts: str | None) -> str:
        """`[^1][^3]`: the same with numbers."""
        return "".join(f"[^{number + 1}]" for number in self._numbers(texts))

    def lettered(self) -> list[str]:
        """The footnotes as `a  text`."""
        return [f"{letter}  {text}" for letter, text in zip(ascii_lowercase, self.texts, strict=False)]

    def numbered(self) -> str:
        """The footnotes as Markdown, `[^1]: text.`."""
        return "".join(f"[^{number}]: {text}.\n" for number, text in enumerate(self.texts, 1))

    def _numbers(self, texts: Sequence[str | None]) -> list[int]:
        used = [text for text in texts if text]
        self.texts += [text for text in dict.fromkeys(used) if text not in self.texts]
        return [self.texts.index(text) for text in used]


@dataclass(frozen=True)
class Panel:
    """A drawing: inline SVG for a wide and for a narrow page, or a PNG. alt: its description for screen readers."""

    alt: str
    wide: str = ""
    narrow: str = ""
    png: bytes = b""
    title: str = ""


@dataclass(frozen=True)
class Figure:
    """Panels over one caption.

    Attributes:
        key, title, caption: As of a table; the caption is below.
        panels: The drawings.
        legend: (label, slot of the palette, look: `line`, `dashed`, `bar` or `hollow`) of each series.
        missing: Why there is nothing to draw.
        named: The wide drawing labels its series itself.
        columns: Number of panels side by side on a wide page.
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
    """A chapter of a report. lead: paragraphs under its heading."""

    key: str
    title: str
    lead: Sequence[str] = ()
    blocks: Sequence[Table | Figure] = ()

    @property
    def tables(self) -> list[Table]:
        """Its tables."""
        return [block for block in self.blocks if isinstance(block, Table)]

    @property
    def figures(self) -> list[Figure]:
        """Its figures."""
        return [block for block in self.blocks if isinstance(block, Figure)]


@dataclass(frozen=True)
class Report:
    """A report. facts: (name, value) pairs under its title."""

    title: str
    lead: str
    facts: Sequence[tuple[str, str]]
    sections: Sequence[Section] = field(default_factory=tuple)
