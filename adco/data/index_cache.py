"""A cache of the lists of a dataset's images, so that the next start need not scan it: names and offsets, no pixels.

The files are in the user's cache folder, never in the dataset: `$ADCO_CACHE`, else `$XDG_CACHE_HOME/adco`, else
`~/.cache/adco`. Deleting it costs one scan. Where it cannot be written, nothing is cached, without a message.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adco.utils.errors import UserError
from adco.utils.files import atomic_write
from adco.utils.paths import cache_folder

SCHEMA = 1  # increase it when the arrays' meaning changes


def load_cached(source: str) -> dict[str, np.ndarray] | None:
    """The arrays that `save_cached` saved for a source; None where there are none, or they are damaged."""
    try:
        with np.load(_place(source), allow_pickle=False) as arrays:
            return dict(arrays)
    except Exception:  # whatever is wrong with the file, it can be made again
        return None


def save_cached(source: str, **arrays: np.ndarray) -> None:
    """Save named arrays for a source, e.g. `folder PATH`."""
    content: dict[str, Any] = dict(arrays)  # one of savez's own keywords, allow_pickle, is no array
    try:
        with atomic_write(_place(source)) as file:
            np.savez(file, **content)
    except UserError:  # a read-only home folder is no reason to stop
        return


def pack(names: Sequence[str]) -> np.ndarray:
    """Names as one array of bytes, (N,) uint8, separated by zero, which no file name contains."""
    return np.frombuffer(os.fsencode("\0".join(names)), dtype=np.uint8)


def unpack(names: np.ndarray) -> tuple[str, ...]:
    """The names that `pack` was given; none for an empty array."""
    return tuple(os.fsdecode(names.tobytes()).split("\0")) if len(names) else ()


def _place(source: str) -> Path:
    key = hashlib.sha256(f"{SCHEMA}\0{source}".encode(errors="surrogateescape")).hexdigest()
    return cache_folder() / "index" / f"{key[:32]}.npz"
