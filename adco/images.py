"""Where pictures come from: a folder of images, indexed once in a fixed order, and decoded one at a time."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from adco.errors import UserError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm"})

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
    """An image folder in a fixed order: `paths[i]`, relative to `root`, shows `classes[labels[i]]`."""

    root: Path
    paths: tuple[str, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, i: int) -> bytes:
        """The content of image i's file. Raises UnreadableImage."""
        path = self.root / self.paths[i]
        try:
            with open(path, "rb") as file:
                return file.read()
        except OSError as error:
            raise UnreadableImage(path, error.strerror or str(error)) from error


def index_folder(root: Path | str) -> ImageIndex:
    """Index `root/CLASS/**/*.jpg`, or a flat folder of images as one class. Order: by class, then by path.

    Raises UserError when the folder is absent or holds no images.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root}: no such image folder")
    classes = tuple(sorted(entry.name for entry in os.scandir(root) if entry.is_dir())) or (".",)
    paths, labels = [], []
    for label, name in enumerate(classes):
        found = sorted(_images_below(root / name))
        paths += [path.relative_to(root).as_posix() for path in found]
        labels += [label] * len(found)
    if not paths:
        kinds = ", ".join(sorted(SUFFIXES))
        raise UserError(f"{root}: no images in it; expected ROOT/CLASS/IMAGE or ROOT/IMAGE with a suffix of {kinds}")
    return ImageIndex(root, tuple(paths), tuple(labels), classes)


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


def _images_below(folder: Path) -> Iterator[Path]:
    """Image files below a folder, links followed, no folder visited twice."""
    seen = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        here = os.path.realpath(place)
        if here in seen:
            folders.clear()
            continue
        seen.add(here)
        yield from (Path(place, name) for name in files if Path(name).suffix.lower() in SUFFIXES)
