"""YAML that others wrote: plain values of a bounded size, or a UserError."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from adco.utils.errors import UserError, one_line

MOST_VALUES = 100_000  # anchors make a few lines stand for billions
MOST_CHARACTERS = 1 << 20
MOST_BRACKETS = 4000  # PyYAML's time goes with the square of how deep they are
MOST_BITS = 64  # of a whole number; Python refuses to print one of more than 4300 digits


class _Loader(yaml.SafeLoader):
    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        number = super().construct_yaml_int(node)
        if number.bit_length() > MOST_BITS:
            raise ValueError(f"a whole number of more than {MOST_BITS} bits")
        return number


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def read_yaml(path: Path, what: str) -> Any:
    """The content of a YAML file; what: `recipe`, for messages. Raises UserError that names it."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({one_line(error)})") from error
    return parse_yaml(text, path, what)


def parse_yaml(text: str, source: Path | str, what: str) -> Any:
    """What a text says; tags that would make objects are refused. Raises UserError that names `source`."""
    try:
        if len(text) > MOST_CHARACTERS:
            raise ValueError(f"{len(text)} characters, more than {MOST_CHARACTERS}")
        if text.count("[") + text.count("{") > MOST_BRACKETS:
            raise ValueError(f"more than {MOST_BRACKETS} brackets")
        content = yaml.load(text, _Loader)
        if sum(1 for _ in values_in(content)) > MOST_VALUES:
            raise ValueError(f"more than {MOST_VALUES} values")
    except Exception as error:  # beside its own errors PyYAML lets those of int(), datetime and recursion through
        reason = one_line(error)[:200] or type(error).__name__
        raise UserError(f"{source}: not a readable {what} ({reason})") from error
    return content


def values_in(content: object) -> Iterator[object]:
    """Every value with what is in it, MOST_VALUES and one at most."""
    waiting, count = [content], 0
    while waiting and count <= MOST_VALUES:
        value = waiting.pop()
        count += 1
        yield value
        if isinstance(value, (dict, list)):
            waiting.extend(value.values() if isinstance(value, dict) else value)
