"""What was found out about a dataset once, kept for the next start: lists of names and places, never pixels.

It lies in the user's cache folder, never in the dataset: `$ADCO_CACHE`, else `$XDG_CACHE_HOME/adco`, else
`~/.cache/adco`. Deleting it costs one scan. Where it cannot be written, nothing is kept and nothing is said.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from adco.utils.errors import UserError
from adco.utils.files import atomic_write
from adco.utils.paths import cache_folder

SCHEMA = 1  # raise it when what is kept changes its meaning


def load_cached(source: str) -> dict[str, np.ndarray] | None:
    """What `save_cached` kept about a source; None when nothing (whole) is there."""
    try:
        with np.load(_place(source), allow_pickle=False) as found:
            return dict(found)
    except Exception:  # whatever is wrong with it, it can be made again
        return None


def save_cached(source: str, **arrays: np.ndarray) -> None:
    """Keep arrays about a source."""
    try:
        with atomic_write(_place(source)) as file:
            np.savez(file, **arrays)
    except UserError:  # a read-only home is no reason to stop
        return


def pack(names: Sequence[str]) -> np.ndarray:
    """Names as one array of bytes; file names may be any bytes but zero."""
    return np.frombuffer(os.fsencode("\0".join(names)), dtype=np.uint8)


def unpack(names: np.ndarray) -> tuple[str, ...]:
    """The names of `pack`; none for an empty array."""
    return tuple(os.fsdecode(names.tobytes()).split("\0")) if len(names) else ()


def _place(source: str) -> Path:
    key = hashlib.sha256(f"{SCHEMA}\0{source}".encode(errors="surrogateescape")).hexdigest()
    return cache_folder() / "index" / f"{key[:32]}.npz"
