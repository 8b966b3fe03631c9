"""From plain containers to dataclasses and back: types, defaults, and errors that name the key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from adco.utils.errors import UserError
from adco.utils.serialization import build, did_you_mean, dotted_keys, plain


@dataclass(frozen=True)
class Part:
    size: int
    share: float = 0.5


@dataclass(frozen=True)
class Whole:
    name: str
    part: Part
    parts: list[Part] = field(default_factory=list)
    by_name: dict[str, Part] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    pair: tuple[float, ...] = (0.0, 1.0)
    workers: int | str = "auto"
    note: str | None = None
    nested: Part | None = None
    flag: bool = False
    anything: object = None


CONTENT = {"name": "x", "part": {"size": 3}}


def test_absent_keys_take_the_defaults_and_a_whole_number_is_a_number():
    whole = build(Whole, CONTENT | {"part": {"size": 3, "share": 1}, "pair": [1, 2.5]}, "f")
    assert whole == Whole("x", Part(3, 1.0), pair=(1.0, 2.5))
    assert type(whole.part.share) is type(whole.pair[0]) is float


def test_plain_is_the_inverse_of_build():
    whole = Whole("x", Part(1), [Part(2), Part(3)], {"a": Part(4)}, {"b": 5}, (1.5,), 3, "n", Part(6), True, {"c": [7]})
    assert build(Whole, plain(whole), "f") == whole


def test_values_that_are_built_already_are_kept():
    part = Part(3)
    assert build(Whole, {"name": "x", "part": part}, "f").part is part


@pytest.mark.parametrize(("value", "expected"), [(3, 3), ("3", "3"), ("auto", "auto")])
def test_a_union_takes_the_first_type_that_fits(value, expected):
    workers = build(Whole, CONTENT | {"workers": value}, "f").workers
    assert workers == expected and type(workers) is type(expected)


def test_texts_are_parsed_as_numbers_where_that_is_asked_for():
    content = {"name": "5", "part": {"size": "3", "share": "1e-2"}, "workers": "4", "pair": ["1", 2]}
    assert build(Whole, content, "f", parse_numbers=True) == Whole("5", Part(3, 0.01), workers=4, pair=(1.0, 2.0))
    with pytest.raises(UserError, match=r"f: part\.size: expected a whole number, found '3'"):
        build(Whole, content, "f")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nmae": "y"}, "f: unknown key 'nmae'; did you mean name?"),
        ({"part": {"size": 3, "shares": 1}}, "f: unknown key 'part.shares'; did you mean part.share?"),
        ({"parts": [{"size": 1}, {"sizes": 1}]}, "f: unknown key 'parts.1.sizes'; did you mean parts.1.size?"),
        ({"by_name": {"a.b": {"sizes": 1}}}, "f: by_name.a.b: unknown key 'sizes'; did you mean size?"),
        ({1: 2}, "f: unknown key '1'"),
        ({"part": {}}, "f: part.size is missing"),
        ({"part": 3}, "f: part: expected keys and values, found 3"),
        ({"part": {"size": True}}, "f: part.size: expected a whole number, found True"),
        ({"part": {"size": 3.0}}, "f: part.size: expected a whole number, found 3.0"),
        ({"part": {"size": 3, "share": False}}, "f: part.share: expected a number, found False"),
        ({"part": {"size": 3, "share": 10**400}}, "f: part.share: expected a number, found 1000"),
        ({"parts": {"size": 1}}, "f: parts: expected a list, found {'size': 1}"),
        ({"by_name": {"a": {"size": "x"}}}, "f: by_name.a: size: expected a whole number, found 'x'"),
        ({"by_name": {1: {"size": 2}}}, "f: by_name: expected keys and values, found {1: {'size': 2}}"),
        ({"counts": {"a": 1.5}}, "f: counts.a: expected a whole number, found 1.5"),
        ({"pair": ["x"]}, "f: pair.0: expected a number, found 'x'"),
        ({"pair": 3}, "f: pair: expected a list of numbers, found 3"),
        ({"workers": 1.5}, "f: workers: expected a whole number or a text, found 1.5"),
        ({"workers": True}, "f: workers: expected a whole number or a text, found True"),
        ({"note": 3}, "f: note: expected a text, found 3"),
        ({"nested": {"size": None}}, "f: nested.size: expected a whole number, found None"),
        ({"flag": 1}, "f: flag: expected true or false, found 1"),
    ],
)
def test_mistakes_name_the_dotted_key_and_what_was_expected(change, message):
    with pytest.raises(UserError) as caught:
        build(Whole, CONTENT | change, "f")
    assert str(caught.value).startswith(message)


def test_long_values_are_cut():
    with pytest.raises(UserError) as caught:
        build(Whole, CONTENT | {"note": list(range(1000))}, "f")
    assert len(str(caught.value)) < 120


def test_dotted_keys_are_those_of_nested_dataclasses_and_of_lists():
    keys = list(dotted_keys(Whole))
    assert keys[:7] == ["name", "part", "part.size", "part.share", "parts", "parts.0.size", "parts.0.share"]


def test_a_name_far_from_all_has_no_suggestion():
    assert did_you_mean("xyz", ["bank.size"]) == ""
