"""Atomic writes, hashes, output folders and locks."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import platform
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from adco.utils.errors import UserError
from adco.utils.paths import cache_folder


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Yield a temporary binary file that is synced and renamed to `path` at the end of the block.

    After an error in the block, or if the file cannot be written, the temporary file is removed and `path` unchanged.

    Raises:
        UserError: The file cannot be written (no permission, no space).
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fchmod(file.fileno(), 0o666 & ~_umask())
            os.fsync(file.fileno())
        os.replace(temporary, path)
        temporary = None
        _sync_folder(path.parent)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error}); choose a folder with permission and space"
        ) from error
    finally:
        if temporary is not None:
            with suppress(OSError):  # the disk may be read-only by now; the error to report is that of the write
                os.unlink(temporary)


def write_text(path: Path, text: str) -> None:
    """`atomic_write` for a text file in UTF-8. Bytes of file names that are not UTF-8 are kept."""
    with atomic_write(path) as file:
        file.write(text.encode(errors="surrogateescape"))


def sha256_of(path: Path) -> str:
    """The file's sha256 in hexadecimal, read in blocks of 1 MiB."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def output_folder(path: Path | str) -> Path:
    """Create the folder and test that it is writable, before any long work. Raises UserError if it is not."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise UserError(
            f"{path}: the output folder cannot be written ({error.strerror or error}); choose another"
        ) from error
    return path


def lock_output_dir(folder: Path) -> BinaryIO | None:
    """Lock an output folder against other processes, until the returned file is closed or this process ends.

    Temporary files of a process that was killed are removed. The lock is fcntl's, which forked workers do not inherit.

    Returns:
        The open lock file; None on a file system without locks, where the folder is not locked.

    Raises:
        UserError: Another process holds the lock. The message names it.
    """
    try:
        file = (folder / ".lock").open("ab+", buffering=0)
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise UserError(f"{folder}: {_holder(folder)} writes here; stop it, or choose another folder") from error
        return None
    with suppress(OSError):  # the name of the holder is for messages only
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}".encode())
    for left in folder.glob(".*.tmp"):
        left.unlink(missing_ok=True)
    return file


def _holder(folder: Path) -> str:
    try:
        return (folder / ".lock").read_text(errors="replace")[:200] or "another process"
    except OSError:
        return "another process"


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def between(page: Path, begin: str, end: str, text: str) -> str:
    """The page's text with `text` between the lines `begin` and `end`. Raises UserError unless each occurs once."""
    lines = page.read_text().splitlines(keepends=True) if page.is_file() else []
    places = [number for number, line in enumerate(lines) if line.rstrip("\n") in (begin, end)]
    if [lines[number].rstrip("\n") for number in places] != [begin, end]:
        raise UserError(f"{page}: expected one line {begin!r} and one {end!r} after it")
    first, last = places
    return "".join(lines[: first + 1]) + text + "".join(lines[last:])


@contextmanager
def file_lock(name: str) -> Iterator[None]:
    """Only one process of this machine is in the block at a time; the others wait. Raises UserError."""
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / f"{name}.lock").open("w")
    except OSError as error:
        raise UserError(
            f"{folder}: the cache folder cannot be written ({error.strerror or error}); set ADCO_CACHE to another"
        ) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
