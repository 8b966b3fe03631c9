"""Textures and colours of the sample's objects.

A texture is a field in [0, 1], (h, w), over object coordinates: u to the right and v down, each broadcastable to
(h, w), f cycles per unit, and rng for what is random. It mixes two tones.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

Field = Callable[[np.ndarray, np.ndarray, float, np.random.Generator], np.ndarray]
TAU = np.float32(2 * np.pi)


def noise(rng: np.random.Generator, shape: Sequence[int], cells_y: int, cells_x: int) -> np.ndarray:
    """Smooth noise in [0, 1], float32 of this shape (height, width): cells_y x cells_x random values, enlarged."""
    height, width = shape
    cells = rng.random((max(2, cells_y), max(2, cells_x)), dtype=np.float32)
    return np.asarray(Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC)).clip(0, 1)


def _hard(wave: np.ndarray, gain: float = 2.5) -> np.ndarray:
    """A wave in [-1, 1] as a field in [0, 1] with soft but clear edges."""
    return np.clip(0.5 + 0.5 * gain * wave, 0, 1)


def _cell(x: np.ndarray) -> np.ndarray:
    return x - np.floor(x)


def plain(u, v, f, rng):
    """A vertical gradient."""
    return np.clip(0.5 + 0.5 * v, 0, 1)


def stripes(u, v, f, rng):
    """Stripes across u."""
    return _hard(np.sin(TAU * f * u))


def bands(u, v, f, rng):
    """Stripes across v."""
    return _hard(np.sin(TAU * f * v))


def tabby(u, v, f, rng):
    """Irregular diagonal stripes, as of a tabby cat."""
    bend = noise(rng, u.shape, 5, 5) * 5
    return _hard(np.sin(TAU * f * (u + 0.25 * v) + bend), 1.6)


def dots(u, v, f, rng):
    """Dots in shifted rows."""
    shift = 0.5 * (np.floor(v * f) % 2)
    return np.clip((0.32 - np.hypot(_cell(u * f + shift) - 0.5, _cell(v * f) - 0.5)) * 7 + 0.5, 0, 1)


def checks(u, v, f, rng):
    """A checkerboard."""
    return _hard(np.sin(TAU * f * u) * np.sin(TAU * f * v), 3)


def gingham(u, v, f, rng):
    """Stripes across u and v, added."""
    return 0.5 * (_hard(np.sin(TAU * f * u), 4) + _hard(np.sin(TAU * f * v), 4))


def scales(u, v, f, rng):
    """Overlapping scales."""
    shift = 0.5 * (np.floor(v * f) % 2)
    return np.clip(np.hypot(_cell(u * f + shift) - 0.5, _cell(v * f)) * 1.5 - 0.25, 0, 1)


def bricks(u, v, f, rng):
    """The joints of brickwork."""
    shift = 0.5 * (np.floor(v * f) % 2)
    return np.where((_cell(u * f * 0.5 + shift) < 0.1) | (_cell(v * f) < 0.2), np.float32(1), np.float32(0))


def planks(u, v, f, rng):
    """Boards with a grain."""
    grain = noise(rng, u.shape, max(8, u.shape[0] // 4), 4)
    return np.clip(0.55 * grain + 0.9 * (_cell(v * f) < 0.18), 0, 1)


def grain(u, v, f, rng):
    """The grain of wood."""
    wobble = noise(rng, u.shape, 6, 3)
    return _hard(np.sin(TAU * f * (v + 0.6 * wobble) + 2 * u), 1.2)


def patches(u, v, f, rng):
    """Large patches, as of a cow."""
    cells = max(3, int(2 * f))
    return np.clip((noise(rng, u.shape, cells, cells) - 0.5) * 14 + 0.5, 0, 1)


def fur(u, v, f, rng):
    """Short fur."""
    return noise(rng, u.shape, max(6, u.shape[0] // 12), max(8, u.shape[1] // 5))


def hair(u, v, f, rng):
    """Long hair."""
    return 0.25 + 0.4 * noise(rng, u.shape, max(8, u.shape[0] // 4), max(4, u.shape[1] // 28))


def spots(u, v, f, rng):
    """Irregular spots."""
    wide, wobble = noise(rng, u.shape, 7, 7), noise(rng, u.shape, 6, 6)
    x, y = _cell(u * f + wide * 0.9) - 0.5, _cell(v * f + wobble * 0.9) - 0.5
    return np.clip((0.3 - np.hypot(x, y)) * 8 + 0.5, 0, 1)


def curls(u, v, f, rng):
    """Curls of wool."""
    shift = 0.5 * (np.floor(v * f) % 2)
    wobble = noise(rng, u.shape, 8, 8)
    far = np.hypot(_cell(u * f + shift + wobble * 0.6) - 0.5, _cell(v * f + wobble * 0.6) - 0.5)
    return 0.5 + 0.5 * np.sin(far * 15)


def quilt(u, v, f, rng):
    """Diagonal seams."""
    a, b = _cell((u + v) * f), _cell((u - v) * f)
    return np.clip(1 - 5 * np.minimum(np.minimum(a, 1 - a), np.minimum(b, 1 - b)), 0, 1)


def chevron(u, v, f, rng):
    """Zigzag stripes."""
    return _hard(np.sin(TAU * f * (v + 0.5 * np.abs(_cell(u * f * 0.5) - 0.5))), 3)


def weave(u, v, f, rng):
    """A woven pattern."""
    over = (np.floor(u * f) + np.floor(v * f)) % 2
    return np.where(over > 0, 0.5 + 0.5 * np.sin(TAU * 2 * f * u), 0.5 + 0.5 * np.sin(TAU * 2 * f * v))


def panels(u, v, f, rng):
    """Metal panels with seams."""
    seams = (_cell(u * f) < 0.1) | (_cell(v * f * 1.5) < 0.12)
    return np.clip(0.8 * seams + 0.3 * np.abs(v), 0, 1).astype(np.float32)


def flakes(u, v, f, rng):
    """Glossy paint with fine grain."""
    shine = np.exp(-(((v + 0.12) * 7) ** 2))
    return np.clip(0.8 * shine + 0.16 * rng.random(u.shape, dtype=np.float32), 0, 1)


def screen(u, v, f, rng):
    """A screen with scan lines."""
    content = noise(rng, u.shape, 4, 5)
    return np.clip(1.6 * content - 0.3, 0, 1) * (0.65 + 0.35 * np.sin(TAU * f * v))


def veins(u, v, f, rng):
    """The veins of a leaf."""
    return _hard(np.sin(TAU * f * (v + np.abs(u) * 0.8)), 1.2)


def rgb(hue: float, saturation: float, value: float) -> np.ndarray:
    """Convert HSV, each in [0, 1] with a hue that wraps, to RGB, (3,) float32 in [0, 1]."""
    clip = (hue % 1.0, min(max(saturation, 0.0), 1.0), min(max(value, 0.0), 1.0))
    return np.array(colorsys.hsv_to_rgb(*clip), dtype=np.float32)


def coat_pair(rng: np.random.Generator, palette: str) -> tuple[np.ndarray, np.ndarray]:
    """Two tones for a texture, far apart in lightness, (3,) float32 in [0, 1] each.

    Args:
        rng: The source of randomness.
        palette: `any`, `coat` (of animals), `leaf`, `wood` or `wool`.
    """
    hue, sat, value = rng.random(3)
    if palette == "coat" and rng.random() < 0.85:
        hue, sat = 0.05 + 0.07 * hue, 0.7 * sat
    elif palette == "leaf" and rng.random() < 0.9:
        hue, sat = 0.2 + 0.22 * hue, 0.4 + 0.5 * sat
    elif palette == "wood" and rng.random() < 0.6:
        hue, sat = 0.04 + 0.08 * hue, 0.3 + 0.5 * sat
    elif palette == "wool":
        hue, sat, value = 0.06 + 0.1 * hue, 0.25 * sat, 0.45 + 0.55 * value
    else:
        sat = 0.15 + 0.8 * sat
    low, high = 0.18 + 0.3 * value, 0.62 + 0.38 * rng.random()
    if palette == "wool":
        low, high = 0.4 + 0.2 * value, 0.85 + 0.15 * value
    dark = rgb(hue, sat, low)
    light = rgb(hue + rng.uniform(-0.12, 0.12), sat * rng.uniform(0.15, 0.9), high)
    return (dark, light) if rng.random() < 0.5 or palette == "wool" else (light, dark)
