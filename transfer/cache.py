"""Feature arrays on disk, each a .npy beside a manifest that says exactly what it was computed from and its sha256."""

from __future__ import annotations

import hashlib
import io
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from adco.files import atomic_write, sha256_of, write_text
from adco.images import UnreadableImage, read_image

SCHEMA = 1


@dataclass(frozen=True)
class Entry:
    """One array of the cache.

    key: all that can move the numbers (weights, pictures, transform, feature kind, library versions); a change of any
    of them is another entry. root: where the pictures are, to look again at those that could not be read.
    """

    folder: Path
    title: str
    key: dict[str, str]
    root: Path

    @property
    def array_path(self) -> Path:
        digest = hashlib.sha256(json.dumps(self.key, sort_keys=True).encode()).hexdigest()
        return self.folder / f"{self.title}-{digest[:16]}.npy"

    @property
    def manifest_path(self) -> Path:
        return self.array_path.with_suffix(".json")

    def load(self) -> tuple[np.ndarray, dict[str, str]] | None:
        """The (N, D) float32 rows, NaN where a picture could not be read, and the reasons by path.

        None when there is nothing usable: absent, or damaged or out of date, which is said on stderr.
        """
        if not self.array_path.exists() and not self.manifest_path.exists():
            return None
        fault, rows, bad = self._check()
        if fault:
            print(f"note: {self.array_path}: {fault}; extracting these features again", file=sys.stderr)
            return None
        return rows, bad

    def _check(self) -> tuple[str, np.ndarray | None, dict[str, str]]:
        try:
            manifest = json.loads(self.manifest_path.read_text())
            if manifest["schema"] != SCHEMA or manifest["key"] != self.key:
                return "the manifest belongs to other features", None, {}
            if sha256_of(self.array_path) != manifest["sha256"]:
                return "the array is damaged (its sha256 is not the manifest's)", None, {}
            rows, bad = np.load(self.array_path, allow_pickle=False), dict(manifest["unreadable"])
            if list(rows.shape) != manifest["shape"]:
                return "the array has another shape than its manifest", None, {}
        except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
            return f"the cache is damaged ({type(error).__name__}: {error})", None, {}
        if any(_readable(self.root / path) for path in bad):
            return "a picture that could not be read before can be read now", None, {}
        return "", rows, bad

    @contextmanager
    def rows_writer(self, rows: int, width: int) -> Iterator[RowsWriter]:
        """A writer for `rows` rows of `width` numbers, in order; the array appears only when the block ends well."""
        with atomic_write(self.array_path) as file:
            writer = RowsWriter(file, rows, width)
            yield writer
            if writer.written != rows:
                raise ValueError(f"{writer.written} rows written, {rows} announced")

    def write_manifest(self, writer: RowsWriter, bad: dict[str, str]) -> None:
        """Declare the array finished: without a manifest it counts as damaged."""
        content = {"schema": SCHEMA, "key": self.key, "sha256": writer.digest.hexdigest(), "unreadable": bad}
        content["shape"] = [writer.rows, writer.width]
        write_text(self.manifest_path, json.dumps(content, indent=2, sort_keys=True) + "\n")


class RowsWriter:
    """Streams float32 rows into a .npy file, hashing what it writes."""

    def __init__(self, file: BinaryIO, rows: int, width: int):
        self.file, self.rows, self.width, self.written = file, rows, width, 0
        self.digest = hashlib.sha256()
        header = io.BytesIO()
        shape = {"descr": "<f4", "fortran_order": False, "shape": (rows, width)}
        np.lib.format.write_array_header_1_0(header, shape)
        self._write(header.getvalue())

    def append(self, rows: np.ndarray) -> None:
        """Add (B, width) rows."""
        if rows.ndim != 2 or rows.shape[1] != self.width:
            raise ValueError(f"expected rows of {self.width} numbers, found {rows.shape}")
        self._write(np.ascontiguousarray(rows, dtype="<f4").tobytes())
        self.written += len(rows)

    def _write(self, data: bytes) -> None:
        self.file.write(data)
        self.digest.update(data)


def _readable(path: Path) -> bool:
    try:
        read_image(path)
    except UnreadableImage:
        return False
    return True
