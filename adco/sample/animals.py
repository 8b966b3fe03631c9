"""The sample's animals, drawn facing right. Each function draws with the pen and returns VOC's word for the pose."""

from __future__ import annotations

import math

from adco.sample.shapes import BLACK, BODY, DARK, PALE, SECOND, SKIN, TRIM, Pen


def _legs(p: Pen, paint: int, xs: tuple[float, ...], top: float, low: float, wide: float, hoof: int | None) -> None:
    """Four legs: the far pair (first two) a little shorter, each with a knee and a random stride."""
    for i, x in enumerate(xs):
        foot = low - (0.05 if i < 2 else 0.0)
        stride, bend = p.r(-0.12, 0.12), p.r(-0.05, 0.05)
        knee = (x + stride * 0.4 + bend, (top + foot) / 2)
        p.limb(paint, (x, top), knee, wide * 1.25, wide * 0.9)
        p.limb(paint, knee, (x + stride, foot), wide * 0.85, wide * 0.7)
        if hoof is not None:
            p.limb(hoof, (x + stride, foot), (x + stride + 0.04, foot + 0.01), wide * 0.8, ink=False)


def bird(p: Pen) -> str:
    """Draw a bird."""
    if p.chance(0.35):
        return _bird_flying(p)
    plump, lift = p.r(0.26, 0.36), p.r(0.0, 0.2)
    for x in (0.0, 0.14):
        p.limb(TRIM, (x, 0.25), (x + 0.03, 0.62), 0.04)
        p.limb(TRIM, (x - 0.05, 0.62), (x + 0.14, 0.62), 0.035, ink=False)
    p.poly(SECOND, (-0.35, -0.02), (-1.05, 0.1 - lift), (-1.0, 0.28 - lift), (-0.35, 0.2))
    p.blob(BODY, (-0.55, 0.05), (-0.1, -plump), (0.25, -0.42), (0.5, -0.2), (0.45, 0.12), (0.1, plump), (-0.3, 0.24))
    p.ell(BODY, 0.42, -0.42, p.r(0.2, 0.26))
    p.poly(TRIM, (0.58, -0.52), (0.58 + p.r(0.2, 0.4), -0.4), (0.6, -0.33))
    p.ell(BLACK, 0.49, -0.48, 0.045, ink=False)
    p.blob(SECOND, (0.2, -0.12), (0.16, 0.12), (-0.2, 0.2), (-0.72, 0.12), (-0.3, -0.08), (0.0, -0.2))
    if p.chance(0.35):
        p.poly(SECOND, (0.3, -0.6), (0.18, -0.85), (0.5, -0.64))
    return "Right"


def _bird_flying(p: Pen) -> str:
    up, span = p.r(0.5, 0.9), p.r(0.5, 0.75)
    p.poly(SECOND, (0.15, -0.05), (0.3 + span * 0.4, -up), (0.0, -up * 0.85), (-0.2, 0))
    p.poly(SECOND, (-0.4, -0.02), (-0.95, -0.15), (-0.98, 0.14))
    p.blob(BODY, (-0.6, 0), (-0.1, -0.17), (0.4, -0.18), (0.62, -0.12), (0.45, 0.08), (0, 0.18), (-0.4, 0.08))
    p.ell(BODY, 0.58, -0.12, 0.17)
    p.poly(TRIM, (0.7, -0.2), (0.98, -0.1), (0.7, -0.04))
    p.ell(BLACK, 0.63, -0.17, 0.035, ink=False)
    p.blob(
        SECOND, (0.2, -0.06), (0.0, -up * 0.7), (-span, -up), (-span * 1.1, -up * 0.7), (-span * 0.7, -up * 0.3),
        (-0.3, 0.06),
    )  # fmt: skip
    return "Right"


def cat(p: Pen) -> str:
    """Draw a cat."""
    if p.chance(0.5):
        return _cat_sitting(p)
    curl = p.r(0.25, 0.4)
    spine = [(-0.55 - curl * math.sin(0.33 * k), -0.05 - 0.16 * k) for k in range(6)]
    for start, end in zip(spine, spine[1:], strict=False):
        p.limb(BODY, start, end, 0.1)
    _legs(p, BODY, (-0.42, 0.3, -0.5, 0.38), 0.15, 0.6, 0.12, None)
    p.blob(
        BODY, (-0.66, 0.02), (-0.5, -0.18), (0.0, -0.14), (0.42, -0.2), (0.52, 0.08), (0.3, 0.26), (-0.1, 0.22),
        (-0.5, 0.28),
    )  # fmt: skip
    _cat_head(p, 0.62, p.r(-0.4, -0.22), p.r(0.23, 0.28))
    return "Right"


def _cat_head(p: Pen, x: float, y: float, r: float) -> None:
    for side in (-1, 1):
        p.poly(
            BODY,
            (x + side * r * 0.2, y - r * 0.75),
            (x + side * r * 0.8, y - r * 1.65),
            (x + side * r * 0.98, y - r * 0.2),
        )
        p.poly(
            SKIN,
            (x + side * r * 0.45, y - r * 0.85),
            (x + side * r * 0.75, y - r * 1.3),
            (x + side * r * 0.84, y - r * 0.55),
            ink=False,
        )
    p.ell(BODY, x, y, r * 1.12, r * 0.95)
    p.ell(PALE, x, y + r * 0.42, r * 0.5, r * 0.36, ink=False)
    for side in (-1, 1):
        p.ell(TRIM, x + side * r * 0.45, y - r * 0.1, r * 0.24, r * 0.26)
        p.ell(BLACK, x + side * r * 0.45, y - r * 0.1, r * 0.08, r * 0.22, ink=False)
        for k in (-1, 1):
            p.limb(
                BLACK,
                (x + side * r * 0.3, y + r * 0.4),
                (x + side * r * 1.5, y + r * (0.4 + 0.2 * k)),
                r * 0.05,
                ink=False,
            )
    p.poly(SKIN, (x - r * 0.15, y + r * 0.2), (x + r * 0.15, y + r * 0.2), (x, y + r * 0.38), ink=False)


def _cat_sitting(p: Pen) -> str:
    wide = p.r(0.36, 0.46)
    for k in range(6):
        a = 0.4 * k
        p.limb(
            BODY,
            (wide * 0.6 + 0.28 * math.sin(a), 0.72 - 0.14 * k),
            (wide * 0.6 + 0.28 * math.sin(a + 0.4), 0.58 - 0.14 * k),
            0.11,
        )
    p.blob(
        BODY, (0, -0.3), (0.22, -0.1), (wide, 0.45), (wide * 0.9, 0.8), (0, 0.84), (-wide * 0.9, 0.8), (-wide, 0.45),
        (-0.22, -0.1),
    )  # fmt: skip
    p.ell(PALE, 0, 0.15, 0.13, 0.24, ink=False)
    for side in (-1, 1):
        p.limb(BODY, (side * 0.12, 0.2), (side * 0.13, 0.74), 0.14)
        p.ell(PALE, side * 0.15, 0.8, 0.11, 0.07)
    _cat_head(p, p.r(-0.06, 0.06), -0.46, p.r(0.28, 0.34))
    return "Frontal"


def cow(p: Pen) -> str:
    """Draw a cow."""
    grazing = p.chance(0.35)
    p.limb(BODY, (-0.82, -0.3), (-0.95, 0.15), 0.05)
    p.ell(DARK, -0.96, 0.22, 0.06, 0.12)
    _legs(p, BODY, (-0.5, 0.42, -0.65, 0.55), 0.18, 0.74, 0.15, BLACK)
    p.ell(SKIN, -0.3, 0.28, 0.17, 0.12)
    p.blob(
        BODY, (-0.86, -0.3), (-0.6, -0.46), (0.0, -0.38), (0.5, -0.5), (0.78, -0.3), (0.7, 0.15), (0.3, 0.3),
        (-0.3, 0.28), (-0.8, 0.18),
    )  # fmt: skip
    x, y = (1.0, 0.1) if grazing else (1.0, -0.5)
    p.limb(BODY, (0.62, -0.26), (x - 0.08, y), 0.4, 0.28)
    turn = 0.9 if grazing else p.r(0.2, 0.6)
    for side in (-1, 1):
        p.limb(PALE, (x - 0.05 + side * 0.09, y - 0.15), (x - 0.02 + side * 0.2, y - 0.36), 0.07, 0.03)
        p.ell(BODY, x - 0.06 + side * 0.22, y - 0.1, 0.13, 0.06, turn=side * 0.3)
    p.ell(BODY, x, y, 0.26, 0.18, turn=turn)
    p.ell(SKIN, x + 0.2 * math.cos(turn), y + 0.2 * math.sin(turn), 0.13, 0.15, turn=turn)
    p.ell(BLACK, x + 0.02, y - 0.05, 0.035, ink=False)
    p.ell(BLACK, x + 0.26 * math.cos(turn), y + 0.22 * math.sin(turn), 0.022, ink=False)
    return "Right"


def dog(p: Pen) -> str:
    """Draw a dog."""
    if p.chance(0.35):
        return _dog_sitting(p)
    high = p.r(-0.5, -0.35)
    p.limb(BODY, (-0.6, -0.12), (-0.88, -p.r(0.2, 0.55)), 0.13, 0.06)
    _legs(p, BODY, (-0.42, 0.32, -0.52, 0.42), 0.15, 0.68, 0.13, PALE)
    p.blob(
        BODY, (-0.68, -0.08), (-0.45, -0.22), (0.1, -0.16), (0.5, -0.3), (0.6, 0.0), (0.4, 0.26), (0.0, 0.12),
        (-0.45, 0.2),
    )  # fmt: skip
    p.limb(BODY, (0.46, -0.12), (0.6, high), 0.28, 0.24)
    p.limb(TRIM, (0.44, -0.28), (0.66, -0.2), 0.07)
    _dog_head(p, 0.66, high - 0.06, p.r(0.9, 1.15))
    return "Right"


def _dog_head(p: Pen, x: float, y: float, s: float) -> None:
    p.blob(
        BODY, (x - 0.2 * s, y - 0.16 * s), (x + 0.08 * s, y - 0.2 * s), (x + 0.24 * s, y - 0.06 * s), (x + 0.5 * s, y),
        (x + 0.48 * s, y + 0.14 * s), (x + 0.1 * s, y + 0.2 * s), (x - 0.2 * s, y + 0.12 * s),
    )  # fmt: skip
    p.ell(BLACK, x + 0.5 * s, y + 0.02 * s, 0.06 * s, 0.05 * s, ink=False)
    p.ell(BLACK, x + 0.12 * s, y - 0.07 * s, 0.035 * s, ink=False)
    if p.chance(0.5):
        p.poly(SKIN, (x + 0.3 * s, y + 0.14 * s), (x + 0.42 * s, y + 0.14 * s), (x + 0.38 * s, y + 0.3 * s), ink=False)
    p.blob(
        SECOND, (x - 0.16 * s, y - 0.18 * s), (x + 0.0 * s, y - 0.12 * s), (x - 0.02 * s, y + 0.2 * s),
        (x - 0.14 * s, y + 0.28 * s), (x - 0.24 * s, y + 0.1 * s),
    )  # fmt: skip


def _dog_sitting(p: Pen) -> str:
    p.limb(BODY, (-0.5, 0.6), (-0.85, p.r(0.1, 0.5)), 0.14, 0.07)
    p.limb(BODY, (0.18, 0.1), (0.24, 0.72), 0.15, 0.12)
    p.blob(
        BODY, (0.05, -0.5), (0.34, -0.3), (0.36, 0.1), (0.2, 0.5), (-0.1, 0.74), (-0.55, 0.72), (-0.6, 0.4),
        (-0.35, 0.05), (-0.12, -0.3),
    )  # fmt: skip
    p.ell(BODY, -0.3, 0.52, 0.27, 0.24)
    p.limb(BODY, (-0.2, 0.72), (0.06, 0.74), 0.12)
    p.limb(BODY, (0.24, 0.05), (0.34, 0.72), 0.16, 0.12)
    p.limb(TRIM, (0.02, -0.36), (0.34, -0.28), 0.08)
    _dog_head(p, 0.18, -0.56, p.r(1.0, 1.2))
    return "Right"


def horse(p: Pen) -> str:
    """Draw a horse."""
    up = p.r(0.75, 0.95)
    p.blob(SECOND, (-0.68, -0.25), (-0.86, -0.2), (-0.98, 0.15), (-0.92, 0.5), (-0.78, 0.2))
    _legs(p, BODY, (-0.48, 0.38, -0.6, 0.5), 0.1, 0.95, 0.13, BLACK)
    p.blob(
        BODY, (-0.75, -0.1), (-0.6, -0.34), (-0.1, -0.26), (0.4, -0.36), (0.62, -0.15), (0.5, 0.16), (0.0, 0.16),
        (-0.5, 0.18),
    )  # fmt: skip
    p.poly(BODY, (0.28, -0.3), (0.62, -up), (0.9, -up + 0.12), (0.64, 0.0))
    p.blob(SECOND, (0.2, -0.34), (0.36, -0.7), (0.6, -up - 0.14), (0.7, -up), (0.52, -0.5), (0.4, -0.25))
    for x in (0.62, 0.72):
        p.poly(BODY, (x, -up + 0.02), (x + 0.04, -up - 0.2), (x + 0.12, -up + 0.04))
    p.blob(
        BODY, (0.62, -up - 0.02), (0.82, -up - 0.02), (1.14, -up + 0.36), (1.12, -up + 0.48), (1.0, -up + 0.5),
        (0.74, -up + 0.26),
    )  # fmt: skip
    p.ell(BLACK, 0.83, -up + 0.12, 0.04, ink=False)
    p.ell(BLACK, 1.08, -up + 0.4, 0.025, ink=False)
    if p.chance(0.35):
        p.blob(TRIM, (-0.22, -0.32), (0.1, -0.3), (0.22, -0.36), (0.16, 0.0), (-0.12, 0.0))
    return "Right"


def sheep(p: Pen) -> str:
    """Draw a sheep."""
    grazing = p.chance(0.4)
    _legs(p, BLACK, (-0.35, 0.3, -0.45, 0.4), 0.2, 0.66, 0.11, None)
    rx, ry, count = p.r(0.58, 0.68), p.r(0.34, 0.4), 13
    for k in range(count):
        a = 2 * math.pi * k / count
        p.ell(BODY, rx * 0.92 * math.cos(a), ry * 0.9 * math.sin(a) - 0.05, p.r(0.15, 0.19))
    p.ell(BODY, 0, -0.05, rx, ry, ink=False)
    x, y = (0.78, 0.22) if grazing else (0.76, -0.3)
    turn = p.r(0.9, 1.2) if grazing else p.r(0.4, 0.8)
    for side in (-1, 1):
        p.ell(DARK, x - 0.08 + side * 0.14, y - 0.07, 0.12, 0.05, turn=side * 0.5)
    p.ell(DARK, x, y, 0.22, 0.15, turn=turn)
    p.ell(PALE, x + 0.03, y - 0.06, 0.045, ink=False)
    p.ell(BLACK, x + 0.04, y - 0.06, 0.022, ink=False)
    for dx, dy in ((-0.14, -0.15), (-0.02, -0.2), (-0.2, -0.06)):
        p.ell(BODY, x + dx, y + dy, 0.1)
    return "Right"
