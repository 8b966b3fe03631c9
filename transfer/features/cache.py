"""Feature arrays on disk, memory-mapped: each a .npy beside a manifest of what it was computed from and its sha256.

An array that is being written is `NAME.npy.part` beside `NAME.part.json` (rows so far and their sha256), from which an
extraction that was stopped resumes.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adco.data.images import UnreadableImage, read_image
from adco.utils.errors import UserError
from adco.utils.files import sha256_of, write_text

SCHEMA = 1


class _Unusable(Exception):
    """A cached array that must be computed again; the message says why."""


@dataclass(frozen=True)
class Entry:
    """One array of the cache.

    Attributes:
        folder: the cache's folder.
        title: the start of the file's name.
        key: everything that the numbers depend on (weights, images, transform, kind of feature, versions of libraries);
            another key is another entry.
        root: the images' folder, where images that could not be read are tried again.
    """

    folder: Path
    title: str
    key: dict[str, str]
    root: Path

    @property
    def array_path(self) -> Path:
        """The .npy file."""
        digest = hashlib.sha256(json.dumps(self.key, sort_keys=True).encode()).hexdigest()
        return self.folder / f"{self.title}-{digest[:16]}.npy"

    @property
    def manifest_path(self) -> Path:
        """The .json file beside it."""
        return self.array_path.with_suffix(".json")

    def load(self) -> tuple[np.ndarray, dict[str, str]] | None:
        """The (N, D) float32 features, memory-mapped, NaN where an image could not be read, and the reasons by path.

        None where the array is absent, and, with a note on stderr, where it is damaged or out of date.
        """
        if not self.array_path.exists() and not self.manifest_path.exists():
            return None
        try:
            return self._read()
        except _Unusable as error:
            fault = str(error)
        except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
            fault = f"the cache is damaged ({type(error).__name__}: {error})"
        print(f"note: {self.array_path}: {fault}; extracting these features again", file=sys.stderr)
        return None

    def _read(self) -> tuple[np.ndarray, dict[str, str]]:
        manifest = json.loads(self.manifest_path.read_text())
        if manifest["schema"] != SCHEMA or manifest["key"] != self.key:
            raise _Unusable("the manifest belongs to other features")
        if sha256_of(self.array_path) != manifest["sha256"]:
            raise _Unusable("the array is damaged (its sha256 is not the manifest's)")
        rows, bad = np.load(self.array_path, mmap_mode="c", allow_pickle=False), dict(manifest["unreadable"])
        if list(rows.shape) != manifest["shape"]:
            raise _Unusable("the array has another shape than its manifest")
        if any(_readable(self.root / path) for path in bad):
            raise _Unusable("an image that could not be read before can be read now")
        return rows, bad

    def finish(self, writer: RowsWriter, bad: dict[str, str]) -> None:
        """Move the written array to its place and write its manifest, without which it counts as damaged.

        Args:
            writer: has written all rows.
            bad: path -> reason of the unreadable images.

        Raises:
            ValueError: rows are missing.
        """
        if writer.written != writer.rows:
            raise ValueError(f"{writer.written} rows written, {writer.rows} expected")
        writer.close()
        os.replace(writer.path, self.array_path)
        content = {"schema": SCHEMA, "key": self.key, "sha256": writer.digest.hexdigest(), "unreadable": bad}
        content["shape"] = [writer.rows, writer.width]
        write_text(self.manifest_path, json.dumps(content, indent=2, sort_keys=True) + "\n")
        writer.progress_path.unlink(missing_ok=True)


class RowsWriter:
    """Appends float32 rows to an array and hashes what it writes.

    An earlier writer's file of the same array is continued if it is what its progress file says, else started anew.

    Args:
        entry: the array.
        rows: how many rows it will have.
        width: numbers a row.

    Attributes:
        written: rows in the file.
        bad: path -> reason of the unreadable images among them.

    Raises:
        UserError: the file cannot be written.
    """

    def __init__(self, entry: Entry, rows: int, width: int):
        self.path = entry.array_path.with_suffix(".npy.part")
        self.progress_path = entry.array_path.with_suffix(".part.json")
        self.rows, self.width, self.written, self.bad = rows, width, 0, {}
        header = io.BytesIO()
        shape = {"descr": "<f4", "fortran_order": False, "shape": (rows, width)}
        np.lib.format.write_array_header_1_0(header, shape)
        self.header = header.getvalue()
        try:
            entry.folder.mkdir(parents=True, exist_ok=True)
            self.file = self.path.open("r+b" if self.path.exists() else "w+b")
            self.digest = self._resume() or self.restart()
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def restart(self) -> hashlib._Hash:
        """Remove all rows. Returns the new digest."""
        self.written, self.bad = 0, {}
        self.file.seek(0)
        self.file.truncate()
        self.file.write(self.header)
        self.digest = hashlib.sha256(self.header)
        return self.digest

    def append(self, rows: np.ndarray, bad: Mapping[str, str] = {}) -> None:  # noqa: B006
        """Write rows.

        Args:
            rows: (B, width), written as float32.
            bad: path -> reason of the unreadable images among them.

        Raises:
            ValueError: the rows have another width.
            UserError: they cannot be written.
        """
        if rows.ndim != 2 or rows.shape[1] != self.width:
            raise ValueError(f"expected rows of {self.width} numbers, found {rows.shape}")
        data = np.ascontiguousarray(rows, dtype="<f4").tobytes()
        try:
            self.file.write(data)
        except OSError as error:
            raise _unwritable(self.path, error) from error
        self.digest.update(data)
        self.written += len(rows)
        self.bad.update(bad)

    def save_progress(self) -> None:
        """Flush the rows so far to the disk and record them, so that a later writer resumes after them."""
        self._sync()
        content = {"rows": self.written, "sha256": self.digest.hexdigest(), "unreadable": self.bad}
        write_text(self.progress_path, json.dumps(content))

    def close(self) -> None:
        """Flush to the disk and close."""
        self._sync()
        self.file.close()

    def abort(self, keep: bool) -> None:
        """Close before the end: with the progress saved, or with all files removed."""
        if keep and self.written and not self.file.closed:
            self.save_progress()
        self.file.close()
        if not keep or not self.written:
            self.path.unlink(missing_ok=True)
            self.progress_path.unlink(missing_ok=True)

    def _sync(self) -> None:
        try:
            self.file.flush()
            os.fsync(self.file.fileno())
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def _resume(self) -> hashlib._Hash | None:
        """The digest after the rows that the progress file records; None where the file does not have them."""
        try:
            saved = json.loads(self.progress_path.read_text())
            rows, expected, bad = int(saved["rows"]), saved["sha256"], dict(saved["unreadable"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        digest, left = hashlib.sha256(), len(self.header) + rows * self.width * 4
        self.file.seek(0)
        while left and (block := self.file.read(min(left, 1 << 20))):
            digest.update(block)
            left -= len(block)
        if left or digest.hexdigest() != expected:
            return None
        self.file.truncate(self.file.tell())
        self.written, self.bad = rows, bad
        return digest


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(
        f"{path}: cannot be written ({error.strerror or error}); choose a folder with permission and space"
    )


def _readable(path: Path) -> bool:
    try:
        read_image(path)
    except UnreadableImage:
        return False
    return True
