"""The differences between two recipes, and the name of the packaged recipe that a run used."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict

from adco.config.loading import RECIPES, load_recipe, over
from adco.utils.yaml_io import read_yaml

# these keys (and all below them) do not change the result of a run
FREE_TO_CHANGE = (
    "device", "data.root", "data.workers", "data.in_memory", "probe", "checkpoint", "monitor", "bank.placement",
    "compute.fused_optimizer", "compute.channels_last", "compute.compile", "compute.cuda_graphs",
)  # fmt: skip


def changed_fields(old: dict, new: dict) -> list[str]:
    """`key: before -> now` of every key whose value differs between two recipes, except for FREE_TO_CHANGE."""
    before, after = _flat(old), _flat(new)
    keys = [*after, *(key for key in before if key not in after)]
    changed = [key for key in keys if before.get(key) != after.get(key) and not key.startswith(FREE_TO_CHANGE)]
    return [f"{key}: {before.get(key)} -> {after.get(key)}" for key in changed]


def recipe_name(recipe: dict) -> str:
    """The name of the packaged recipe that equals a checkpoint's but for the seed; if there is none, a hash."""
    for path in sorted(RECIPES.glob("*.yaml")):
        content = read_yaml(path, "recipe")
        written = {key: value for key, value in content.items() if key not in ("base", "seed", "views")}
        if changed_fields(recipe, over(recipe, written)):  # a fast test that excludes most recipes
            continue
        if not changed_fields({**asdict(load_recipe(path)), "seed": None}, {**recipe, "seed": None}):
            return path.stem
    return f"sha256:{hashlib.sha256(json.dumps(recipe, sort_keys=True, default=str).encode()).hexdigest()[:16]}"


def _flat(tree: dict | list, prefix: str = "") -> dict[str, object]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    flat = {}
    for key, value in items:
        nested = isinstance(value, dict) or (isinstance(value, list) and value and isinstance(value[0], dict))
        flat.update(_flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value})
    return flat
