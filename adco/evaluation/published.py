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
    """One published number. None means that the source does not say.

    Attributes:
        table, source: E.g. `adco-4` and `AdCo, table 4`.
        method: Name of the method; `printed_as` is its name in the source if that differs.
        metric: Name of the metric as in records.
        value, unit: The number in `percent` or `GPU hours`.
        protocol: Name of a protocol of this project, or `own/...` for one that is not ours or not known.
        inferred: The protocol follows from the cited method's code, not from the source itself.
        data, split, detector, schedule: What the number was obtained on and with.
        epochs, batch, negatives, multicrop, symmetric: How the model was pretrained.
        hardware: What it was pretrained on.
        recipe: Our recipe (adco/recipes) with the same pretraining.
        caution: Why the number is not comparable with others of the same column.
        ambiguous: What the source leaves unclear.
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
    def text(self) -> str:
        """The number with the decimals of the source: `68.6`, `0.25`."""
        return f"{self.value:.{1 if self.unit == 'percent' and round(self.value, 1) == self.value else 2}f}"

    @property
    def label(self) -> str:
        """Method and pretraining: `AdCo, multi-crop, 800 epochs`."""
        parts = [self.method, "multi-crop" if self.multicrop else "", f"{self.epochs} epochs" if self.epochs else ""]
        return ", ".join(part for part in parts if part)


@functools.cache
def load_published(path: Path = PATH) -> tuple[Published, ...]:
    """All numbers of the file, in its order.

    Args:
        path: A YAML file in the format of published.yaml.

    Raises:
        UserError: The file is not in that format; the message names the file, the table, the row and the key.
    """
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
