"""The canvas that the sample's backdrops are drawn on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from adco.sample.paint import rgb


@dataclass
class Canvas:
    """An image that is being drawn: rng, size in pixels, the horizon's row, and Pillow's image."""

    rng: np.random.Generator
    width: int
    height: int
    horizon: int
    image: Image.Image
    draw: ImageDraw.ImageDraw

    def r(self, low: float, high: float) -> float:
        """A uniform number in [low, high)."""
        return low + (high - low) * self.rng.random()

    def n(self, low: int, high: int) -> int:
        """A whole number in [low, high]."""
        return int(self.rng.integers(low, high + 1))

    def colour(self, hue: float, saturation: float, value: float, jitter: float = 0.06) -> tuple[int, int, int]:
        """An RGB tuple in 0..255 near the HSV colour."""
        d = (self.rng.random(3) - 0.5) * 2 * jitter
        red, green, blue = (int(255 * c) for c in rgb(hue + d[0] * 0.4, saturation + d[1], value + d[2]))
        return red, green, blue

    def fill(self, top: int, bottom: int, first: tuple[int, int, int], last: tuple[int, int, int]) -> None:
        """Rows top..bottom with a gradient between two colours."""
        if bottom <= top:
            return
        ramp = np.linspace(0, 1, bottom - top)[:, None] * (np.array(last) - first) + first
        strip = Image.fromarray(ramp[:, None].astype(np.uint8)).resize((self.width, bottom - top))
        self.image.paste(strip, (0, top))

    def poly(self, colour: tuple[int, int, int], *points: tuple[float, float]) -> None:
        """A filled polygon."""
        self.draw.polygon([(x, y) for x, y in points], fill=colour)

    def disc(self, colour: tuple[int, int, int], x: float, y: float, rx: float, ry: float) -> None:
        """A filled ellipse with half axes rx and ry."""
        self.draw.ellipse([x - rx, y - ry, x + rx, y + ry], fill=colour)

    def ridge(self, colour: tuple[int, int, int], base: float, high: float, peaks: int) -> None:
        """A jagged skyline of `peaks` over the whole width, filled down to the bottom."""
        xs = np.linspace(-0.1, 1.1, 2 * peaks + 1) * self.width
        ys = [base - high * (self.r(0.5, 1) if i % 2 else self.r(0, 0.4)) for i in range(len(xs))]
        self.poly(colour, (xs[0], self.height), *zip(xs, ys, strict=True), (xs[-1], self.height))
