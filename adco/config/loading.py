"""Recipes from YAML files and `key.sub=value` overrides; a mistake is an error that names the file and the key."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from adco.config.schema import PretrainConfig
from adco.config.validation import check_recipe
from adco.utils.errors import UserError, one_line
from adco.utils.serialization import build, did_you_mean, dotted_keys
from adco.utils.yaml_io import parse_yaml, read_yaml

RECIPES = Path(__file__).parent.parent / "recipes"
_build = functools.partial(build, PretrainConfig, parse_numbers=True)


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> PretrainConfig:
    """Read a recipe and apply overrides.

    Args:
        path: A YAML file, or a recipe's bare name. `base: NAME` in a file names the recipe that it changes, by bare
            name or by a path from the file's own folder; a list (`views`) replaces the whole list of the base.
        overrides: `key.sub=value`, the value in YAML.

    Raises:
        UserError: A key is unknown, or a value has the wrong type or is out of range. The message names the file and
            the dotted key.
    """
    path = _find(path)
    recipe, source = _build(_read(path, ()), path), str(path)
    if overrides:
        recipe = _build(changed(asdict(recipe), overrides), "command line")
        source = f"{path} and the command line"
    return _checked(source, recipe)


def changed(content: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The content of a recipe, changed in place by `key.sub=value` overrides. Raises UserError."""
    for override in overrides:
        _override(content, override)
    return content


def as_recipe(source: Path | str, content: Mapping[str, Any]) -> PretrainConfig:
    """The recipe that plain containers describe, a checkpoint's for example. Raises UserError as `load_recipe` does."""
    return _checked(source, _build(content, source))


def _checked(source: Path | str, recipe: PretrainConfig) -> PretrainConfig:
    try:
        check_recipe(recipe)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    return recipe


def _read(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    """The content of a recipe's file over that of its base; `above`: the files that lead here."""
    content = read_yaml(path, "recipe") or {}
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a mapping of keys, found {repr(content)[:100]}")
    base = content.pop("base", None)
    _build(content, path)  # an error names the file of the mistake
    if base is None:
        return content
    above, near = (*above, path.resolve()), path.parent / str(base)
    try:
        base = _find(near if os.path.isfile(near) else str(base))
    except UserError as error:
        raise UserError(f"{path}: base: {error}") from None
    if base.resolve() in above:
        raise UserError(f"{path}: base: {base.name} is built on this recipe; a base must stand on its own")
    return over(_read(base, above), content)


def over(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """`base` with the values of `change` in place of its own, mapping by mapping."""
    merged = {**base, **change}
    for key in base.keys() & change.keys():
        if isinstance(base[key], dict):
            merged[key] = over(base[key], change[key])
    return merged


def _find(path: Path | str) -> Path:
    path = Path(path)
    if os.path.isfile(path):
        return path
    packaged = RECIPES / f"{path}.yaml"
    if path.parent == Path() and os.path.isfile(packaged):
        return packaged
    names = sorted(recipe.stem for recipe in RECIPES.glob("*.yaml"))
    raise UserError(f"{path}: no such recipe; give a YAML file or one of {', '.join(names)}")


def _override(content: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"{one_line(override)}: expected key.sub=value, for example optimizer.lr=0.06")
    node: Any = content
    *parents, last = (int(part) if part.isdecimal() and len(part) < 10 else part for part in key.split("."))
    try:
        for part in parents:
            node = node[part]
        before = node[last]  # an override never adds a key
        value = parse_yaml(text, f"command line: {one_line(key)}", "value") if text else ""
        # a text stays as it is written where YAML would read a number or a date: data.root=2024-01-31
        node[last] = text if isinstance(before, str) and not isinstance(value, (str, dict, list)) else value
    except (KeyError, IndexError, TypeError):
        key = one_line(key[:100])
        raise UserError(f"command line: unknown key {key}{did_you_mean(key, _all_keys())}") from None


@functools.cache
def _all_keys() -> tuple[str, ...]:
    return tuple(dotted_keys(PretrainConfig))
