"""The sample's 20 classes, and how one object of a class is drawn: silhouette, colours, texture, light."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce

import numpy as np
from PIL import Image, ImageDraw

from adco.sample import animals, household, paint, vehicles
from adco.sample.shapes import BLACK, BODY, DARK, GLASS, HOLE, PAINTS, PALE, SECOND, SKIN, TRIM, Pen

SUPERSAMPLE = 2


@dataclass(frozen=True)
class ObjectKind:
    """What the objects of a class have in common.

    Attributes:
        draw: Draws the silhouette and returns VOC's word for the pose.
        body: The texture of the main part.
        second: The texture of the second part.
        palette: The palette of both (`paint.coat_pair`).
        coarse: Texture cycles per unit, lowest and highest.
        size: The long side relative to other classes.
        tilt_degrees: The largest rotation.
        scenes: Its usual scenes.
    """

    draw: Callable[[Pen], str]
    body: paint.Field
    second: paint.Field
    palette: str
    coarse: tuple[float, float]
    size: float
    tilt_degrees: float
    scenes: tuple[str, ...]


_COUNTRY = ("pasture", "forest_path", "badlands")
KINDS = {
    "aeroplane": ObjectKind(
        vehicles.aeroplane, paint.panels, paint.stripes, "any", (3, 5), 1.3, 25, ("coast", "badlands", "pasture")
    ),
    "bicycle": ObjectKind(
        vehicles.bicycle, paint.bands, paint.weave, "any", (8, 12), 0.9, 6, ("alley", "forest_path", "highway")
    ),
    "bird": ObjectKind(
        animals.bird, paint.scales, paint.veins, "any", (5, 9), 0.55, 15, ("coast", "pasture", "forest_path")
    ),
    "boat": ObjectKind(vehicles.boat, paint.planks, paint.stripes, "any", (7, 11), 1.2, 7, ("coast",)),
    "bottle": ObjectKind(household.bottle, paint.plain, paint.chevron, "any", (4, 7), 0.5, 9, ("bedroom", "alley")),
    "bus": ObjectKind(vehicles.bus, paint.flakes, paint.checks, "any", (6, 9), 1.4, 3, ("highway", "alley")),
    "car": ObjectKind(
        vehicles.car, paint.flakes, paint.flakes, "any", (2, 4), 1.1, 4, ("highway", "alley", "badlands")
    ),
    "cat": ObjectKind(animals.cat, paint.tabby, paint.tabby, "coat", (3.5, 6), 0.6, 6, ("bedroom", "alley", "pasture")),
    "chair": ObjectKind(household.chair, paint.grain, paint.weave, "wood", (5, 8), 0.75, 5, ("bedroom", "alley")),
    "cow": ObjectKind(animals.cow, paint.patches, paint.plain, "coat", (1.5, 3), 1.1, 5, ("pasture",)),
    "diningtable": ObjectKind(
        household.diningtable, paint.gingham, paint.gingham, "any", (3, 6), 1.1, 3, ("bedroom", "pasture")
    ),
    "dog": ObjectKind(
        animals.dog, paint.spots, paint.fur, "coat", (3.5, 6), 0.7, 6, ("pasture", "bedroom", "coast", "ski_slope")
    ),
    "horse": ObjectKind(animals.horse, paint.hair, paint.veins, "coat", (2, 3), 1.2, 5, _COUNTRY),
    "motorbike": ObjectKind(
        vehicles.motorbike, paint.flakes, paint.stripes, "any", (7, 10), 0.95, 8, ("highway", "alley", "badlands")
    ),
    "person": ObjectKind(
        household.person, paint.gingham, paint.fur, "any", (4, 8), 1.0, 5, ("alley", "bedroom", "ski_slope", "highway")
    ),
    "pottedplant": ObjectKind(
        household.pottedplant, paint.veins, paint.plain, "leaf", (6, 10), 0.75, 5, ("bedroom", "alley")
    ),
    "sheep": ObjectKind(
        animals.sheep, paint.curls, paint.plain, "wool", (5, 8), 0.8, 5, ("pasture", "badlands", "ski_slope")
    ),
    "sofa": ObjectKind(household.sofa, paint.quilt, paint.dots, "any", (3, 5), 1.2, 3, ("bedroom",)),
    "train": ObjectKind(
        vehicles.train, paint.bands, paint.bricks, "any", (3.5, 6), 1.6, 3, ("pasture", "ski_slope", "highway")
    ),
    "tvmonitor": ObjectKind(household.tvmonitor, paint.screen, paint.planks, "any", (6, 12), 0.75, 4, ("bedroom",)),
}
CLASSES = tuple(KINDS)


@dataclass
class Sprite:
    """A drawn object.

    Attributes:
        rgba: (h, w, 4) float32, premultiplied by the opacity.
        left: The column of its upper left corner in the image.
        top: The row of that corner.
        name: The class.
        pose: VOC's word for the pose.
        group: The number of its crowd, or -1.
    """

    rgba: np.ndarray
    left: int
    top: int
    name: str
    pose: str
    group: int = -1


def _livery(name: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The colours of one object: seven times in eight one of its class's two usual liveries, a little worn."""
    if rng.random() < 1 / 8:
        return _tones(rng, KINDS[name].palette)
    usual = np.random.default_rng((CLASSES.index(name), int(rng.integers(2))))
    first, step = _tones(usual, KINDS[name].palette)
    wear = rng.uniform(0.88, 1.12, 3).astype(np.float32)
    return first * wear, step * wear


def _tones(rng: np.random.Generator, palette: str) -> tuple[np.ndarray, np.ndarray]:
    """Colour tables (2 * PAINTS, 3): each paint's first tone, the step to its second; inks follow from row PAINTS."""
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
    """Draw one object.

    Args:
        name: The class.
        rng: The source of randomness.
        long_px: The length of its longer side in pixels.
        centre_x: The column of its centre in the image.
        foot_y: The row of its lower end.
        light: How the brightness changes along x and y, over the whole object.
    """
    kind, pen = KINDS[name], Pen(rng)
    pose = kind.draw(pen)
    from_above = name == "aeroplane" and pose == "Unspecified"
    tilt = math.radians(rng.uniform(-1, 1) * (180 if from_above else kind.tilt_degrees))
    flip = -1.0 if rng.random() < 0.5 else 1.0
    if flip < 0:
        pose = {"Right": "Left"}.get(pose, pose)
    c, s = math.cos(tilt), math.sin(tilt)
    stretch = np.diag([flip * rng.uniform(0.86, 1.14), rng.uniform(0.9, 1.1)])
    matrix = np.array([[c, -s], [s, c]]) @ np.array([[1, rng.uniform(-0.1, 0.1)], [0, 1]]) @ stretch
    joined = np.concatenate([points for points, _, _ in pen.parts]) @ matrix.T
    low, high = joined.min(0), joined.max(0)
    scale = SUPERSAMPLE * long_px / float((high - low).max())
    size = (
        np.ceil((high - low) * scale / SUPERSAMPLE).astype(int) + 2
    )  # w, h in pixels of the image, with a margin of one
    joined = (joined - low) * scale + SUPERSAMPLE

    labels = _label_map(pen, joined, size * SUPERSAMPLE, scale)
    rgba = _colour(kind, _livery(name, rng), labels, rng, np.linalg.inv(matrix), scale / SUPERSAMPLE, light)
    return Sprite(rgba, round(centre_x - size[0] / 2), round(foot_y - size[1]), name, pose)


def _label_map(pen: Pen, joined: np.ndarray, size: np.ndarray, scale: float) -> Image.Image:
    """A supersampled grey image of paint numbers; an outline in ink has its part's paint + PAINTS."""
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
    """The share of each pixel that a paint covers, (h, w) float32."""
    hit = (np.asarray(labels) == slot).view(np.uint8)
    cells = [hit[i::SUPERSAMPLE, j::SUPERSAMPLE] for i in range(SUPERSAMPLE) for j in range(SUPERSAMPLE)]
    return reduce(np.add, cells).astype(np.float32) / SUPERSAMPLE**2


def _colour(
    kind: ObjectKind,
    tones: tuple[np.ndarray, np.ndarray],
    labels: Image.Image,
    rng: np.random.Generator,
    inverse: np.ndarray,
    scale: float,
    light: tuple[float, float],
) -> np.ndarray:
    """Colours, texture and light on a supersampled map of paints; scale: pixels per unit.

    Returns premultiplied rgba, (h, w, 4) float32.
    """
    first, step = tones
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
