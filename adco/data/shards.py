"""Images in tar shards (webdataset's layout), on disk or behind a URL, read in any order.

Each shard is scanned once for the offsets of its images; after that an image is one read at an offset, or one HTTP
range request. So the order of samples, resuming and the number of ranks work exactly as for a folder. The content of a
URL may change; a shard whose size has changed is scanned again, and the index's fingerprint then differs. The first
scan of a URL transfers the whole shard; copy shards to disk where you can.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import tarfile
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from adco.data import index_cache
from adco.data.images import MOST_BYTES, SUFFIXES, ImageIndex, UnreadableImage
from adco.utils.download import DownloadError, web_opener
from adco.utils.errors import UserError

TIMEOUT_SECONDS = 60
TRIES = 3  # of one range request
MOST_SHARDS = 1_000_000
BROKEN_WEB = (OSError, http.client.HTTPException, DownloadError, ValueError)  # ValueError: an invalid address


@dataclass(frozen=True)
class ShardIndex(ImageIndex):
    """Images in tar shards; `paths[i]` is SHARD/MEMBER.

    Attributes:
        shards: paths or URLs.
        places: (N, 3) int64, each image's shard number, offset in bytes and size in bytes.
    """

    shards: tuple[str, ...] = ()
    places: np.ndarray = field(default_factory=lambda: np.empty((0, 3), dtype=np.int64), compare=False)

    def read(self, i: int) -> bytes:
        """The content of image i's file. Raises UnreadableImage."""
        shard, offset, size = self.places[i].tolist()
        if size > MOST_BYTES:
            raise UnreadableImage(Path(self.paths[i]), f"{size} bytes, more than {MOST_BYTES}")
        try:
            content = _read_at(self.shards[shard], offset, size)
        except BROKEN_WEB as error:
            raise UnreadableImage(Path(self.paths[i]), str(error) or type(error).__name__) from error
        if len(content) != size:
            raise UnreadableImage(Path(self.paths[i]), f"{len(content)} of {size} bytes in {self.shards[shard]}")
        return content

    def size(self, i: int) -> int:
        """Bytes of image i's file."""
        return int(self.places[i, 2])

    def stamp(self) -> str:
        """A sha256 that also changes when a shard is replaced: of the shards' names, sizes and times of change."""
        stamps = [(os.path.realpath(shard), *_stamp(shard)) for shard in self.shards]
        return hashlib.sha256(f"{self.fingerprint}\0{stamps}".encode()).hexdigest()


def index_shards(pattern: str) -> ShardIndex:
    """Index `PATH/{000..146}.tar` or `https://HOST/{000..146}.tar`, in the order of the pattern and of the tars.

    An image's class is its folder in the tar; of several images with one key (webdataset's `key.ext`) the first is
    used. Raises UserError for a shard that is absent, is no tar, or has members whose paths lead out of it.
    """
    shards = expand(pattern)
    paths, places, folders = [], [], []
    for number, shard in enumerate(shards):
        names, where = _members(shard)
        short = shard.rsplit("/", 1)[-1]
        paths += [f"{short}/{name}" for name in names]
        folders += [str(PurePosixPath(name).parent) for name in names]
        places.append(np.column_stack([np.full(len(names), number, dtype=np.int64), where]))
    if not paths:
        raise UserError(f"{pattern}: no images in its shards; expected members with a suffix of {sorted(SUFFIXES)}")
    classes = tuple(sorted(set(folders)))
    numbers = {name: number for number, name in enumerate(classes)}
    labels = tuple(numbers[name] for name in folders)
    return ShardIndex(Path(), tuple(paths), labels, classes, shards, np.concatenate(places))


def expand(pattern: str) -> tuple[str, ...]:
    """The names of a pattern: `a-{000..146}.tar` has 147, with the zeros; several ranges multiply; without braces, one.

    Raises UserError for a range that counts down, and for too many names.
    """
    braces = re.search(r"\{(\d{1,18})\.\.(\d{1,18})\}", pattern)
    if not braces:
        return (pattern,)
    first, last = braces.groups()
    if int(last) < int(first):
        raise UserError(
            f"{pattern}: {{{first}..{last}}} counts down; expected {{FIRST..LAST}}, for example {{000..146}}"
        )
    head, tails = pattern[: braces.start()], expand(pattern[braces.end() :])
    if (int(last) - int(first) + 1) * len(tails) > MOST_SHARDS:
        raise UserError(f"{pattern}: more than {MOST_SHARDS} shards; check the numbers in its braces")
    numbers = (f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1))
    return tuple(f"{head}{number}{tail}" for number in numbers for tail in tails)


def _members(shard: str) -> tuple[tuple[str, ...], np.ndarray]:
    """Names of a shard's images and their (offset, size), (N, 2) int64; from the cache if the shard is unchanged."""
    stamp = _stamp(shard)
    cached = index_cache.load_cached(f"tar {shard}")
    if cached is not None and cached["stamp"].tolist() == stamp:
        return index_cache.unpack(cached["names"]), cached["places"]
    names, places, last_key = [], [], None
    try:
        with _open(shard) as file, tarfile.open(fileobj=file, mode="r|") as tar:
            for member in tar:
                key = _key(shard, member.name)
                if member.size < 0:
                    raise tarfile.ReadError(f"its member {member.name!r} has {member.size} bytes")
                if member.isreg() and key != last_key and Path(member.name).suffix.lower() in SUFFIXES:
                    names.append(member.name)
                    places.append((member.offset_data, member.size))
                    last_key = key
    except (OSError, http.client.HTTPException, DownloadError) as error:
        raise UserError(f"{shard}: cannot be read ({error})") from error
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:  # also from a header's numbers and names
        raise UserError(f"{shard}: not a whole, uncompressed tar ({error}); copy or pack it again") from error
    where = np.array(places, dtype=np.int64).reshape(-1, 2)
    index_cache.save_cached(f"tar {shard}", names=index_cache.pack(names), places=where, stamp=np.array(stamp))
    return tuple(names), where


def _key(shard: str, name: str) -> str:
    """A member's path up to the first dot of its file name. Raises UserError for a path that leads out of the tar."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        raise UserError(f"{shard}: refused, because its member {name!r} leads out of the archive; pack it again")
    return str(path.parent / path.name.split(".")[0])


def _is_url(shard: str) -> bool:
    return shard.startswith(("http://", "https://"))


def _stamp(shard: str) -> list[int]:
    """What differs when a shard has changed: its size, and on disk its time of change."""
    try:
        if _is_url(shard):
            request = urllib.request.Request(shard, method="HEAD")
            with web_opener().open(request, timeout=TIMEOUT_SECONDS) as answer:
                length = answer.headers.get("Content-Length", "")
                return [int(length) if length.isdecimal() else -1, 0]
        state = os.stat(shard)
        return [state.st_size, state.st_mtime_ns]
    except BROKEN_WEB as error:
        raise UserError(f"{shard}: no such shard ({getattr(error, 'strerror', None) or error})") from error


def _open(shard: str):
    return web_opener().open(shard, timeout=TIMEOUT_SECONDS) if _is_url(shard) else open(shard, "rb")


def _read_at(shard: str, offset: int, size: int) -> bytes:
    if not _is_url(shard):
        with open(shard, "rb") as file:
            return os.pread(file.fileno(), size, offset)
    request = urllib.request.Request(shard, headers={"Range": f"bytes={offset}-{offset + size - 1}"})
    for left in reversed(range(TRIES)):
        try:
            with web_opener().open(request, timeout=TIMEOUT_SECONDS) as answer:
                if answer.status != http.client.PARTIAL_CONTENT:
                    raise UserError(
                        f"{shard}: the server gives no parts of files (HTTP ranges); copy the shards to disk"
                    )
                return answer.read()
        except (OSError, http.client.HTTPException, DownloadError):
            if not left:
                raise
    raise AssertionError("unreachable")
