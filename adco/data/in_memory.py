"""Small images decoded once into memory that all processes of a machine share (`data.in_memory`)."""

from __future__ import annotations

import atexit
import fcntl
import mmap
import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from adco.data.images import ArrayIndex, ImageIndex, UnreadableImage, opened
from adco.utils.errors import UserError
from adco.utils.progress import progress

SHARE_OF_MEMORY = 0.8  # of what is free now
_MAGIC = 0x4144434F_00000001  # the last number is the layout's version
_HEAD = 2  # words before the table: magic, number of images


@dataclass(frozen=True)
class MemoryIndex(ImageIndex):
    """Decoded images in shared memory.

    Attributes:
        table: (N, 3) int64, each image's offset in `pixels`, height and width; height 0 for an unreadable image.
        pixels: the images' uint8 RGB levels one after another, 3 bytes a pixel.
    """

    table: np.ndarray = field(default_factory=lambda: np.empty((0, 3), dtype=np.int64), compare=False)
    pixels: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.uint8), compare=False)

    def read(self, i: int) -> np.ndarray:
        """Image i, (H, W, 3) uint8, read-only. Raises UnreadableImage for what could not be decoded."""
        first, height, width = self.table[i].tolist()
        if not height:
            raise UnreadableImage(self.root / self.paths[i], "could not be decoded when it was read into memory")
        return self.pixels[first : first + 3 * height * width].reshape(height, width, 3)


def in_memory(index: ImageIndex, workers: int) -> ImageIndex:
    """Decode every image of an index into shared memory, or use what another process of this machine decoded there.

    Images that are decoded already (CIFAR) are returned as they are. The memory is released when the last process that
    uses it ends.

    Args:
        index: the images.
        workers: threads that decode.

    Raises:
        UserError: the images do not fit (before anything is decoded), or the memory cannot be opened.
    """
    if isinstance(index, ArrayIndex):
        return index
    folder = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else Path(tempfile.gettempdir())
    path = folder / f"adco-{os.getuid()}-{index.stamp()[:24]}.pixels"
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o600)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be opened ({error.strerror}); remove it, or set data.in_memory=false"
        ) from error
    file = os.fdopen(handle, "r+b", buffering=0)
    if os.fstat(handle).st_uid != os.getuid():  # in a folder that everybody may write to
        raise UserError(f"{path}: another user's file; have it removed, or set data.in_memory=false")
    table = None
    while table is None:
        if _locked(file):  # no other process fills or uses it
            try:
                _fill(file, index, workers, folder)
            except BaseException:
                path.unlink(missing_ok=True)
                raise
        fcntl.flock(file, fcntl.LOCK_SH)  # waits for the process that fills it, and is held while in use
        table = _table(file, len(index))
    atexit.register(_remove_if_last, file, path)
    pixels = np.frombuffer(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ), dtype=np.uint8)
    return MemoryIndex(index.root, index.paths, index.labels, index.classes, table, pixels)


def _fill(file: BinaryIO, index: ImageIndex, workers: int, folder: Path) -> None:
    """Write images, then the table, then the magic word, without which the file is unfinished; not if finished."""
    if _table(file, len(index)) is not None:  # filled by a process that was killed
        return
    with ThreadPoolExecutor(max(1, workers)) as pool:
        sizes = np.array(list(pool.map(lambda i: _size(index, i), range(len(index)))), dtype=np.int64).reshape(-1, 2)
        ends = 8 * (_HEAD + 3 * len(index)) + np.cumsum(3 * sizes.prod(axis=1))
        _check_room(int(ends[-1]), folder, index)
        table = np.column_stack([ends - 3 * sizes.prod(axis=1), sizes])
        os.ftruncate(file.fileno(), int(ends[-1]))
        with mmap.mmap(file.fileno(), int(ends[-1])) as memory:

            def put(i: int) -> None:
                first, height, width = table[i].tolist()
                try:
                    pixels = np.asarray(index.image(i))
                except UnreadableImage:
                    pixels = np.empty((0, 0, 3), dtype=np.uint8)
                if pixels.shape != (height, width, 3):
                    table[i, 1:] = 0
                else:
                    memory[first : first + pixels.nbytes] = pixels.tobytes()

            with progress(len(index), "decoding into memory", "images") as bar:
                for _ in pool.map(put, range(len(index))):
                    bar.update()
            head = np.array([len(index), *table.ravel()], dtype=np.int64).tobytes()
            memory[8 : 8 + len(head)] = head
            memory.flush()
            memory[:8] = np.int64(_MAGIC).tobytes()


def _table(file: BinaryIO, count: int) -> np.ndarray | None:
    """The table of a filled file; None of an unfinished one."""
    content = os.pread(file.fileno(), 8 * (_HEAD + 3 * count), 0)
    words = np.frombuffer(content[: len(content) // 8 * 8], dtype=np.int64)
    if len(words) != _HEAD + 3 * count or words[0] != _MAGIC or words[1] != count:
        return None
    return words[_HEAD:].reshape(count, 3)


def _size(index: ImageIndex, i: int) -> tuple[int, int]:
    """(height, width), (0, 0) of an unreadable image; only a file's header is decoded."""
    try:
        content = index.read(i)
        if isinstance(content, np.ndarray):
            return content.shape[0], content.shape[1]
        with opened(content) as image:
            return image.height, image.width
    except Exception:  # `MemoryIndex.read` reports it
        return 0, 0


def _check_room(needed: int, folder: Path, index: ImageIndex) -> None:
    free = min(_free_memory(), shutil.disk_usage(folder).free)
    if needed > SHARE_OF_MEMORY * free:
        raise UserError(
            f"data.in_memory: the {len(index)} images of {index.root} take {needed / 2**30:.1f} GiB decoded, of which "
            f"{SHARE_OF_MEMORY * free / 2**30:.1f} GiB fit into {folder}; set data.in_memory=false, or shrink them"
        )


def _free_memory() -> int:
    """Bytes that programs can still allocate, as the kernel estimates them."""
    for line in Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").exists() else ():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _locked(file: BinaryIO) -> bool:
    """Whether this process now holds the only lock of the file."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _remove_if_last(file: BinaryIO, path: Path) -> None:
    if _locked(file):
        path.unlink(missing_ok=True)
