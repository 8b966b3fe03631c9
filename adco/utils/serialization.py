"""Plain containers (JSON, YAML) -> frozen dataclasses, with every key and type checked against the annotations."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import MISSING, dataclass, is_dataclass, replace

from adco.utils.errors import UserError

T = typing.TypeVar("T")

_NAMES = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", type(None): "nothing"}


def build(kind: type[T], content: object, where: object, parse_numbers: bool = False) -> T:
    """A dataclass made of a mapping with its fields' names. An absent key takes the field's default.

    Args:
        kind: The dataclass. Its fields may be nested dataclasses, `X | Y`, `list[X]`, `tuple[X, ...]`, `dict[str, X]`,
            the plain types, and `object` (anything). A whole number is accepted where a number is expected.
        content: The mapping.
        where: What an error names first, e.g. the file.
        parse_numbers: Accept a text that reads as the expected number, because YAML 1.1 gives `1e-2` as a text.

    Raises:
        UserError: A key is unknown (with the nearest known one) or missing, or a value has another type. The message
            names the dotted key, what was expected and what was found.
    """
    return _Reader(where, parse_numbers).build(kind, content)


def plain(value: object) -> object:
    """Dataclasses as mappings, all the way down: the inverse of `build`. Fields that are None are left out."""
    if is_dataclass(value):
        pairs = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value) if field.init)
        return {name: plain(item) for name, item in pairs if item is not None}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def dotted_keys(kind: type) -> Iterator[str]:
    """Every key of a dataclass; of a nested dataclass `outer.inner`, of a list of dataclasses `outer.0.inner`."""
    for name, (hint, _) in _fields(kind).items():
        yield name
        is_list = typing.get_origin(hint) is list
        inner = typing.get_args(hint)[0] if is_list else hint
        if isinstance(inner, type) and is_dataclass(inner):
            yield from (f"{name}.0.{key}" if is_list else f"{name}.{key}" for key in dotted_keys(inner))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: `; did you mean X?`, empty where no known name is near."""
    near = difflib.get_close_matches(name, known, 1, cutoff=0.4)
    return f"; did you mean {near[0]}?" if near else ""


@dataclass(frozen=True)
class _Reader:
    where: object
    parse_numbers: bool

    def build(self, kind: type[T], content: object, at: str = "") -> T:
        """at: the dotted key of `content` below `where`."""
        if not isinstance(content, Mapping):
            raise self._error(at, f"expected keys and values, found {_shown(content)}")
        fields, prefix = _fields(kind), f"{at}." if at else ""
        for key in content:
            if key not in fields:
                name = f"{prefix}{key}"
                near = did_you_mean(name, (prefix + known for known in dotted_keys(kind)))
                raise self._error("", f"unknown key {_shown(name)}{near}")
        for name, (_, required) in fields.items():
            if required and name not in content:
                raise self._error("", f"{prefix}{name} is missing")
        return kind(**{key: self.convert(fields[key][0], value, f"{prefix}{key}") for key, value in content.items()})

    def convert(self, kind: object, value: object, at: str) -> object:
        """The value as the type `kind`, an annotation."""
        origin, inner = typing.get_origin(kind), typing.get_args(kind)
        if kind is object:
            return value
        if origin in (typing.Union, types.UnionType):
            options = [option for option in inner if option is not type(None)]
            if value is None and len(options) < len(inner):
                return None
            if len(options) == 1:  # its own error says more than the union's
                return self.convert(options[0], value, at)
            for option in options:
                with suppress(UserError):
                    return self.convert(option, value, at)
        if origin in (list, tuple) and isinstance(value, list | tuple):
            return origin(self.convert(inner[0], item, f"{at}.{i}") for i, item in enumerate(value))
        if origin in (dict, Mapping) and isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
            readers = {key: replace(self, where=f"{self.where}: {at}.{key}") for key in value}  # named like files
            return {key: readers[key].convert(inner[1], item, "") for key, item in value.items()}
        if origin is None and isinstance(kind, type):
            if is_dataclass(kind):
                return value if isinstance(value, kind) else self.build(kind, value, at)
            if kind in (int, float) and (type(value) is int or self.parse_numbers and isinstance(value, str)):
                with suppress(ValueError, OverflowError):
                    return kind(value)
            if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
                return value
        raise self._error(at, f"expected {_name(kind)}, found {_shown(value)}")

    def _error(self, at: str, problem: str) -> UserError:
        return UserError(": ".join(str(part) for part in (self.where, at, problem) if part))


@functools.cache
def _fields(kind: type) -> dict[str, tuple[object, bool]]:
    """(annotation, whether it has no default) of each field by name."""
    hints = typing.get_type_hints(kind)
    known = (field for field in dataclasses.fields(kind) if field.init)
    return {f.name: (hints[f.name], f.default is MISSING and f.default_factory is MISSING) for f in known}


def _name(kind: object) -> str:
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return " or ".join(map(_name, typing.get_args(kind)))
    if typing.get_origin(kind) in (list, tuple):
        items = _NAMES.get(typing.get_args(kind)[0], "").removeprefix("a ")
        return f"a list of {items}s" if items in ("text", "number", "whole number") else "a list"
    return _NAMES.get(kind, "keys and values")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
