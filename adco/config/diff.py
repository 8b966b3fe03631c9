"""How two recipes differ, and which of this project's recipes one is."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict

from adco.config.loading import RECIPES, load_recipe, over
from adco.utils.yaml_io import read_yaml

# where the work is done, not what it computes; everything else changes the result
FREE_TO_CHANGE = (
    "device", "data.root", "data.workers", "data.in_memory", "probe", "checkpoint", "monitor", "bank.placement",
    "compute.fused_optimizer", "compute.channels_last", "compute.compile", "compute.cuda_graphs",
)  # fmt: skip


def changed_fields(old: dict, new: dict) -> list[str]:
    """`key: before -> now` of every field that differs between two recipes and matters."""
    before, after = _flat(old), _flat(new)
    keys = [*after, *(key for key in before if key not in after)]
    changed = [key for key in keys if before.get(key) != after.get(key) and not key.startswith(FREE_TO_CHANGE)]
    return [f"{key}: {before.get(key)} -> {after.get(key)}" for key in changed]


def recipe_name(recipe: dict) -> str:
    """The recipe of this project that a checkpoint was trained with, whatever the seed; a hash of its keys if none."""
    for path in sorted(RECIPES.glob("*.yaml")):
        content = read_yaml(path, "recipe")
        written = {key: value for key, value in content.items() if key not in ("base", "seed", "views")}
        if changed_fields(recipe, over(recipe, written)):  # most are told apart by this, which is fast
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
