"""Eight kinds of scene behind the sample's objects, named after Places205 categories.

The function of a scene draws it on a canvas and returns the height of the texture's grain and its strength.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from adco.sample.canvas import Canvas
from adco.sample.paint import noise


def _sky(c: Canvas) -> None:
    hue = c.r(0.53, 0.61) if c.n(0, 5) else c.r(0.03, 0.12)
    c.fill(0, c.horizon + 1, c.colour(hue, 0.42, 0.84, 0.12), c.colour(hue, 0.14, 0.98, 0.03))
    for _ in range(c.n(0, 4)):
        x, y, s, tone = c.r(0, c.width), c.r(0, c.horizon), c.r(0.05, 0.12) * c.width, c.colour(0.6, 0.03, 0.95, 0.04)
        for k in range(4):
            c.disc(tone, x + (k - 1.5) * s * 0.8, y - c.r(0, 0.4) * s, s, s * 0.55)


def pasture(c: Canvas) -> tuple[float, float]:
    """Hills, grass, trees, perhaps a fence and flowers."""
    _sky(c)
    for k in range(c.n(1, 3)):
        c.ridge(c.colour(c.r(0.25, 0.45), 0.35, 0.6 - 0.1 * k), c.horizon + 4, c.r(0.08, 0.25) * c.height, c.n(2, 5))
    hue = c.r(0.15, 0.36)
    c.fill(c.horizon, c.height, c.colour(hue, 0.5, 0.7), c.colour(hue, 0.65, 0.45, 0.12))
    for _ in range(c.n(0, 5)):
        x, s = c.r(0, c.width), c.r(0.05, 0.14) * c.height
        c.draw.rectangle([x - s * 0.1, c.horizon - s, x + s * 0.1, c.horizon], fill=c.colour(0.07, 0.5, 0.3))
        c.disc(c.colour(0.3, 0.5, 0.38, 0.1), x, c.horizon - s, s * 0.7, s * 0.8)
    if c.n(0, 1):
        y, tone = c.horizon + c.r(0.02, 0.12) * c.height, c.colour(0.08, 0.3, 0.5, 0.2)
        for x in range(c.n(0, 9), c.width, c.n(13, 22)):
            c.draw.rectangle([x, y - 9, x + 2, y + 5], fill=tone)
        c.draw.line([0, y - 5, c.width, y - 5], fill=tone, width=1)
        c.draw.line([0, y - 1, c.width, y - 1], fill=tone, width=1)
    flower = c.colour(c.r(0, 1), 0.6, 0.95)
    for _ in range(c.n(0, 30)):
        c.disc(flower, c.r(0, c.width), c.r(c.horizon + 3, c.height), 1.2, 1.2)
    return 2.5, 0.35


def coast(c: Canvas) -> tuple[float, float]:
    """The sea with waves, perhaps an island and a beach."""
    _sky(c)
    if c.n(0, 1):
        c.ridge(c.colour(0.6, 0.2, 0.6), c.horizon + 1, 0.12 * c.height, c.n(1, 3))
    hue, shore = c.r(0.46, 0.62), c.horizon + c.r(0.35, 1.3) * (c.height - c.horizon)
    c.fill(c.horizon, c.height, c.colour(hue, 0.6, 0.6), c.colour(hue, 0.5, 0.5, 0.15))
    y, tone = float(c.horizon), c.colour(hue, 0.2, 0.92)
    while y < min(shore, c.height):
        for _ in range(4):
            x, long = c.r(-20, c.width), c.r(0.05, 0.2) * c.width
            c.draw.line([x, y, x + long, y + c.r(-1, 1)], fill=tone, width=1 + int((y - c.horizon) / c.height * 4))
        y += 2 + (y - c.horizon) * 0.15
    if shore < c.height:
        curve = [(x * c.width / 8, shore + c.r(-4, 4)) for x in range(9)]
        c.poly(tone, *[(x, y - 4) for x, y in curve], (c.width, c.height), (0, c.height))
        c.poly(c.colour(0.11, 0.35, 0.85), *curve, (c.width, c.height), (0, c.height))
    return 0.35, 0.18


def badlands(c: Canvas) -> tuple[float, float]:
    """Layered hills of bare rock with stones and cactuses."""
    _sky(c)
    hue = c.r(0.04, 0.12)
    for k in range(c.n(2, 3)):
        base, high = c.horizon + 6 + 6 * k, c.r(0.12, 0.34) * c.height
        c.ridge(c.colour(hue, 0.45, 0.75 - 0.12 * k), base, high, c.n(2, 4))
    for k in range(c.n(3, 7)):  # strata run across the hills
        y = c.horizon - c.r(-0.04, 0.05) * c.height
        points = [(x * c.width / 6, y + c.r(-2, 2)) for x in range(7)]
        c.draw.line(points, fill=c.colour(hue, 0.5, 0.45 + 0.05 * k, 0.1), width=c.n(1, 2))
    c.fill(c.horizon, c.height, c.colour(hue, 0.4, 0.85), c.colour(hue, 0.5, 0.65, 0.1))
    for _ in range(c.n(0, 9)):
        x, y, s = c.r(0, c.width), c.r(c.horizon + 2, c.height), c.r(2, 7)
        c.disc(c.colour(hue, 0.35, 0.45, 0.1), x, y, s, s * 0.6)
    for _ in range(c.n(0, 2)):
        x, s, tone = c.r(0, c.width), c.r(0.1, 0.25) * c.height, c.colour(0.33, 0.45, 0.4)
        foot = c.horizon + c.r(0, 0.1) * c.height
        c.draw.line([x, foot, x, foot - s], fill=tone, width=4)
        c.draw.line([x, foot - s * 0.4, x + s * 0.3, foot - s * 0.4, x + s * 0.3, foot - s * 0.8], fill=tone, width=3)
        c.draw.line([x, foot - s * 0.3, x - s * 0.25, foot - s * 0.3, x - s * 0.25, foot - s * 0.6], fill=tone, width=3)
    return 0.5, 0.22


def forest_path(c: Canvas) -> tuple[float, float]:
    """A path between trees."""
    hue = c.r(0.2, 0.4)
    c.fill(0, c.height, c.colour(hue, 0.5, 0.35, 0.12), c.colour(hue, 0.35, 0.65, 0.1))
    for _ in range(45):
        s = c.r(0.04, 0.12) * c.width
        c.disc(c.colour(hue, 0.55, c.r(0.2, 0.65), 0.1), c.r(0, c.width), c.r(-0.1, 1.0) * c.horizon, s, s * 0.7)
    c.fill(c.horizon, c.height, c.colour(hue - 0.08, 0.5, 0.45), c.colour(hue - 0.1, 0.5, 0.35))
    end, foot, tone = c.r(0.3, 0.7) * c.width, c.r(0.1, 0.9) * c.width, c.colour(0.09, 0.35, 0.65, 0.1)
    c.poly(
        tone, (end - 4, c.horizon), (end + 4, c.horizon), (foot + 0.3 * c.width, c.height),
        (foot - 0.3 * c.width, c.height),
    )  # fmt: skip
    for depth in sorted(c.rng.random(c.n(5, 11))):
        x, wide, y = c.r(0, c.width), (0.02 + 0.05 * depth) * c.width, c.horizon + depth * 0.4 * (c.height - c.horizon)
        tone = c.colour(0.07, 0.4, 0.45 - 0.25 * depth, 0.1)
        c.poly(tone, (x - wide * 0.5, 0), (x + wide * 0.5, 0), (x + wide * 0.7, y), (x - wide * 0.7, y))
    return 1.5, 0.4


def highway(c: Canvas) -> tuple[float, float]:
    """A road with lanes, houses or a hill behind it."""
    _sky(c)
    if c.n(0, 2):
        x = -5.0
        while x < c.width:
            wide, high = c.r(0.06, 0.16) * c.width, c.r(0.1, 0.9) * c.horizon
            tone, lamp = c.colour(c.r(0, 1), 0.12, c.r(0.35, 0.8)), c.colour(0.13, 0.3, c.r(0.2, 0.95))
            c.draw.rectangle([x, c.horizon - high, x + wide, c.horizon], fill=tone)
            for wy in np.arange(c.horizon - high + 3, c.horizon - 3, 6):
                for wx in np.arange(x + 2, x + wide - 3, 5):
                    c.draw.rectangle([wx, wy, wx + 2, wy + 3], fill=lamp)
            x += wide + c.r(0, 6)
    else:
        c.ridge(c.colour(0.35, 0.3, 0.5), c.horizon + 2, 0.15 * c.height, 3)
    verge = c.colour(c.r(0.1, 0.35), 0.35, 0.5)
    c.fill(c.horizon, c.height, verge, verge)
    away, near = c.r(0.35, 0.65) * c.width, c.r(0.3, 0.7) * c.width
    grey, half = c.r(0.28, 0.5), c.r(0.6, 1.1) * c.width
    c.poly(
        c.colour(0.6, 0.04, grey, 0.02), (away - 5, c.horizon), (away + 5, c.horizon), (near + half, c.height),
        (near - half, c.height),
    )  # fmt: skip
    for lane in (-0.92, c.r(-0.2, 0.2), 0.92):
        for k in range(6):
            t0, t1 = (k / 6) ** 1.7, ((k + (0.5 if abs(lane) < 0.5 else 1)) / 6) ** 1.7
            quad = []
            for t, side in ((t0, -1), (t0, 1), (t1, 1), (t1, -1)):
                centre, spread = away + (near - away) * t, 5 + (half - 5) * t
                quad.append((centre + spread * (lane + side * 0.02), c.horizon + (c.height - c.horizon) * t))
            c.poly(c.colour(0.14, 0.1, 0.92, 0.05), *quad)
    return 1.0, 0.16


def ski_slope(c: Canvas) -> tuple[float, float]:
    """Snow with tracks and firs before mountains."""
    _sky(c)
    for k in range(c.n(1, 2)):
        base, high = c.horizon + 8, c.r(0.25, 0.5) * c.height
        c.ridge(c.colour(0.6, 0.2, 0.55 + 0.12 * k), base, high, c.n(2, 3))
    tilt = c.r(-0.14, 0.14) * c.height
    snow = c.colour(0.6, 0.05, 0.95, 0.03)
    c.poly(snow, (0, c.horizon - tilt), (c.width, c.horizon + tilt), (c.width, c.height), (0, c.height))
    for _ in range(c.n(2, 5)):
        x = c.r(-0.2, 0.8) * c.width
        points = [
            (x + k * c.width / 12 + c.r(-3, 3), c.horizon + tilt + k * (c.height - c.horizon) / 6) for k in range(8)
        ]
        c.draw.line(points, fill=c.colour(0.6, 0.16, 0.82, 0.03), width=c.n(1, 3))
    for _ in range(c.n(2, 9)):
        x, s = c.r(0, c.width), c.r(0.08, 0.24) * c.height
        y, tone = c.horizon - tilt + 2 * tilt * x / c.width + c.r(0, 0.12) * c.height, c.colour(0.38, 0.4, 0.3, 0.08)
        for k in range(3):
            low = y - s * 0.28 * k
            c.poly(tone, (x - s * (0.34 - 0.08 * k), low), (x + s * (0.34 - 0.08 * k), low), (x, low - s * 0.45))
    return 0.8, 0.08


def bedroom(c: Canvas) -> tuple[float, float]:
    """A wall with wallpaper, frames or windows, and a wooden floor."""
    hue = c.r(0, 1)
    wall, paper = c.colour(hue, c.r(0.1, 0.45), c.r(0.55, 0.95)), c.colour(hue + c.r(-0.1, 0.1), 0.3, c.r(0.4, 0.95))
    c.fill(0, c.height, wall, wall)
    kind, step = c.n(0, 2), c.n(9, 18)
    if kind == 0:
        for x in range(0, c.width, step):
            c.draw.rectangle([x, 0, x + step // 2 - 1, c.height], fill=paper)
    elif kind == 1:
        for row, y in enumerate(range(0, c.horizon, step)):
            for x in range((row % 2) * step // 2, c.width, step):
                c.disc(paper, x, y, 2, 2)
    for _ in range(c.n(1, 2)):
        x, y, w, h = (
            c.r(0, 0.75) * c.width,
            c.r(0.05, 0.4) * c.horizon,
            c.r(0.16, 0.34) * c.width,
            c.r(0.3, 0.55) * c.horizon,
        )
        frame, inside = c.colour(0.08, 0.4, c.r(0.3, 0.95), 0.1), c.colour(c.r(0, 1), 0.4, 0.8, 0.15)
        c.draw.rectangle([x - 3, y - 3, x + w + 3, y + h + 3], fill=frame)
        c.draw.rectangle([x, y, x + w, y + h], fill=inside)
        if c.n(0, 1):
            c.draw.line([x + w / 2, y, x + w / 2, y + h], fill=frame, width=2)
            c.draw.line([x, y + h / 2, x + w, y + h / 2], fill=frame, width=2)
        else:
            c.disc(c.colour(c.r(0, 1), 0.5, 0.6), x + w / 2, y + h / 2, w * 0.3, h * 0.3)
    floor_hue = c.r(0.04, 0.11) if c.n(0, 2) else c.r(0, 1)
    c.fill(c.horizon, c.height, c.colour(floor_hue, 0.45, 0.5), c.colour(floor_hue, 0.45, 0.65, 0.1))
    seam = c.colour(floor_hue, 0.5, 0.35)
    for k in range(-10, 20):
        c.draw.line([c.width * (0.25 + k * 0.05), c.horizon, c.width * (k * 0.11), c.height], fill=seam, width=1)
    c.draw.rectangle([0, c.horizon - 4, c.width, c.horizon], fill=c.colour(hue, 0.08, c.r(0.4, 0.95)))
    return 0.4, 0.12


def alley(c: Canvas) -> tuple[float, float]:
    """A brick wall, perhaps with a door, and paving."""
    hue, high = c.r(0.0, 0.08) if c.n(0, 3) else c.r(0, 1), c.n(6, 9)
    mortar, clay = c.colour(0.1, 0.08, c.r(0.5, 0.8)), c.r(0.4, 0.75)
    c.fill(0, c.height, mortar, mortar)
    wide = c.n(12, 20)
    for row, y in enumerate(range(0, c.horizon, high)):
        for x in range(-(row % 2) * wide // 2, c.width, wide):
            c.draw.rectangle([x, y, x + wide - 2, y + high - 2], fill=c.colour(hue, 0.5, clay, 0.08))
    if c.n(0, 2):
        x, w = c.r(0, 0.8) * c.width, c.r(0.14, 0.24) * c.width
        top = c.horizon * c.r(0.1, 0.45)
        tone = c.colour(c.r(0, 1), 0.45, 0.5, 0.15)
        c.draw.rectangle([x, top, x + w, c.horizon], fill=tone, outline=c.colour(0, 0.1, 0.25), width=2)
        c.disc(c.colour(0.12, 0.5, 0.9), x + w * 0.82, (top + c.horizon) / 2, 2, 2)
    grey = c.r(0.35, 0.65)
    c.fill(c.horizon, c.height, c.colour(0.1, 0.06, grey - 0.08), c.colour(0.1, 0.06, grey + 0.08))
    joint = c.colour(0.1, 0.06, grey - 0.18)
    y = float(c.horizon)
    while y < c.height:
        c.draw.line([0, y, c.width, y], fill=joint, width=1)
        y += 4 + (y - c.horizon) * 0.5
    for k in range(-8, 17):
        c.draw.line([c.width * (0.1 + k * 0.1), c.horizon, c.width * (k * 0.2 - 0.3), c.height], fill=joint, width=1)
    return 1.0, 0.2


SCENES: dict[str, Callable[[Canvas], tuple[float, float]]] = {
    "alley": alley, "badlands": badlands, "bedroom": bedroom, "coast": coast,
    "forest_path": forest_path, "highway": highway, "pasture": pasture, "ski_slope": ski_slope,
}  # fmt: skip
SCENE_NAMES = tuple(SCENES)


def backdrop(scene: str, rng: np.random.Generator, width: int, height: int, blur_px: float) -> tuple[np.ndarray, int]:
    """Draw a scene.

    Args:
        scene: One of SCENE_NAMES.
        rng: The source of randomness.
        width: In pixels.
        height: In pixels.
        blur_px: The radius of a Gaussian blur.

    Returns:
        The image, (H, W, 3) float32 in [0, 1], and the row of the horizon, where the ground starts.
    """
    image = Image.new("RGB", (width, height))
    horizon = int(height * (0.3 + 0.32 * rng.random()))
    canvas = Canvas(rng, width, height, horizon, image, ImageDraw.Draw(image))
    tall, strength = SCENES[scene](canvas)
    rgb = np.asarray(image.filter(ImageFilter.GaussianBlur(blur_px)), dtype=np.float32) / 255
    fine = noise(rng, (height, width), int(height / (1.2 * max(tall, 1))), int(width * min(tall, 1) / 1.5))
    coarse = noise(rng, (height, width), 5, 6)
    rough = (fine - 0.5) * strength * 1.6
    rough[:horizon] *= 0.15
    return rgb * (1 + rough + (coarse - 0.5) * 0.3)[..., None], horizon
