"""A pen for stylised objects: painted polygons in object coordinates (x right, y down, about one unit large)."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

PAINTS = 9
# The paint of a part. A HOLE shows what is behind it.
HOLE, BODY, SECOND, TRIM, DARK, PALE, GLASS, SKIN, BLACK = range(PAINTS)

_TURN = np.linspace(0.0, 2 * np.pi, 24, endpoint=False)
_CIRCLE = np.stack([np.cos(_TURN), np.sin(_TURN)], axis=1)


@dataclass
class Pen:
    """Collects the parts of an object.

    Attributes:
        rng: The object's random generator.
        parts: From back to front: points (N, 2) float, paint, and whether it has an outline in ink.
    """

    rng: np.random.Generator
    parts: list[tuple[np.ndarray, int, bool]] = field(default_factory=list)

    def r(self, low: float, high: float) -> float:
        """A uniform number in [low, high)."""
        return low + (high - low) * self.rng.random()

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return bool(self.rng.random() < probability)

    def poly(self, paint: int, *points: tuple[float, float], ink: bool = True) -> None:
        """A polygon with straight sides."""
        self.parts.append((np.array(points, dtype=float), paint, ink))

    def box(
        self, paint: int, x0: float, y0: float, x1: float, y1: float, round_: float = 0.0, ink: bool = True
    ) -> None:
        """An upright rectangle with corners rounded by `round_` (radius)."""
        if round_ <= 0:
            self.poly(paint, (x0, y0), (x1, y0), (x1, y1), (x0, y1), ink=ink)
            return
        arc = _CIRCLE[:7] * round_  # a quarter circle, from +x to +y
        corners = [
            arc + (x1 - round_, y1 - round_),
            arc[:, ::-1] * (-1, 1) + (x0 + round_, y1 - round_),
            -arc + (x0 + round_, y0 + round_),
            arc[:, ::-1] * (1, -1) + (x1 - round_, y0 + round_),
        ]
        self.parts.append((np.concatenate(corners), paint, ink))

    def ell(
        self, paint: int, x: float, y: float, rx: float, ry: float | None = None, turn: float = 0.0, ink: bool = True
    ) -> None:
        """An ellipse (a circle without `ry`) turned by `turn` radians."""
        points = _CIRCLE * (rx, rx if ry is None else ry)
        if turn:
            c, s = np.cos(turn), np.sin(turn)
            points = points @ np.array([[c, s], [-s, c]])
        self.parts.append((points + (x, y), paint, ink))

    def limb(
        self,
        paint: int,
        start: tuple[float, float],
        end: tuple[float, float],
        wide: float,
        wide_end: float | None = None,
        ink: bool = True,
    ) -> None:
        """A bar with round ends, `wide` across at its start and `wide_end` at its end."""
        wide_end = wide if wide_end is None else wide_end
        a, b = np.array(start), np.array(end)
        along = (b - a) / max(float(np.hypot(*(b - a))), 1e-6)
        across = np.array([-along[1], along[0]])
        fan = _CIRCLE[:13:3]  # half a circle, from +x over +y to -x
        cap_b = b + wide_end / 2 * (fan[:, :1] * across + fan[:, 1:] * along)
        cap_a = a - wide / 2 * (fan[:, :1] * across + fan[:, 1:] * along)
        self.parts.append((np.concatenate([cap_b, cap_a]), paint, ink))

    def blob(self, paint: int, *points: tuple[float, float], ink: bool = True) -> None:
        """A smooth closed outline through the points (Catmull-Rom, four pieces a side)."""
        p = np.array(points, dtype=float)
        before, after, after2 = np.roll(p, 1, 0), np.roll(p, -1, 0), np.roll(p, -2, 0)
        pieces = [
            0.5 * (2 * p + (after - before) * t + (2 * before - 5 * p + 4 * after - after2) * t**2
                   + (3 * p - before - 3 * after + after2) * t**3)
            for t in (0.0, 0.25, 0.5, 0.75)
        ]  # fmt: skip
        self.parts.append((np.stack(pieces, axis=1).reshape(-1, 2), paint, ink))

    def wheel(self, x: float, y: float, radius: float, hub: int = PALE) -> None:
        """A tyre with a hub cap."""
        self.ell(BLACK, x, y, radius)
        self.ell(hub, x, y, radius * 0.55)
        self.ell(DARK, x, y, radius * 0.16, ink=False)
