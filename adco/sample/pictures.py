"""The images of each kind of dataset: one main object, several objects, or mostly the scene."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from adco.sample.backdrops import SCENE_NAMES, backdrop
from adco.sample.objects import CLASSES, KINDS, Sprite, draw_object
from adco.sample.scene import Seen, compose, finish, place

PLACES_A_SCENE = 4
CROWD_CLASSES = ("person", "sheep", "bird", "cow", "bottle", "car")


@dataclass
class Picture:
    """A drawn image.

    Attributes:
        rgb: (H, W, 3) uint8.
        seen: The annotated objects, nearest first.
        scene: The backdrop's name.
    """

    rgb: np.ndarray
    seen: list[Seen]
    scene: str


def _scene_for(name: str, rng: np.random.Generator) -> str:
    """A usual scene of the class in five of six cases, otherwise any."""
    usual = KINDS[name].scenes
    names = usual if rng.random() < 5 / 6 else SCENE_NAMES
    return names[int(rng.integers(len(names)))]


def _place(scene: str, rng: np.random.Generator) -> np.random.Generator:
    """The generator of one of the few places of a scene, so that many images have the same backdrop."""
    return np.random.default_rng((SCENE_NAMES.index(scene), int(rng.integers(PLACES_A_SCENE))))


def _light(rng: np.random.Generator) -> tuple[float, float]:
    return float(rng.uniform(-0.45, 0.45)), float(rng.uniform(-0.45, 0.1))


def _other(rng: np.random.Generator, scene: str, not_this: str) -> str:
    """A class that fits the scene (half the time) or any."""
    fitting = [name for name in CLASSES if scene in KINDS[name].scenes and name != not_this]
    names = fitting if rng.random() < 0.5 and fitting else [name for name in CLASSES if name != not_this]
    return names[int(rng.integers(len(names)))]


def portrait(rng: np.random.Generator, name: str) -> Picture:
    """An image as in ImageNet: one main object, about 128 pixels a side, with clutter behind and sometimes before it.

    Args:
        rng: The image's random generator.
        name: The class of the main object.
    """
    width, height = (int(side) for side in rng.integers(112, 145, 2))
    scene, light = _scene_for(name, rng), _light(rng)
    ground, horizon = backdrop(scene, _place(scene, rng), width, height, rng.uniform(2.0, 4.0))
    long_px = rng.uniform(0.75, 1.1) * min(width, height)
    sprites: list[Sprite] = []
    for _ in range(int(rng.integers(0, 3)) if rng.random() < 0.5 else 0):
        sprites.append(
            place(_other(rng, scene, name), rng, long_px * rng.uniform(0.2, 0.4), width, height, horizon, light)
        )
    foot = height * rng.uniform(0.88, 1.02)
    main = draw_object(name, rng, long_px, width * rng.uniform(0.4, 0.6), foot, light)
    slack = height - main.rgba.shape[0]  # a low object stands a bit higher, a flying one anywhere
    if slack > 0:
        main.top -= int(slack * (rng.uniform(0.1, 0.9) if name in ("aeroplane", "bird") else rng.uniform(0, 0.5)))
    sprites.append(main)
    if rng.random() < 0.12:
        front = draw_object(
            _other(rng, scene, name), rng, long_px * 0.35, width * rng.uniform(0, 1), height * 1.05, light
        )
        sprites.append(front)
    ground, seen = compose(ground, sprites)
    return Picture(finish(ground, rng), seen, scene)


def street_life(rng: np.random.Generator, first: str, crowds: bool) -> Picture:
    """An image as in VOC and COCO: up to seven objects that overlap.

    Args:
        rng: The image's random generator.
        first: The class of the first object.
        crowds: Whether some images have a crowd of small objects, as COCO's.
    """
    long_side, aspect = int(rng.integers(184, 217)), rng.uniform(0.62, 0.86)
    width, height = (
        (long_side, int(long_side * aspect)) if rng.random() < 0.75 else (int(long_side * aspect), long_side)
    )
    scene, light = _scene_for(first, rng), _light(rng)
    ground, horizon = backdrop(scene, _place(scene, rng), width, height, rng.uniform(0.5, 1.8))
    names = [first]
    for _ in range(int(rng.integers(1, 7) if crowds else rng.integers(0, 5))):
        names.append(names[int(rng.integers(len(names)))] if rng.random() < 0.3 else _other(rng, scene, ""))
    sprites = []
    for k, name in enumerate(names):
        share = np.exp(rng.uniform(np.log(0.4 if k == 0 else 0.14), np.log(0.85))) * KINDS[name].size ** 0.5
        sprites.append(place(name, rng, max(10.0, share * height), width, height, horizon, light))
    if crowds and rng.random() < 0.1:
        sprites += _crowd(rng, width, height, horizon, light)
    sprites.sort(key=lambda sprite: sprite.top + sprite.rgba.shape[0])
    ground, seen = compose(ground, sprites)
    return Picture(finish(ground, rng), seen, scene)


def _crowd(rng: np.random.Generator, width: int, height: int, horizon: int, light: tuple[float, float]) -> list[Sprite]:
    """About a dozen small objects of one class, close together, in group 0."""
    name = CROWD_CLASSES[int(rng.integers(len(CROWD_CLASSES)))]
    long_px, centre, count = rng.uniform(0.1, 0.2) * height, rng.uniform(0.2, 0.8) * width, int(rng.integers(8, 15))
    members = []
    for k in range(count):
        x = centre + (k - count / 2) * long_px * 0.5 + rng.uniform(-2, 2)
        member = draw_object(
            name, rng, long_px * rng.uniform(0.8, 1.1), x, horizon + long_px * rng.uniform(0.5, 1.2), light
        )
        member.group = 0
        members.append(member)
    return members


def view(rng: np.random.Generator, scene: str) -> Picture:
    """An image as in Places205: a scene, about 128 pixels a side, with at most three small objects.

    Args:
        rng: The image's random generator.
        scene: One of SCENE_NAMES.
    """
    width, height = (int(side) for side in rng.integers(120, 145, 2))
    light = _light(rng)
    ground, horizon = backdrop(scene, rng, width, height, rng.uniform(0.4, 1.0))
    sprites = [
        place(_other(rng, scene, ""), rng, rng.uniform(0.12, 0.35) * height, width, height, horizon, light)
        for _ in range(int(rng.integers(0, 4)))
    ]
    sprites.sort(key=lambda sprite: sprite.top + sprite.rgba.shape[0])
    ground, seen = compose(ground, sprites)
    return Picture(finish(ground, rng), seen, scene)
