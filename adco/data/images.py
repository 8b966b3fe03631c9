"""Images in a fixed order: a folder of images, indexed once and decoded one at a time. Other sources: sources.py."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile

from adco.data import index_cache
from adco.utils.errors import UserError, one_line

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm"})
FORMATS = ("JPEG", "PNG", "BMP", "DIB", "WEBP", "TIFF", "PPM", "GIF")  # by content; EPS would run a program
MOST_PIXELS = 89_478_485  # Pillow's limit against decompression bombs, and the C kernel's (native/jpeg.c)
MOST_BYTES = 1 << 30  # of a file: more than MOST_PIXELS need at any depth

SIZED = 10_000  # images whose sizes are compared to notice a replaced dataset; of a larger one, as many spread evenly
CACHED_FROM = 10_000  # images; the list of a smaller folder is read fast enough without a cache
HOT_NS = 2_000_000_000  # a folder changed this recently may change again within its clock's step: not cached

ImageFile.LOAD_TRUNCATED_IMAGES = False  # a truncated file is unreadable; nothing is filled in
warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `opened` raises an error instead


class UnreadableImage(Exception):
    """An image file that cannot be read or decoded; readers of many images count these and continue."""

    def __init__(self, path: Path, reason: str):
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = path, reason

    def __reduce__(self):  # survives the trip back from a worker process
        return type(self), (self.path, self.reason)


@dataclass(frozen=True)
class ImageIndex:
    """Images in a fixed order, here the files of a folder. Other sources (adco/data/sources.py) are subclasses.

    Attributes:
        root: the folder.
        paths: the images' files relative to `root`; for other sources their names in messages.
        labels: the images' class numbers.
        classes: the classes' names, so that image i shows `classes[labels[i]]`.
    """

    root: Path
    paths: tuple[str, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, i: int) -> bytes | np.ndarray:
        """The content of image i's file, or its (H, W, 3) uint8 RGB pixels. Raises UnreadableImage."""
        return read_file(self.root / self.paths[i])

    def image(self, i: int) -> Image.Image:
        """Image i, RGB. Raises UnreadableImage."""
        return decode(self.read(i), self.root / self.paths[i])

    def size(self, i: int) -> int:
        """Bytes of image i's file; -1 where there is none."""
        try:
            return os.stat(self.root / self.paths[i]).st_size
        except (OSError, ValueError):
            return -1

    @cached_property
    def sizes(self) -> str:
        """A sha256 of the images' sizes in bytes, of SIZED of them where there are more: it changes when images are
        replaced under the same names, and is the same for a copy on another disk."""
        chosen = range(0, len(self), -(-len(self) // SIZED) or 1)
        return hashlib.sha256(np.array([self.size(i) for i in chosen], dtype=np.int64).tobytes()).hexdigest()

    @cached_property
    def fingerprint(self) -> str:
        """A sha256 of names, order and classes (not of pixels): whether it is the same dataset."""
        digest = hashlib.sha256()
        for names in (self.paths, self.classes):
            digest.update(os.fsencode("\0".join(names)) + b"\0\0")
        digest.update(np.asarray(self.labels, dtype=np.int64).tobytes())
        return digest.hexdigest()

    def stamp(self) -> str:
        """A sha256 that also changes when a file is replaced: of the folder, each file's size and time of change."""
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
    """Images that are decoded already. `pixels`: (N, H, W, 3) uint8 RGB."""

    pixels: np.ndarray = field(default_factory=lambda: np.empty((0, 1, 1, 3), dtype=np.uint8), compare=False)

    def read(self, i: int) -> np.ndarray:
        """Image i, (H, W, 3) uint8 RGB."""
        return self.pixels[i]

    def size(self, i: int) -> int:
        """Bytes of image i's pixels."""
        return self.pixels[i].nbytes


def index_folder(root: Path | str) -> ImageIndex:
    """Index `root/CLASS/**/*.jpg`, or a flat folder of images as one class. Order: by class, then by path.

    A large folder is scanned once; the next time its list comes from the cache, if no folder below it has changed
    since. Raises UserError when the folder or one below it cannot be read, or when there are no images.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root}: no such image folder")
    try:
        index = _load_cached(root) or _scan(root)
    except OSError as error:
        raise UserError(
            f"{error.filename}: this folder of images cannot be read ({error.strerror}); make it readable, or move it"
        ) from error
    if not index.paths:
        kinds = ", ".join(sorted(SUFFIXES))
        raise UserError(f"{root}: no images in it; expected ROOT/CLASS/IMAGE or ROOT/IMAGE with a suffix of {kinds}")
    return index


def _scan(root: Path) -> ImageIndex:
    start = time.time_ns()
    folders: dict[str, int] = {".": os.stat(root).st_mtime_ns}
    classes = tuple(sorted(entry.name for entry in os.scandir(root) if os.path.isdir(entry.path))) or (".",)
    paths, labels = [], []
    for label, name in enumerate(classes):
        of_class = sorted(_images_below(root, name, folders), key=lambda path: path.split("/"))
        paths += of_class
        labels += [label] * len(of_class)
    index = ImageIndex(root, tuple(paths), tuple(labels), classes)
    if len(index) >= CACHED_FROM and max(folders.values()) < start - HOT_NS:
        index_cache.save_cached(
            f"folder {os.path.realpath(root)}",
            paths=index_cache.pack(paths),
            labels=np.asarray(labels, dtype=np.int64),
            classes=index_cache.pack(classes),
            folders=index_cache.pack(tuple(folders)),
            mtimes_ns=np.asarray(tuple(folders.values()), dtype=np.int64),
        )
    return index


def _load_cached(root: Path) -> ImageIndex | None:
    """The cached index, if no folder that it was made of has another time of change now."""
    kept = index_cache.load_cached(f"folder {os.path.realpath(root)}")
    if kept is None:
        return None
    try:
        for folder, mtime_ns in zip(index_cache.unpack(kept["folders"]), kept["mtimes_ns"].tolist(), strict=True):
            if os.stat(root / folder).st_mtime_ns != mtime_ns:
                return None
        paths, labels = index_cache.unpack(kept["paths"]), tuple(kept["labels"].tolist())
        return (
            ImageIndex(root, paths, labels, index_cache.unpack(kept["classes"])) if len(paths) == len(labels) else None
        )
    except (OSError, KeyError, ValueError):
        return None


def read_file(path: Path | str) -> bytes:
    """The bytes of an image's file. Raises UnreadableImage, also for what is no file: a pipe could block."""
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            state = os.fstat(file.fileno())
            if not stat.S_ISREG(state.st_mode):
                raise UnreadableImage(Path(path), "not a regular file")
            if state.st_size > MOST_BYTES:
                raise UnreadableImage(Path(path), f"{state.st_size} bytes, more than {MOST_BYTES}")
            return file.read()
    except OSError as error:
        raise UnreadableImage(Path(path), error.strerror or str(error)) from error


def read_image(path: Path | str) -> Image.Image:
    """Decode a file: an RGB image. Raises UnreadableImage."""
    return decode(read_file(path), path)


def decode(content: bytes | np.ndarray, path: Path | str) -> Image.Image:
    """A file's content, or an (H, W, 3) uint8 array, as an RGB image. Raises UnreadableImage that names `path`.

    An animation gives its first image; levels of 16 bits give their upper 8.
    """
    if isinstance(content, np.ndarray):
        return Image.fromarray(content)
    try:
        with opened(content) as image:
            return _rgb(image)
    except MemoryError:
        raise
    except Exception as error:  # a broken file may raise anything in a decoder
        raise UnreadableImage(Path(path), (str(error).splitlines() or [""])[0] or type(error).__name__) from error


def opened(content: bytes) -> Image.Image:
    """The image of a file's content; its header is read, its pixels are not. Raises whatever Pillow does, and
    ValueError for more than MOST_PIXELS."""
    if not content:
        raise ValueError("the file is empty")
    image = Image.open(io.BytesIO(content), formats=FORMATS)
    if image.width * image.height > MOST_PIXELS:
        raise ValueError(f"{image.width} x {image.height} pixels, more than {MOST_PIXELS}")
    return image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("floating-point pixels, whose range is unknown; convert it to 8 or 16 bits")
    if not image.mode.startswith("I"):
        return image.convert("RGB")
    levels = np.asarray(image)  # Pillow's conversion would clip them at 255: a white image
    if levels.min() < 0 or levels.max() > 0xFFFF:
        raise ValueError("pixels of more than 16 bits; convert it to 8 or 16 bits")
    return Image.fromarray((levels >> 8).astype(np.uint8)).convert("RGB")


@dataclass
class BadImages:
    """The unreadable images of a dataset, counted and named; too many of them are an error.

    Attributes:
        root: the folder that the paths are relative to.
        total: images of the dataset.
        max_share: the share of `total` that may be unreadable.
        setting: the option that sets max_share, for the error's advice.
        reasons: path -> reason of the unreadable images so far.
    """

    root: Path
    total: int
    max_share: float
    setting: str
    reasons: dict[str, str] = field(default_factory=dict)

    def update(self, reasons: dict[str, str]) -> None:
        """Add unreadable images, path -> reason. Raises UserError, naming one, when there are now too many."""
        self.reasons.update(reasons)
        count = len(self.reasons)
        if count > self.max_share * self.total:
            path, reason = next(iter((reasons or self.reasons).items()))
            enough = min(0.99, max(0.01, 2 * count / self.total))
            raise UserError(
                f"{self.root / path}: cannot be read ({reason}); {count} of {self.total} images are unreadable so "
                f"far, more than {self.setting}={self.max_share:g} allows: repair the file, or skip such images with "
                f"{self.setting}={enough:.2g}"
            )

    def report(self) -> str:
        """One line per file, for a text file beside the results."""
        return "".join(f"{one_line(path)}\t{one_line(reason)}\n" for path, reason in sorted(self.reasons.items()))


def _images_below(root: Path, name: str, folders: dict[str, int]) -> Iterator[str]:
    """Image files below root/name, relative to root; links are followed, and no folder is visited twice.

    Every visited folder is added to `folders`, with its time of change from before it was read.
    """
    seen = set()
    for place, inner, files in os.walk(root / name, onerror=_raise, followlinks=True):
        here = os.path.realpath(place)
        if here in seen:
            inner.clear()
            continue
        seen.add(here)
        below = os.path.relpath(place, root)
        folders[below] = os.stat(place).st_mtime_ns
        prefix = "" if below == "." else f"{below}/"
        yield from (prefix + file for file in files if os.path.splitext(file)[1].lower() in SUFFIXES)


def _raise(error: OSError) -> None:
    raise error
