"""Checkpoints that survive anything: written whole or not at all, verified before use, the last few kept."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch

from adco.errors import UserError
from adco.files import atomic_write, sha256_of, write_text

SCHEMA = 1
_NAME = re.compile(r"checkpoint_(\d{8})\.pth")


@dataclass(frozen=True)
class State:
    """All that training needs to go on at `step` as if it had never stopped. There is no random state: randomness is a
    function of (seed, epoch, sample, view), and the loader's cursor is the step.

    recipe: the recipe as plain containers; method, optimizer: state dicts; bad_images: path -> reason
    """

    step: int
    recipe: dict
    method: dict
    optimizer: dict
    bad_images: dict[str, str]
    seconds: float


def save(folder: Path, state: State, keep: int) -> Path:
    """Write `checkpoint_STEP.pth`, then its sha256 beside it, then remove all but the last `keep`. Returns the path.

    A crash at any moment leaves the older checkpoints intact. Raises UserError when it cannot be written.
    """
    path = folder / f"checkpoint_{state.step:08d}.pth"
    with atomic_write(path) as file:
        torch.save({"schema": SCHEMA, **vars(state)}, file)
    write_text(_digest(path), f"{sha256_of(path)}  {path.name}\n")
    for old in _newest_first(folder)[keep:]:
        _digest(old).unlink(missing_ok=True)
        old.unlink(missing_ok=True)
    return path


def newest_intact(folder: Path) -> Path | None:
    """The newest checkpoint whose sha256 matches, or None. Damaged ones are passed over, not removed."""
    return next((path for path in _newest_first(folder) if intact(path)), None)


def intact(path: Path) -> bool:
    """Whether the file's sha256 is the one written beside it."""
    try:
        return _digest(path).read_text().split()[0] == sha256_of(path)
    except (OSError, IndexError):
        return False


def load(path: Path) -> State:
    """Read a checkpoint onto the CPU, tensors and plain containers only. Raises UserError for another schema."""
    content = torch.load(path, map_location="cpu", weights_only=True)
    found = content.pop("schema", None)
    if found != SCHEMA:
        raise UserError(f"{path}: checkpoint schema {found}, expected {SCHEMA}; use the version that wrote it")
    return State(**content)


def _newest_first(folder: Path) -> list[Path]:
    return sorted((path for path in folder.glob("checkpoint_*.pth") if _NAME.fullmatch(path.name)), reverse=True)


def _digest(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")
