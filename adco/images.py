"""Pictures in a fixed order: a folder of images, indexed once, and decoded one at a time. Other sources: sources.py."""

from __future__ import annotations

import hashlib
import io
import os
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from adco import index_cache
from adco.errors import UserError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm"})

CACHED_FROM = 10_000  # images; a smaller folder is read faster than it is worth remembering
HOT_NS = 2_000_000_000  # a folder changed this recently may change again within its clock's step: not remembered

ImageFile.LOAD_TRUNCATED_IMAGES = False  # a truncated file is an unreadable one, never half a picture


class UnreadableImage(Exception):
    """An image file that cannot be decoded; whoever reads many of them counts these and goes on."""

    def __init__(self, path: Path, reason: str):
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = path, reason

    def __reduce__(self):  # survives the trip back from a worker process
        return type(self), (self.path, self.reason)


@dataclass(frozen=True)
class ImageIndex:
    """Pictures in a fixed order: `paths[i]`, relative to `root`, shows `classes[labels[i]]`. Here, files of a folder.

    Other sources (adco/sources.py) are subclasses that read elsewhere; `paths` then names the picture in messages.
    """

    root: Path
    paths: tuple[str, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, i: int) -> bytes | np.ndarray:
        """The content of picture i's file, or its (H, W, 3) uint8 pixels. Raises UnreadableImage."""
        path = self.root / self.paths[i]
        try:
            with open(path, "rb") as file:
                return file.read()
        except OSError as error:
            raise UnreadableImage(path, error.strerror or str(error)) from error

    def image(self, i: int) -> Image.Image:
        """Picture i, RGB. Raises UnreadableImage."""
        return decode(self.read(i), self.root / self.paths[i])

    @cached_property
    def fingerprint(self) -> str:
        """A sha256 of names, order and classes (not of pixels): whether the dataset is the one it was."""
        digest = hashlib.sha256()
        for names in (self.paths, self.classes):
            digest.update(os.fsencode("\0".join(names)) + b"\0\0")
        digest.update(np.asarray(self.labels, dtype=np.int64).tobytes())
        return digest.hexdigest()

    def stamp(self) -> str:
        """A sha256 that changes when a file is replaced, too: place, sizes and times of change. Reads every file's."""
        digest = hashlib.sha256(f"{self.fingerprint}\0{os.path.realpath(self.root)}".encode(errors="surrogateescape"))
        for path in self.paths:
            try:
                state = os.stat(self.root / path)
            except OSError:
                continue
            digest.update(f"{path}\0{state.st_size}\0{state.st_mtime_ns}\0".encode(errors="surrogateescape"))
        return digest.hexdigest()


@dataclass(frozen=True)
class ArrayIndex(ImageIndex):
    """Pictures that already are pixels: (N, H, W, 3) uint8."""

    pixels: np.ndarray = field(default_factory=lambda: np.empty((0, 1, 1, 3), dtype=np.uint8), compare=False)

    def read(self, i: int) -> np.ndarray:
        """Picture i, (H, W, 3) uint8."""
        return self.pixels[i]


def index_folder(root: Path | str) -> ImageIndex:
    """Index `root/CLASS/**/*.jpg`, or a flat folder of images as one class. Order: by class, then by path.

    A large folder is looked through once; the next time its list is taken from the cache if no folder below it has
    changed since. Raises UserError when the folder is absent or holds no images.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root}: no such image folder")
    found = _recall(root)
    if found is None:
        found = _scan(root)
    if not found.paths:
        kinds = ", ".join(sorted(SUFFIXES))
        raise UserError(f"{root}: no images in it; expected ROOT/CLASS/IMAGE or ROOT/IMAGE with a suffix of {kinds}")
    return found


def _scan(root: Path) -> ImageIndex:
    begun = time.time_ns()
    folders: dict[str, int] = {".": os.stat(root).st_mtime_ns}
    classes = tuple(sorted(entry.name for entry in os.scandir(root) if entry.is_dir())) or (".",)
    paths, labels = [], []
    for label, name in enumerate(classes):
        found = sorted(_images_below(root, name, folders), key=lambda path: path.split("/"))
        paths += found
        labels += [label] * len(found)
    index = ImageIndex(root, tuple(paths), tuple(labels), classes)
    if len(index) >= CACHED_FROM and max(folders.values()) < begun - HOT_NS:
        index_cache.remember(
            f"folder {os.path.realpath(root)}",
            paths=index_cache.pack(paths),
            labels=np.asarray(labels, dtype=np.int64),
            classes=index_cache.pack(classes),
            folders=index_cache.pack(tuple(folders)),
            mtimes_ns=np.asarray(tuple(folders.values()), dtype=np.int64),
        )
    return index


def _recall(root: Path) -> ImageIndex | None:
    """The index as it was, if every folder it was made of still has the time of change it had."""
    kept = index_cache.recall(f"folder {os.path.realpath(root)}")
    if kept is None:
        return None
    try:
        for folder, mtime_ns in zip(index_cache.unpack(kept["folders"]), kept["mtimes_ns"].tolist(), strict=True):
            if os.stat(root / folder).st_mtime_ns != mtime_ns:
                return None
    except OSError:
        return None
    return ImageIndex(
        root, index_cache.unpack(kept["paths"]), tuple(kept["labels"].tolist()), index_cache.unpack(kept["classes"])
    )


def read_image(path: Path | str) -> Image.Image:
    """Decode a file to an RGB picture. Raises UnreadableImage."""
    return _decode(path, path)


def decode(content: bytes | np.ndarray, path: Path | str) -> Image.Image:
    """A file's content, or an (H, W, 3) uint8 array, as an RGB picture. Raises UnreadableImage that names `path`."""
    return Image.fromarray(content) if isinstance(content, np.ndarray) else _decode(io.BytesIO(content), path)


def _decode(source: Path | str | io.BytesIO, path: Path | str) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(source) as image:
                return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError, Warning) as error:
        raise UnreadableImage(Path(path), str(error) or type(error).__name__) from error


@dataclass
class BadImages:
    """The files below `root` that could not be read: counted, named, an error once they pass `max_share` of `total`.

    setting: how the user raises max_share, for the error's advice.
    """

    root: Path
    total: int
    max_share: float
    setting: str
    reasons: dict[str, str] = field(default_factory=dict)

    def update(self, reasons: dict[str, str]) -> None:
        """Note unreadable files, path -> reason. Raises UserError, naming one, when there are now too many."""
        self.reasons.update(reasons)
        count = len(self.reasons)
        if count > self.max_share * self.total:
            path, reason = next(iter((reasons or self.reasons).items()))
            enough = min(0.99, max(0.01, 2 * count / self.total))
            raise UserError(
                f"{self.root / path}: cannot be read ({reason}); {count} of {self.total} images are unreadable so "
                f"far, more than {self.setting}={self.max_share:g} allows: mend the file, or skip such images with "
                f"{self.setting}={enough:.2g}"
            )

    def report(self) -> str:
        """One line per file, for a text file beside the results."""
        return "".join(f"{path}\t{reason}\n" for path, reason in sorted(self.reasons.items()))


def _images_below(root: Path, name: str, folders: dict[str, int]) -> Iterator[str]:
    """Image files below root/name, relative to root, links followed, no folder visited twice.

    folders: gets every folder visited and its time of change, taken before it was read.
    """
    seen = set()
    for place, inner, files in os.walk(root / name, followlinks=True):
        here = os.path.realpath(place)
        if here in seen:
            inner.clear()
            continue
        seen.add(here)
        below = os.path.relpath(place, root)
        folders[below] = os.stat(place).st_mtime_ns
        prefix = "" if below == "." else f"{below}/"
        yield from (prefix + file for file in files if os.path.splitext(file)[1].lower() in SUFFIXES)
