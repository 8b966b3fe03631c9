"""Image files below a folder in a fixed order: what the features of one split are extracted from."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from adco.data.images import read_image


@dataclass(frozen=True)
class ImageList:
    """Image files in a fixed order, a source for `read_batches`.

    Attributes:
        root: the folder.
        paths: the files, relative to `root`.
        name: a word for file names and progress, e.g. `val`.
    """

    root: Path
    paths: tuple[str, ...]
    name: str

    def image(self, i: int) -> Image.Image:
        """Image i, RGB. Raises UnreadableImage."""
        return read_image(self.root / self.paths[i])

    def fingerprint(self) -> str:
        """sha256 of paths, sizes and times of change: an image that was exchanged makes another data set.

        A file whose size cannot be read counts as -1 bytes; reading it then reports it as unreadable.
        """
        digest = hashlib.sha256()
        for path in self.paths:
            try:
                stat = (self.root / path).stat()
                size, changed = stat.st_size, stat.st_mtime_ns
            except OSError:
                size, changed = -1, 0
            digest.update(os.fsencode(f"{path}\0{size}\0{changed}\n"))
        return digest.hexdigest()
