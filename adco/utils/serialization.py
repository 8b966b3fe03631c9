"""Plain containers (JSON, YAML) -> frozen dataclasses, with every key and type checked against the annotations."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import types
import typing
from collections.abc import Mapping

from adco.utils.errors import UserError

_WORDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", type(None): "nothing"}


def build(kind: type, content: object, where: str):
    """A `kind` made of a mapping with its fields' names. where: what the error names first, e.g. the file.

    Understands nested dataclasses, `X | None`, dict[str, X], tuple[X, ...], the plain types, and `object` (anything).
    Raises UserError naming the key, what was expected and what was found: unknown, missing, of another type.
    """
    if not isinstance(content, Mapping):
        raise UserError(f"{where}: expected keys and values, found {_shown(content)}")
    hints = _hints(kind)
    for key in content:
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, 1)
            raise UserError(f"{where}: unknown key {key!r}" + (f"; did you mean {near[0]}?" if near else ""))
    for field in dataclasses.fields(kind):
        if field.name not in content and _required(field):
            raise UserError(f"{where}: {field.name} is missing")
    return kind(**{key: convert(hints[key], value, f"{where}: {key}") for key, value in content.items()})


def convert(kind: object, value: object, where: str) -> object:
    """The value as the type `kind`, an annotation. Raises UserError that begins with `where`."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind is object:
        return value
    if origin in (typing.Union, types.UnionType):
        (real,) = (option for option in inner if option is not type(None))
        return None if value is None and type(None) in inner else convert(real, value, where)
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(convert(inner[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin in (dict, Mapping) and isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: convert(inner[1], item, f"{where}.{key}") for key, item in value.items()}
    if dataclasses.is_dataclass(kind):
        return value if isinstance(value, kind) else build(kind, value, where)
    if kind is float and type(value) is int:
        return float(value)
    if isinstance(kind, type) and isinstance(value, kind) and not (kind in (int, float) and isinstance(value, bool)):
        return value
    raise UserError(f"{where}: expected {_words(kind)}, found {_shown(value)}")


def plain(value: object) -> object:
    """Dataclasses as mappings, all the way down: `build`'s opposite. Fields that are None are left out."""
    if dataclasses.is_dataclass(value):
        pairs = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value) if field.init)
        return {name: plain(item) for name, item in pairs if item is not None}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


@functools.cache
def _hints(kind: type) -> dict[str, object]:
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind) if field.init}


def _required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _words(kind: object) -> str:
    if typing.get_origin(kind) is tuple:
        return "a list"
    return _WORDS.get(kind, "keys and values")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
