"""Paint objects over each other on a backdrop, record what is visible of each, then simulate a camera."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from adco.sample.objects import Sprite, draw_object

MIN_VISIBLE_SHARE, MIN_VISIBLE_PX = 0.12, 24  # an object of which less is visible is not drawn
DIFFICULT_SHARE, DIFFICULT_SIDE_PX = 0.35, 10  # below either, an object is `difficult`


@dataclass
class Seen:
    """An annotated object.

    Attributes:
        name: The class.
        pose: VOC's word for the pose.
        mask: (H, W) bool: the visible pixels.
        box: The mask's (x0, y0, x1, y1), end exclusive.
        share: The visible share of the silhouette.
        truncated: Whether the box misses part of the object.
        difficult: VOC's flag.
        group: The number of its crowd, or -1.
    """

    name: str
    pose: str
    mask: np.ndarray
    box: tuple[int, int, int, int]
    share: float
    truncated: bool
    difficult: bool
    group: int


def generator(seed: int, split: int, number: int) -> np.random.Generator:
    """The random generator of an image: it depends on the seed, the split's number and the image's number alone."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, split, number))))


def _window(sprite: Sprite, width: int, height: int) -> tuple[slice, slice, slice, slice] | None:
    """Rows and columns of the image that the sprite covers, then those of the sprite; None when it lies outside."""
    h, w = sprite.rgba.shape[:2]
    x0, y0, x1, y1 = max(0, sprite.left), max(0, sprite.top), min(width, sprite.left + w), min(height, sprite.top + h)
    if x0 >= x1 or y0 >= y1:
        return None
    own = slice(y0 - sprite.top, y1 - sprite.top), slice(x0 - sprite.left, x1 - sprite.left)
    return slice(y0, y1), slice(x0, x1), *own


def _bounds(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Box (x0, y0, x1, y1), end exclusive, of a mask that is not empty."""
    xs, ys = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    return int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1


def compose(ground: np.ndarray, sprites: list[Sprite]) -> tuple[np.ndarray, list[Seen]]:
    """Paint sprites over a backdrop. A sprite that is almost hidden is left out.

    Args:
        ground: The backdrop, (H, W, 3) float32; it is changed in place.
        sprites: From the farthest to the nearest.

    Returns:
        The image, and the annotated objects, nearest first.
    """
    height, width = ground.shape[:2]
    taken, kept, seen = np.zeros((height, width), bool), [], []
    for sprite in reversed(sprites):
        window = _window(sprite, width, height)
        if window is None:
            continue
        rows, cols, own_rows, own_cols = window
        whole = sprite.rgba[..., 3] >= 0.5
        visible = whole[own_rows, own_cols] & ~taken[rows, cols]
        share = visible.sum() / max(1, whole.sum())
        if share < MIN_VISIBLE_SHARE or visible.sum() < MIN_VISIBLE_PX:
            continue
        mask = np.zeros((height, width), bool)
        mask[rows, cols] = visible
        taken[rows, cols] |= visible
        box, full = _bounds(mask), _bounds(whole)
        lost = (full[2] - full[0]) - (box[2] - box[0]) > 1 or (full[3] - full[1]) - (box[3] - box[1]) > 1
        difficult = share < DIFFICULT_SHARE or min(box[2] - box[0], box[3] - box[1]) < DIFFICULT_SIDE_PX
        seen.append(Seen(sprite.name, sprite.pose, mask, box, float(share), lost, bool(difficult), sprite.group))
        kept.append((sprite, window))
    for sprite, (rows, cols, own_rows, own_cols) in reversed(kept):
        part = sprite.rgba[own_rows, own_cols]
        _shadow(ground, sprite)
        ground[rows, cols] = ground[rows, cols] * (1 - part[..., 3:]) + part[..., :3]
    return ground, seen


def _shadow(ground: np.ndarray, sprite: Sprite) -> None:
    """Darken an ellipse of ground under the object's foot."""
    if sprite.name in ("aeroplane", "bird", "boat"):
        return
    h, w = sprite.rgba.shape[:2]
    centre_x, foot, rx, ry = sprite.left + w / 2, sprite.top + h - 2, w * 0.52, max(2.0, w * 0.07)
    y0, y1 = max(0, int(foot - ry)), min(ground.shape[0], int(foot + ry) + 1)
    x0, x1 = max(0, int(centre_x - rx)), min(ground.shape[1], int(centre_x + rx) + 1)
    if y0 >= y1 or x0 >= x1:
        return
    y, x = np.arange(y0, y1, dtype=np.float32)[:, None], np.arange(x0, x1, dtype=np.float32)[None]
    far = ((x - centre_x) / rx) ** 2 + ((y - foot) / ry) ** 2
    ground[y0:y1, x0:x1] *= (1 - 0.45 * np.clip(1.2 - far, 0, 1))[..., None]


def finish(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Exposure, colour cast, vignette and grain of a camera: (H, W, 3) float32 in [0, 1] -> uint8."""
    h, w = image.shape[:2]
    gain = rng.uniform(0.95, 1.3) * rng.uniform(0.94, 1.06, 3).astype(np.float32)
    y, x = np.linspace(-1, 1, h, dtype=np.float32)[:, None], np.linspace(-1, 1, w, dtype=np.float32)[None]
    vignette = 1 - np.float32(rng.uniform(0, 0.16)) * (x * x + y * y)
    grain = (rng.random((h, w, 1), dtype=np.float32) - 0.5) * np.float32(rng.uniform(0.01, 0.07))
    return (np.clip(image * (gain.astype(np.float32) * vignette[..., None]) + grain, 0, 1) * 255 + 0.5).astype(np.uint8)


def place(
    name: str,
    rng: np.random.Generator,
    long_px: float,
    width: int,
    height: int,
    horizon: int,
    light: tuple[float, float],
) -> Sprite:
    """Draw one object at a plausible place: in the air, or on the ground, where larger ones stand lower.

    Args:
        name: The class.
        rng: The source of randomness.
        long_px: The length of its longer side in pixels.
        width: The image's, in pixels.
        height: The image's, in pixels.
        horizon: The row of the horizon.
        light: As in `draw_object`.
    """
    x = rng.uniform(0.0, 1.0) * width
    if name == "aeroplane" or (name == "bird" and rng.random() < 0.5):
        foot = rng.uniform(0.1, 0.75) * height + long_px * 0.3
    else:
        near = min(1.0, 0.75 * long_px / (0.7 * height) + rng.uniform(-0.1, 0.35))
        foot = horizon + (1.08 * height - horizon) * max(0.06, near)
    return draw_object(name, rng, long_px, x, foot, light)
