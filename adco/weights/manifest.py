"""The model zoo's manifest: which checkpoints there are, where, and what their owners publish about them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from adco.utils.errors import UserError
from adco.utils.paths import cache_folder
from adco.utils.yaml_io import read_yaml

SCHEMA = 1
MANIFEST = Path(__file__).with_name("zoo.yaml")


@dataclass(frozen=True)
class Model:
    """One row of a manifest. None is "not known": nobody has published it where we looked.

    mirrors: http or https addresses, tried in turn; file: instead of them, a path beside the manifest
    sha256, bytes: of the file; hash_prefix: `sha256:` or `md5:` and the first digits, where only these are published
    layout: how the file is written (adco/weights/layouts.py); recipe: ours (adco/recipes) that trains the same thing
    scores: what its owner publishes, in percent, each {protocol, source, metric: value ...}; none is measured by us
    """

    name: str
    folder: Path
    method: str | None = None
    epochs: int | None = None
    data: str | None = None
    arch: str | None = None
    layout: str | None = None
    recipe: str | None = None
    mirrors: tuple[str, ...] = ()
    file: str | None = None
    sha256: str | None = None
    hash_prefix: str | None = None
    bytes: int | None = None
    licence: str | None = None
    source: str | None = None
    scores: tuple[Mapping[str, object], ...] = ()
    note: str | None = None

    @property
    def path(self) -> Path:
        """Where the file lies, or will lie once it is downloaded."""
        if self.file:
            return self.folder / self.file
        return zoo_folder() / f"{self.name}{suffix_of(self.mirrors[0].partition('?')[0])}"

    @property
    def record(self) -> Path:
        """What was recorded at the first download: {sha256, from, date}. It outlives the file."""
        return zoo_folder() / f"{self.name}.json"


def zoo_folder() -> Path:
    """Where downloaded models, their records and the user's own manifest lie."""
    return cache_folder() / "zoo"


def own_manifest() -> Path:
    """The user's own rows; the file need not exist."""
    return zoo_folder() / MANIFEST.name


def suffix_of(name: str) -> str:
    """The suffix by which a file's reader is chosen (adco/weights/readers.py): `.pth` for all that are torch's."""
    suffix = Path(name).suffix
    return suffix if suffix in (".safetensors", ".pkl") else ".pth"


def read_manifest(path: Path) -> dict[str, Model]:
    """The models of a manifest. Raises UserError that names the file, the model, the key and what was expected."""
    return {name: as_model(path, name, row) for name, row in read_rows(path).items()}


def read_rows(path: Path) -> dict[str, dict]:
    """The rows of a manifest as they are written. Raises UserError when the file is none."""
    try:
        content = read_yaml(path, "manifest")
        schema, rows = content["schema"], content["models"]
    except (KeyError, TypeError, IndexError) as error:
        raise UserError(f"{path}: expected the keys schema and models ({error})") from error
    if schema != SCHEMA or not isinstance(rows, dict):
        raise UserError(f"{path}: expected schema {SCHEMA} and a mapping `models`, found schema {schema!r}")
    return rows


def as_model(path: Path, name: object, row: object) -> Model:
    """A checked row. Raises UserError."""
    known = [field.name for field in fields(Model) if field.name not in ("name", "folder")]
    if not isinstance(row, dict):
        raise UserError(f"{path}: {name}: expected keys and values, found {row!r}")
    for key in row:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1)
            raise UserError(f"{path}: {name}: unknown key {key!r}" + (f"; did you mean {near[0]}?" if near else ""))
    for key, (right, expected) in _checks(name, row).items():
        if not right:
            raise UserError(f"{path}: {name}: {key}: expected {expected}, found {row.get(key)!r}")
    tuples = {key: tuple(row.get(key) or ()) for key in ("mirrors", "scores")}
    return Model(**(row | tuples), name=name, folder=path.parent)


def _checks(name: object, row: Mapping) -> dict[str, tuple[bool, str]]:
    """key -> (whether its value is right, what was expected)."""
    mirrors, scores, file = row.get("mirrors") or [], row.get("scores") or [], row.get("file")
    inside = file is None or (_is(r"[\w.-]+(/[\w.-]+)*", file) and ".." not in file)
    texts = ("method", "data", "arch", "layout", "recipe", "licence", "source", "note")
    return {key: (row.get(key) is None or isinstance(row[key], str), "a text") for key in texts} | {
        "name": (_is(r"[a-z0-9][a-z0-9.-]*", name), "lower-case letters, digits, dots and dashes"),
        "mirrors": (_all(mirrors, lambda url: _is(r"https?://\S+", url)), "a list of http or https addresses"),
        "file": (inside and bool(mirrors) != bool(file), "mirrors or else a path beside the manifest"),
        "sha256": (_is(r"[0-9a-f]{64}", row.get("sha256")) or not (row.get("sha256") or file), "64 digits of 0-9a-f"),
        "hash_prefix": (
            _is(r"((sha256|md5):[0-9a-f]{8,32})?", row.get("hash_prefix") or ""),
            "sha256: or md5:, digits",
        ),
        "bytes": (row.get("bytes") is None or (type(row["bytes"]) is int and row["bytes"] > 0), "a whole number"),
        "epochs": (row.get("epochs") is None or type(row["epochs"]) is int, "a whole number"),
        "scores": (
            _all(scores, lambda score: isinstance(score, dict) and {"protocol", "source"} < set(score)),
            "protocol, source and a metric each",
        ),
    }


def _is(pattern: str, value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(pattern, value) is not None


def _all(values: object, right) -> bool:
    return isinstance(values, list) and all(right(value) for value in values)
