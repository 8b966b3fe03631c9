"""What may differ between a checkpoint's recipe or pictures and those that resume it."""

from __future__ import annotations

from pathlib import Path

from adco import checkpoint
from adco.errors import UserError

# where the work is done, not what it computes; everything else changes the result
FREE_TO_CHANGE = (
    "device", "data.root", "data.workers", "data.in_memory", "probe", "checkpoint", "monitor", "bank.placement",
    "compute.fused_optimizer", "compute.channels_last", "compute.compile", "compute.cuda_graphs",
)  # fmt: skip


def reopened(path: Path, recipe: dict, data: str, force: bool) -> tuple[checkpoint.State, list[str]]:
    """The state in a checkpoint, and in words what has changed since. Raises UserError if anything has, unless `force`.

    recipe: as plain containers; data: the fingerprint of the index of images; force: go on although they changed
    """
    state = checkpoint.load(path)
    changes = changed_fields(state.recipe, recipe)
    if state.data != data:
        changes.append("the images themselves: files were added, removed or renamed since")
    if changes and not force:
        raise UserError(
            f"{path}: was trained with another recipe ({'; '.join(changes)}); use the same recipe or another "
            "--output-dir, or --force-recipe-change to go on with the new one"
        )
    return state, changes


def changed_fields(old: dict, new: dict) -> list[str]:
    """`key: before -> now` of every field that differs between two recipes and matters."""
    before, after = _flat(old), _flat(new)
    keys = [*after, *(key for key in before if key not in after)]
    changed = [key for key in keys if before.get(key) != after.get(key) and not key.startswith(FREE_TO_CHANGE)]
    return [f"{key}: {before.get(key)} -> {after.get(key)}" for key in changed]


def _flat(tree: dict | list, prefix: str = "") -> dict[str, object]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    flat = {}
    for key, value in items:
        nested = isinstance(value, dict) or (isinstance(value, list) and value and isinstance(value[0], dict))
        flat.update(_flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value})
    return flat
