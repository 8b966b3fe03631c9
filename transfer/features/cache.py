"""Feature arrays on disk, memory-mapped, each a .npy beside a manifest: what it was computed from, and its sha256.

An array that is being written is `NAME.npy.part` beside `NAME.part.json` (rows so far and their sha256): an extraction
that stopped goes on from there.
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


@dataclass(frozen=True)
class Entry:
    """One array of the cache.

    key: all that can move the numbers (weights, images, transform, feature kind, library versions); a change of any
    of them is another entry. root: where the images are, to look again at those that could not be read.
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
        """The (N, D) float32 rows, memory-mapped, NaN where an image could not be read, and the reasons by path.

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
            rows, bad = np.load(self.array_path, mmap_mode="c", allow_pickle=False), dict(manifest["unreadable"])
            if list(rows.shape) != manifest["shape"]:
                return "the array has another shape than its manifest", None, {}
        except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
            return f"the cache is damaged ({type(error).__name__}: {error})", None, {}
        if any(_readable(self.root / path) for path in bad):
            return "an image that could not be read before can be read now", None, {}
        return "", rows, bad

    def finish(self, writer: RowsWriter, bad: dict[str, str]) -> None:
        """Put the written array in its place and declare it finished: without a manifest it counts as damaged."""
        if writer.written != writer.rows:
            raise ValueError(f"{writer.written} rows written, {writer.rows} announced")
        writer.close()
        os.replace(writer.path, self.array_path)
        content = {"schema": SCHEMA, "key": self.key, "sha256": writer.digest.hexdigest(), "unreadable": bad}
        content["shape"] = [writer.rows, writer.width]
        write_text(self.manifest_path, json.dumps(content, indent=2, sort_keys=True) + "\n")
        writer.progress_path.unlink(missing_ok=True)


class RowsWriter:
    """Appends float32 rows to an array under construction, hashing what it writes.

    written: rows in the file; bad: reasons by path of the unreadable images among them. What an earlier writer of the
    same array left is taken over when it is what its progress file says, else it is started anew.
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
            self.digest = self._take_over() or self.restart()
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def restart(self):
        """Forget all rows. Returns the fresh digest."""
        self.written, self.bad = 0, {}
        self.file.seek(0)
        self.file.truncate()
        self.file.write(self.header)
        self.digest = hashlib.sha256(self.header)
        return self.digest

    def append(self, rows: np.ndarray, bad: Mapping[str, str] = {}) -> None:  # noqa: B006
        """Add (B, width) rows; bad: the unreadable images among them, reason by path."""
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

    def note(self) -> None:
        """Make the rows so far safe: a later writer may go on after them."""
        self._sync()
        content = {"rows": self.written, "sha256": self.digest.hexdigest(), "unreadable": self.bad}
        write_text(self.progress_path, json.dumps(content))

    def close(self) -> None:
        """Flush to the disk and close."""
        self._sync()
        self.file.close()

    def leave(self, keep: bool) -> None:
        """Close before the end: with a note of the rows so far, or without a trace."""
        if keep and self.written and not self.file.closed:
            self.note()
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

    def _take_over(self):
        """The digest after the rows that the progress file vouches for, or None."""
        try:
            noted = json.loads(self.progress_path.read_text())
            rows, expected, bad = int(noted["rows"]), noted["sha256"], dict(noted["unreadable"])
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
