"""Recipes from YAML files and `key.sub=value` overrides; a mistake is an error that names the file and the key."""

from __future__ import annotations

import difflib
import functools
import os
import typing
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from adco.config.schema import PretrainConfig
from adco.config.validation import check_recipe
from adco.utils.errors import UserError, one_line
from adco.utils.yaml_io import parse_yaml, read_yaml, values_in

RECIPES = Path(__file__).parent.parent / "recipes"


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> PretrainConfig:
    """Read `path` (a YAML file or a recipe's bare name) and apply `key.sub=value` overrides.

    `base: NAME` in a file names the recipe that it changes, by bare name or by path from the file's own folder; a list
    (`views`) replaces the base's whole. Raises UserError naming the file and the key: unknown (with the nearest), of
    the wrong type, or out of range.
    """
    path = _find(path)
    filled = changed(OmegaConf.to_container(_typed(path, _read(path, ()))), overrides)
    return as_recipe("command line" if overrides else path, filled)


def changed(content: dict, overrides: Sequence[str]) -> dict:
    """The content of a recipe, changed in place by `key.sub=value` overrides. Raises UserError."""
    for override in overrides:
        _override(content, override)
    return content


def as_recipe(source: Path | str, content: dict) -> PretrainConfig:
    """The recipe that plain containers describe, a checkpoint's for example. Raises UserError as `load_recipe` does."""
    _check_keys(source, content, PretrainConfig)
    for value in values_in(content):
        if isinstance(value, str) and "${" in value:  # OmegaConf would put in other keys or the environment
            raise UserError(f"{source}: {value[:100]!r} refers to something else; write the value itself")
    recipe = OmegaConf.to_object(_typed(source, content))
    check_recipe(recipe)
    return recipe


def _read(path: Path, above: tuple[Path, ...]) -> dict:
    """The content of a recipe's file over that of its base; `above`: the files that lead here."""
    content = read_yaml(path, "recipe") or {}
    base = content.pop("base", None) if isinstance(content, dict) else None
    _check_keys(path, content, PretrainConfig)
    _typed(path, content)
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


def over(base: dict, change: dict) -> dict:
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


def _typed(source: Path | str, content: dict, kind: type = PretrainConfig, prefix: str = "") -> DictConfig:
    """The content as a typed OmegaConf node; raises UserError naming the field whose type is wrong."""
    schema = OmegaConf.structured(kind)
    for node in (schema, *(schema[name] for name in schema if OmegaConf.is_dict(schema[name]))):
        OmegaConf.set_readonly(node, False)  # frozen dataclasses are read-only nodes, which refuse a merge
    try:
        return OmegaConf.merge(schema, OmegaConf.create(content))
    except OmegaConfBaseException as error:
        key = error.full_key or str(error.key or "")
        raise UserError(f"{source}: {prefix}{key}: {str(error.msg or error).splitlines()[0]}") from error


def _check_keys(source: Path | str, content: object, kind: type, prefix: str = "") -> None:
    """Walk the mapping beside the dataclass and raise for a key that the dataclass does not have."""
    if typing.get_origin(kind) is list:
        (item_kind,) = typing.get_args(kind)
        for i, item in enumerate(content if isinstance(content, list) and is_dataclass(item_kind) else ()):
            _check_keys(source, item, item_kind, f"{prefix}{i}.")
            _typed(source, item, item_kind, f"{prefix}{i}.")  # in a list, OmegaConf does not say which item is wrong
    elif is_dataclass(kind):
        if not isinstance(content, dict):
            raise UserError(f"{source}: {prefix.rstrip('.')}: expected a mapping of keys, found {repr(content)[:100]}")
        kinds = _kinds(kind)
        for key, value in content.items():
            if key not in kinds:
                raise _unknown_key(source, f"{prefix}{key}")
            _check_keys(source, value, kinds[key], f"{prefix}{key}.")


def _override(content: dict, override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"{one_line(override)}: expected key.sub=value, for example optimizer.lr=0.06")
    node: object = content
    *parents, last = [int(part) if part.isdecimal() and len(part) < 10 else part for part in key.split(".")]
    try:
        for part in parents:
            node = node[part]
        node[last]  # an override never adds a key
        node[last] = parse_yaml(text, f"command line: {one_line(key)}", "value") if text else ""
    except (KeyError, IndexError, TypeError):
        raise _unknown_key("command line", key) from None


def _unknown_key(source: Path | str, key: str) -> UserError:
    key = one_line(key[:100])
    near = difflib.get_close_matches(key, _all_keys(), n=1, cutoff=0.0)[0]
    return UserError(f"{source}: unknown key {key}; did you mean {near}?")


@functools.cache
def _all_keys() -> tuple[str, ...]:
    return tuple(_dotted(PretrainConfig))


def _dotted(kind: type, prefix: str = "") -> Iterator[str]:
    for name, sub in _kinds(kind).items():
        inner = typing.get_args(sub)[0] if typing.get_origin(sub) is list else sub
        yield f"{prefix}{name}"
        if is_dataclass(inner):
            yield from _dotted(inner, f"{prefix}{name}." if inner is sub else f"{prefix}{name}.0.")


def _kinds(kind: type) -> dict[str, type]:
    hints = typing.get_type_hints(kind)
    return {f.name: hints[f.name] for f in fields(kind)}
