"""Published numbers (published.yaml, and what the zoo's owners print), in the terms of this project's records."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from adco.utils.errors import UserError
from adco.utils.serialization import build
from adco.utils.yaml_io import read_yaml

PATH = Path(__file__).with_name("published.yaml")
SCHEMA = 1


@dataclass(frozen=True)
class Published:
    """One number that somebody has published. None: the source does not say.

    table, source: e.g. `adco-4` and `AdCo, table 4`
    protocol: a name of this project's, or `own/...` for a way that is not ours or not known; inferred: from the cited
        method's code, not from the source itself
    metric: as records name it; unit: `percent` or `GPU hours`
    data, split, detector, schedule: what it was obtained on and with
    recipe: ours (adco/recipes) that pretrains the same thing
    caution: why it must not be read like its neighbours; ambiguous: what the source leaves unclear
    printed_as: the method's name in the source where it differs
    """

    table: str
    source: str
    method: str
    metric: str
    value: float
    unit: str
    protocol: str
    data: str
    epochs: int | None = None
    batch: int | None = None
    negatives: int | None = None
    multicrop: bool = False
    symmetric: bool | None = None
    hardware: str | None = None
    split: str | None = None
    detector: str | None = None
    schedule: str | None = None
    recipe: str | None = None
    inferred: bool = False
    caution: str | None = None
    ambiguous: str | None = None
    printed_as: str | None = None

    @property
    def label(self) -> str:
        """`AdCo, multi-crop, 800 epochs`."""
        parts = [self.method, "multi-crop" if self.multicrop else "", f"{self.epochs} epochs" if self.epochs else ""]
        return ", ".join(part for part in parts if part)


@functools.cache
def load_published(path: Path = PATH) -> tuple[Published, ...]:
    """Every number of the file, in its order. Raises UserError that names the file, the table, the row and the key."""
    content = read_yaml(Path(path), "list of published numbers")
    if not isinstance(content, dict) or content.get("schema") != SCHEMA or not isinstance(content.get("tables"), dict):
        raise UserError(f"{path}: expected schema {SCHEMA} and a mapping `tables`")
    return tuple(row for name, table in content["tables"].items() for row in _rows(name, table, f"{path}: {name}"))


def _rows(name: str, table: object, where: str) -> Iterator[Published]:
    if not isinstance(table, dict) or set(table) != {"source", "about", "columns", "rows"}:
        raise UserError(f"{where}: expected source, about, columns and rows")
    columns, known = table["columns"], {field.name for field in fields(Published)}
    for number, row in enumerate(table["rows"], 1):
        place = f"{where}: row {number}"
        if not isinstance(row, dict):
            raise UserError(f"{place}: expected keys and values, found {row!r}")
        if not (cells := [key for key in row if key in columns]):
            raise UserError(f"{place}: has none of the columns {', '.join(columns)}")
        if unexpected := [key for key in row if key not in columns and key not in known]:
            raise UserError(f"{place}: {unexpected[0]!r} is neither a column ({', '.join(columns)}) nor known")
        shared = {"table": name, "source": table["source"]} | {key: row[key] for key in row if key not in columns}
        for key in cells:
            cell = row[key] if isinstance(row[key], dict) else {"value": row[key]}
            yield build(Published, columns[key] | shared | cell, f"{place}: {key}")
