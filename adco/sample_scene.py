"""From (seed, split, number) to one picture with its objects: which things stand where, in what colours, and what of each is seen."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from adco import sample_beings as beings
from adco import sample_paint as paint
from adco import sample_things as things
from adco.sample_backdrops import SCENES, backdrop
from adco.sample_shapes import BLACK, BODY, DARK, GLASS, HOLE, PAINTS, PALE, SECOND, SKIN, TRIM, Pen

SUPERSAMPLE = 2
MIN_VISIBLE_SHARE, MIN_VISIBLE_PX = 0.12, 24  # a thing of which less is seen is left out of the picture altogether
DIFFICULT_SHARE, DIFFICULT_SIDE_PX = 0.35, 10  # seen to a smaller share, or with a shorter box side: `difficult`


@dataclass(frozen=True)
class Kind:
    """What all objects of a class share. coarse: texture cycles per unit, low and high; size: long side against other classes."""

    draw: object
    body: paint.Field
    second: paint.Field
    palette: str
    coarse: tuple[float, float]
    size: float
    tilt_degrees: float
    scenes: tuple[str, ...]


_COUNTRY = ("pasture", "forest_path", "badlands")
KINDS = {
    "aeroplane": Kind(things.aeroplane, paint.panels, paint.stripes, "any", (3, 5), 1.3, 25, ("coast", "badlands", "pasture")),
    "bicycle": Kind(things.bicycle, paint.bands, paint.weave, "any", (8, 12), 0.9, 6, ("alley", "forest_path", "highway")),
    "bird": Kind(beings.bird, paint.scales, paint.veins, "any", (5, 9), 0.55, 15, ("coast", "pasture", "forest_path")),
    "boat": Kind(things.boat, paint.planks, paint.stripes, "any", (7, 11), 1.2, 7, ("coast",)),
    "bottle": Kind(things.bottle, paint.plain, paint.chevron, "any", (4, 7), 0.5, 9, ("bedroom", "alley")),
    "bus": Kind(things.bus, paint.flakes, paint.checks, "any", (6, 9), 1.4, 3, ("highway", "alley")),
    "car": Kind(things.car, paint.flakes, paint.flakes, "any", (2, 4), 1.1, 4, ("highway", "alley", "badlands")),
    "cat": Kind(beings.cat, paint.tabby, paint.tabby, "coat", (3.5, 6), 0.6, 6, ("bedroom", "alley", "pasture")),
    "chair": Kind(things.chair, paint.grain, paint.weave, "wood", (5, 8), 0.75, 5, ("bedroom", "alley")),
    "cow": Kind(beings.cow, paint.patches, paint.plain, "coat", (1.5, 3), 1.1, 5, ("pasture",)),
    "diningtable": Kind(things.diningtable, paint.gingham, paint.gingham, "any", (3, 6), 1.1, 3, ("bedroom", "pasture")),
    "dog": Kind(beings.dog, paint.spots, paint.fur, "coat", (3.5, 6), 0.7, 6, ("pasture", "bedroom", "coast", "ski_slope")),
    "horse": Kind(beings.horse, paint.hair, paint.veins, "coat", (2, 3), 1.2, 5, _COUNTRY),
    "motorbike": Kind(things.motorbike, paint.flakes, paint.stripes, "any", (7, 10), 0.95, 8, ("highway", "alley", "badlands")),
    "person": Kind(beings.person, paint.gingham, paint.fur, "any", (4, 8), 1.0, 5, ("alley", "bedroom", "ski_slope", "highway")),
    "pottedplant": Kind(beings.pottedplant, paint.veins, paint.plain, "leaf", (6, 10), 0.75, 5, ("bedroom", "alley")),
    "sheep": Kind(beings.sheep, paint.curls, paint.plain, "wool", (5, 8), 0.8, 5, ("pasture", "badlands", "ski_slope")),
    "sofa": Kind(things.sofa, paint.quilt, paint.dots, "any", (3, 5), 1.2, 3, ("bedroom",)),
    "train": Kind(things.train, paint.bands, paint.bricks, "any", (3.5, 6), 1.6, 3, ("pasture", "ski_slope", "highway")),
    "tvmonitor": Kind(things.tvmonitor, paint.screen, paint.planks, "any", (6, 12), 0.75, 4, ("bedroom",)),
}
CLASSES = tuple(KINDS)
SCENE_NAMES = tuple(SCENES)


@dataclass
class Sprite:
    """A drawn object. rgba (h, w, 4) float32, colours premultiplied; left, top: its corner in the picture, in pixels, maybe outside."""

    rgba: np.ndarray
    left: int
    top: int
    name: str
    pose: str
    group: int = -1


@dataclass
class Seen:
    """An annotated object. mask (H, W) bool: what is seen of it; box: (x0, y0, x1, y1) pixels, end exclusive, of the mask.

    share: seen part of the whole silhouette; truncated: the box misses some of the whole object; group: crowd number or -1.
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
    """The one source of chance for a picture: nothing but the seed, the split's number and the picture's own number."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, split, number))))


def _tones(rng: np.random.Generator, palette: str) -> tuple[np.ndarray, np.ndarray]:
    """Colour tables (2 * PAINTS, 3): the first tone of each paint, and the step to its second. Rows from PAINTS on are its ink."""
    first, step = np.zeros((2 * PAINTS, 3), np.float32), np.zeros((2 * PAINTS, 3), np.float32)
    for slot, kind in ((BODY, palette), (SECOND, palette if palette in ("coat", "leaf") else "any")):
        dark, light = paint.coat_pair(rng, kind)
        first[slot], step[slot] = dark, light - dark
    hue, tint = rng.random(2)
    first[TRIM] = paint.rgb(hue, 0.8, 0.55 + 0.4 * tint)
    first[DARK] = paint.rgb(hue + 0.3, 0.3, 0.14 + 0.2 * tint)
    first[PALE] = paint.rgb(hue, 0.08, 0.82 + 0.16 * tint)
    first[GLASS] = paint.rgb(0.5 + 0.12 * tint, 0.35, 0.3 + 0.55 * rng.random())
    first[SKIN] = paint.rgb(0.05 + 0.03 * tint, 0.3 + 0.3 * hue, 0.35 + 0.6 * rng.random())
    first[BLACK] = 0.09
    first[PAINTS:] = 0.35 * (first[:PAINTS] + 0.3 * step[:PAINTS])
    return first, step


def draw_object(
    name: str, rng: np.random.Generator, long_px: float, centre_x: float, foot_y: float, light: tuple[float, float]
) -> Sprite:
    """Draw one object: `long_px` along its longer side, its foot at (centre_x, foot_y) in picture pixels, lit from `light`."""
    kind, pen = KINDS[name], Pen(rng)
    pose = kind.draw(pen)
    tilt = math.radians(rng.uniform(-1, 1) * kind.tilt_degrees + (rng.uniform(-180, 180) if pose == "Unspecified" and name == "aeroplane" else 0))
    flip = -1.0 if rng.random() < 0.5 else 1.0
    if flip < 0:
        pose = {"Right": "Left"}.get(pose, pose)
    c, s = math.cos(tilt), math.sin(tilt)
    stretch = np.diag([flip * rng.uniform(0.86, 1.14), rng.uniform(0.9, 1.1)])
    matrix = np.array([[c, -s], [s, c]]) @ np.array([[1, rng.uniform(-0.1, 0.1)], [0, 1]]) @ stretch
    joined = np.concatenate([points for points, _, _ in pen.parts]) @ matrix.T
    low, high = joined.min(0), joined.max(0)
    scale = SUPERSAMPLE * long_px / float((high - low).max())
    size = np.ceil((high - low) * scale / SUPERSAMPLE).astype(int) + 2  # w, h in picture pixels, with a margin of one
    joined = (joined - low) * scale + SUPERSAMPLE

    labels = _label_map(pen, joined, size * SUPERSAMPLE, scale)
    rgba = _colour(kind, labels, rng, np.linalg.inv(matrix), scale / SUPERSAMPLE, light)
    return Sprite(rgba, round(centre_x - size[0] / 2), round(foot_y - size[1]), name, pose)


def _label_map(pen: Pen, joined: np.ndarray, size: np.ndarray, scale: float) -> Image.Image:
    """Paint numbers as a grey picture, supersampled; ink outlines are the part's paint + PAINTS."""
    image = Image.new("L", (int(size[0]), int(size[1])))
    draw, at, width = ImageDraw.Draw(image), 0, max(1, round(scale * 0.014))
    flat = joined.ravel().tolist()
    for points, slot, ink in pen.parts:
        xy = flat[2 * at : 2 * (at + len(points))]
        at += len(points)
        draw.polygon(xy, fill=slot)
        if ink and slot != HOLE and scale > 30:
            draw.line(xy + xy[:2], fill=slot + PAINTS, width=width)
    return image


def _coverage(labels: Image.Image, slot: int) -> np.ndarray:
    """Which share of each picture pixel a paint covers, (h, w) float32."""
    table = [0] * 256
    table[slot] = 255
    return np.asarray(labels.point(table).reduce(SUPERSAMPLE), dtype=np.float32) / 255


def _colour(
    kind: Kind, labels: Image.Image, rng: np.random.Generator, inverse: np.ndarray, scale: float, light: tuple[float, float]
) -> np.ndarray:
    """Texture and light on a supersampled label map; scale: pixels per object unit. Returns premultiplied rgba (h, w, 4)."""
    first, step = _tones(rng, kind.palette)
    opaque = np.where(np.arange(2 * PAINTS) % PAINTS != HOLE, 255, 0)[:, None]
    table = np.concatenate([first.clip(0, 1) * opaque, opaque], axis=1).astype(np.uint8)
    body, second = _coverage(labels, BODY), _coverage(labels, SECOND)
    labels.putpalette(table.tobytes(), "RGBA")
    rgba = np.asarray(labels.convert("RGBA").reduce(SUPERSAMPLE), dtype=np.float32) / 255

    h, w = body.shape
    x = ((np.arange(w, dtype=np.float32) - w / 2) / np.float32(scale))[None]
    y = ((np.arange(h, dtype=np.float32) - h / 2) / np.float32(scale))[:, None]
    m = inverse.astype(np.float32)
    u, v = m[0, 0] * x + m[0, 1] * y, m[1, 0] * x + m[1, 1] * y
    shift = rng.random(2).astype(np.float32)
    coarse = rng.uniform(*kind.coarse)
    centred = kind.body in (paint.plain, paint.flakes)
    rgb = rgba[..., :3]
    rgb += (kind.body(u + shift[0], v if centred else v + shift[1], coarse, rng) * body)[..., None] * step[BODY]
    if second.any():
        texture = kind.second(u - shift[1], v + shift[0], coarse * rng.uniform(0.7, 1.1), rng)
        rgb += (texture * second)[..., None] * step[SECOND]
    shade = 1 + np.float32(light[0] * scale / w) * x + np.float32(light[1] * scale / h) * y
    rgb *= shade[..., None]
    np.minimum(rgb, rgba[..., 3:], out=rgb)
    return rgba


def _window(sprite: Sprite, width: int, height: int) -> tuple[slice, slice, slice, slice] | None:
    """Rows and columns of the picture that the sprite covers, then the same of the sprite; None when it lies outside."""
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
    """Paint sprites, given from the farthest to the nearest, over `ground` (H, W, 3), which is changed in place.

    A sprite that is almost hidden is left out. Returns the picture and what is seen of each object, nearest first.
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


def finish(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The camera: exposure, colour cast, vignette, grain. (H, W, 3) float32 -> uint8."""
    h, w = picture.shape[:2]
    gain = rng.uniform(0.95, 1.3) * rng.uniform(0.94, 1.06, 3).astype(np.float32)
    y, x = np.linspace(-1, 1, h, dtype=np.float32)[:, None], np.linspace(-1, 1, w, dtype=np.float32)[None]
    vignette = 1 - np.float32(rng.uniform(0, 0.16)) * (x * x + y * y)
    grain = (rng.random((h, w, 1), dtype=np.float32) - 0.5) * np.float32(rng.uniform(0.01, 0.07))
    return (np.clip(picture * (gain.astype(np.float32) * vignette[..., None]) + grain, 0, 1) * 255 + 0.5).astype(np.uint8)


def place(name: str, rng: np.random.Generator, long_px: float, width: int, height: int, horizon: int, light) -> Sprite:
    """Put one object where its kind belongs: in the air, or standing on the ground, nearer ones lower."""
    x = rng.uniform(0.0, 1.0) * width
    if name == "aeroplane" or (name == "bird" and rng.random() < 0.5):
        foot = rng.uniform(0.1, 0.75) * height + long_px * 0.3
    else:
        near = min(1.0, 0.75 * long_px / (0.7 * height) + rng.uniform(-0.1, 0.35))
        foot = horizon + (1.08 * height - horizon) * max(0.06, near)
    return draw_object(name, rng, long_px, x, foot, light)
