"""The model zoo's manifest (`zoo.yaml`): its schema, and the reader that checks every row."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from adco.utils.errors import UserError
from adco.utils.paths import cache_folder
from adco.utils.serialization import build
from adco.utils.yaml_io import read_yaml

SCHEMA = 1
MANIFEST = Path(__file__).with_name("zoo.yaml")


@dataclass(frozen=True)
class Model:
    """One row of a manifest. None means "not known": not published where we looked.

    Attributes:
        name: Name of the model, as in `zoo://NAME`.
        folder: Folder of the manifest.
        method, epochs, data: How it was pretrained, on what.
        arch: torchvision's name of the architecture.
        layout: Layout of the file (adco/weights/layouts.py).
        recipe: The recipe of this project (adco/recipes) that trains the same.
        mirrors: http or https addresses of the file, tried in this order.
        file: A path relative to the manifest, instead of mirrors.
        sha256: Hash of the file in hexadecimal.
        hash_prefix: `sha256:` or `md5:` and the first digits, where the owner publishes only these.
        bytes: Size of the file.
        licence: Licence of the weights.
        source: Where the model is published.
        scores: What its owner publishes, in percent, each as {protocol, source, metric: value, ...}. None of them was
            measured by this project.
        note: Anything else worth knowing.
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
        """Where the file is, or will be after the download."""
        if self.file:
            return self.folder / self.file
        return zoo_folder() / f"{self.name}{suffix_of(self.mirrors[0].partition('?')[0])}"

    @property
    def record(self) -> Path:
        """The JSON file with {sha256, from, date} of the first download. It is kept when the model is deleted."""
        return zoo_folder() / f"{self.name}.json"


def zoo_folder() -> Path:
    """The folder of downloaded models, their download records and the user's own manifest."""
    return cache_folder() / "zoo"


def own_manifest() -> Path:
    """The path of the user's own manifest, which may not exist."""
    return zoo_folder() / MANIFEST.name


def suffix_of(name: str) -> str:
    """The suffix that selects the reader (adco/weights/readers.py): `.safetensors`, `.pkl`, else `.pth` for torch."""
    suffix = Path(name).suffix
    return suffix if suffix in (".safetensors", ".pkl") else ".pth"


def read_manifest(path: Path) -> dict[str, Model]:
    """The models of a manifest by name.

    Raises:
        UserError: Names the file, the model, the key and what was expected.
    """
    return {name: as_model(path, name, row) for name, row in read_rows(path).items()}


def read_rows(path: Path) -> dict[str, dict]:
    """The rows of a manifest as they are written, unchecked, by name.

    Raises:
        UserError: The file is not a manifest of this schema.
    """
    content = read_yaml(path, "manifest")
    if not isinstance(content, dict) or not {"schema", "models"} <= content.keys():
        raise UserError(f"{path}: expected the keys schema and models")
    schema, rows = content["schema"], content["models"]
    if schema != SCHEMA or not isinstance(rows, dict):
        raise UserError(f"{path}: expected schema {SCHEMA} and a mapping `models`, found schema {schema!r}")
    return rows


def as_model(path: Path, name: object, row: object) -> Model:
    """Check a row and return its model.

    Args:
        path: The manifest; messages name it, and the model's `file` is relative to its folder.
        name: The row's key.
        row: The row's value.

    Raises:
        UserError: Names the manifest, the model, the key and what was expected.
    """
    where = f"{path}: {name}"
    for key in ("name", "folder"):
        if isinstance(row, dict) and key in row:
            raise UserError(f"{where}: unknown key {key!r}")
    given = {**row, "name": str(name), "folder": path.parent} if isinstance(row, dict) else row
    model = build(Model, given, where)
    for key, (valid, expected) in _checks(model).items():
        if not valid:
            raise UserError(f"{where}: {key}: expected {expected}, found {getattr(model, key)!r}")
    return model


def _checks(model: Model) -> dict[str, tuple[bool, str]]:
    """key -> (whether its value is valid, what was expected)."""
    mirrors, scores, file = model.mirrors, model.scores, model.file
    inside = file is None or (_is(r"[\w.-]+(/[\w.-]+)*", file) and ".." not in file)
    return {
        "name": (_is(r"[a-z0-9][a-z0-9.-]*", model.name), "lower-case letters, digits, dots and dashes"),
        "mirrors": (all(_is(r"https?://\S+", url) for url in mirrors), "a list of http or https addresses"),
        "file": (inside and bool(mirrors) != bool(file), "mirrors or else a path beside the manifest"),
        "sha256": (_is(r"[0-9a-f]{64}", model.sha256) or not (model.sha256 or file), "64 digits of 0-9a-f"),
        "hash_prefix": (_is(r"((sha256|md5):[0-9a-f]{8,32})?", model.hash_prefix or ""), "sha256: or md5:, digits"),
        "bytes": (model.bytes is None or model.bytes > 0, "a whole number above 0"),
        "scores": (
            all({"protocol", "source"} < set(score) for score in scores),
            "protocol, source and a metric each",
        ),
    }


def _is(pattern: str, value: str | None) -> bool:
    return value is not None and re.fullmatch(pattern, value) is not None
