"""The sample's vehicles, drawn facing right. Each function draws with the pen and returns VOC's word for the pose."""

from __future__ import annotations

import math

from adco.sample.shapes import BLACK, BODY, DARK, GLASS, HOLE, PALE, SECOND, TRIM, Pen


def aeroplane(p: Pen) -> str:
    """Draw an aeroplane."""
    if p.chance(0.4):
        return _aeroplane_from_above(p)
    fat, sweep, drop = p.r(0.11, 0.15), p.r(0.3, 0.5), p.r(0.25, 0.42)
    p.poly(SECOND, (0.1, -0.02), (-0.12, -0.02), (-0.12 - sweep, -drop), (-0.26 - sweep * 0.6, -drop))
    p.poly(SECOND, (-0.66, -0.05), (-0.98, -p.r(0.42, 0.52)), (-1.1, -0.45), (-0.98, -0.04))
    p.blob(
        BODY,
        (1, 0.03),
        (0.86, -fat * 0.7),
        (0.6, -fat),
        (-0.5, -fat),
        (-1.05, -0.09),
        (-1.02, -0.01),
        (-0.5, fat * 0.8),
        (0.7, fat),
    )
    p.poly(GLASS, (0.8, -fat * 0.75), (0.93, -0.02), (0.76, -0.02), ink=False)
    for i in range(9):
        p.box(DARK, 0.56 - i * 0.13, -0.06, 0.63 - i * 0.13, 0.0, 0.02, ink=False)
    p.ell(DARK, 0.12, 0.17, 0.15, 0.065)
    p.poly(TRIM, (0.26, 0.04), (-0.12, 0.04), (-0.3 - sweep, drop + 0.05), (-0.12 - sweep, drop + 0.05))
    p.poly(TRIM, (-0.72, -0.02), (-0.92, -0.02), (-1.12, 0.12), (-1.0, 0.12))
    return "Right"


def _aeroplane_from_above(p: Pen) -> str:
    span, sweep, chord = p.r(0.75, 1.0), p.r(0.15, 0.45), p.r(0.22, 0.32)
    for side in (-1, 1):
        p.poly(SECOND, (0.25, 0), (0.25 - sweep, side * span), (0.13 - sweep, side * span), (0.25 - chord - 0.2, 0))
        p.poly(SECOND, (-0.72, 0), (-0.95, side * 0.36), (-1.05, side * 0.36), (-0.96, 0))
        p.ell(DARK, 0.24 - sweep * 0.4, side * span * 0.4, 0.12, 0.05)
    p.blob(
        BODY,
        (1, 0),
        (0.85, -0.09),
        (0.5, -0.11),
        (-0.5, -0.09),
        (-1.0, -0.02),
        (-1.0, 0.02),
        (-0.5, 0.09),
        (0.5, 0.11),
        (0.85, 0.09),
    )
    p.poly(GLASS, (0.9, -0.05), (0.9, 0.05), (0.78, 0.07), (0.78, -0.07), ink=False)
    p.limb(TRIM, (-0.7, 0), (-1.02, 0), 0.05)
    return "Unspecified"


def bicycle(p: Pen) -> str:
    """Draw a bicycle."""
    radius, base, tube = p.r(0.36, 0.42), p.r(0.54, 0.6), p.r(0.06, 0.085)
    for x in (-base, base):
        p.ell(BLACK, x, 0, radius)
        p.ell(HOLE, x, 0, radius * 0.84)
        for k in range(6):
            c, s = math.cos(k * math.pi / 6 + x), math.sin(k * math.pi / 6 + x)
            p.limb(
                PALE,
                (x - c * radius * 0.85, -s * radius * 0.85),
                (x + c * radius * 0.85, s * radius * 0.85),
                0.016,
                ink=False,
            )
        p.ell(DARK, x, 0, 0.05, ink=False)
    crank, seat, head = (-0.06, 0.06), (-0.24, -p.r(0.42, 0.52)), (base - 0.2, -p.r(0.46, 0.55))
    for a, b in ((crank, (-base, 0)), ((-base, 0), seat), (seat, crank), (seat, head), (crank, head)):
        p.limb(BODY, a, b, tube)
    p.limb(TRIM, head, (base, 0), tube * 0.9)
    bar = (head[0] - 0.03, head[1] - 0.16)
    p.limb(DARK, head, bar, 0.05, ink=False)
    p.limb(BLACK, (bar[0] - 0.02, bar[1]), (bar[0] + p.r(0.1, 0.2), bar[1] + p.r(-0.06, 0.1)), 0.06)
    p.limb(DARK, seat, (seat[0] - 0.03, seat[1] - 0.1), 0.04, ink=False)
    p.limb(BLACK, (seat[0] - 0.15, seat[1] - 0.12), (seat[0] + 0.12, seat[1] - 0.1), 0.09, 0.05)
    p.ell(DARK, *crank, 0.09)
    if p.chance(0.4):
        p.poly(
            SECOND,
            (bar[0] + 0.1, bar[1]),
            (bar[0] + 0.42, bar[1]),
            (bar[0] + 0.36, bar[1] + 0.25),
            (bar[0] + 0.14, bar[1] + 0.25),
        )
    return "Right"


def boat(p: Pen) -> str:
    """Draw a boat."""
    sheer, deep = p.r(0.08, 0.18), p.r(0.26, 0.36)
    motor = p.chance(0.35)
    if motor:
        p.box(PALE, -0.5, -0.32, 0.32, 0.05, 0.04)
        for i in range(3):
            p.box(GLASS, -0.42 + i * 0.24, -0.25, -0.25 + i * 0.24, -0.08, 0.02)
        p.box(TRIM, -0.34, -0.62, -0.12, -0.32)
        p.box(BLACK, -0.34, -0.66, -0.12, -0.57, ink=False)
        p.limb(DARK, (0.2, -0.3), (0.2, -0.75), 0.03, ink=False)
    else:
        top = -p.r(1.05, 1.35)
        p.limb(DARK, (0, 0.1), (0, top - 0.06), 0.05)
        p.poly(SECOND, (-0.05, top), (-0.05, -0.1), (-p.r(0.6, 0.8), -0.1))
        p.poly(TRIM if p.chance(0.5) else SECOND, (0.05, top + 0.15), (0.05, -0.06), (p.r(0.5, 0.8), -0.08))
        p.poly(TRIM, (0, top - 0.08), (0, top + 0.04), (0.2, top - 0.02), ink=False)
    p.blob(
        BODY,
        (-0.85, 0),
        (-0.3, 0.03),
        (0.3, 0.02),
        (0.98, -sheer),
        (0.9, 0.02),
        (0.62, deep),
        (0, deep + 0.04),
        (-0.66, deep),
    )
    p.poly(TRIM, (-0.84, 0.0), (0.96, -sheer * 0.7), (0.9, -sheer * 0.7 + 0.1), (-0.82, 0.09), ink=False)
    return "Right"


def bus(p: Pen) -> str:
    """Draw a bus."""
    if p.chance(0.3):
        return _bus_front(p)
    top, long = -p.r(0.62, 0.8), p.r(0.98, 1.15)
    double = p.chance(0.3)
    top -= 0.35 if double else 0
    p.box(BODY, -long, top, long, 0.25, 0.08)
    p.box(SECOND, -long, -0.02, long, 0.12, ink=False)
    count = int(p.r(5, 7.99))
    step = (2 * long - 0.42) / count
    for row in range(2 if double else 1):
        y = -0.4 - 0.46 * row
        for i in range(count):
            p.box(GLASS, -long + 0.07 + i * step, y, -long + 0.01 + (i + 1) * step, y + 0.3, 0.03)
    p.box(GLASS, long - 0.3, -0.42, long - 0.02, 0.18, 0.03)
    p.box(BODY, long - 0.165, -0.42, long - 0.145, 0.18, ink=False)
    for x in (-long * 0.58, long * 0.48):
        p.wheel(x, 0.26, 0.18)
    p.ell(PALE, long - 0.05, 0.13, 0.05, ink=False)
    return "Right"


def _bus_front(p: Pen) -> str:
    half = p.r(0.5, 0.6)
    for side in (-1, 1):
        p.box(BLACK, side * half * 0.75 - 0.12, 0.5, side * half * 0.75 + 0.12, 0.86)
        p.box(BLACK, side * (half + 0.1) - 0.05, -0.42, side * (half + 0.1) + 0.05, -0.1, 0.03)
    p.box(BODY, -half, -0.85, half, 0.7, 0.1)
    p.box(TRIM, -half * 0.7, -0.8, half * 0.7, -0.62, ink=False)
    p.box(GLASS, -half * 0.9, -0.56, half * 0.9, 0.06, 0.05)
    p.box(BODY, -0.015, -0.56, 0.015, 0.06, ink=False)
    p.box(SECOND, -half, 0.14, half, 0.28, ink=False)
    p.box(DARK, -half * 0.45, 0.36, half * 0.45, 0.6, 0.03)
    for side in (-1, 1):
        p.ell(PALE, side * half * 0.74, 0.45, 0.09)
    return "Frontal"


def car(p: Pen) -> str:
    """Draw a car."""
    if p.chance(0.25):
        return _car_front(p)
    roof, hood, back = -p.r(0.5, 0.62), p.r(0.3, 0.48), p.r(-0.85, -0.55)
    p.blob(BODY, (-0.98, 0.1), (-0.95, -0.12), (back, -0.17), (-0.42, roof), (0.12, roof + 0.02), (hood, -0.17),
           (0.92, -0.06), (1.0, 0.1), (0.96, 0.22), (0, 0.24), (-0.95, 0.22))  # fmt: skip
    p.poly(GLASS, (back + 0.16, -0.17), (-0.38, roof + 0.09), (-0.1, roof + 0.08), (-0.1, -0.17))
    p.poly(GLASS, (-0.03, -0.17), (-0.03, roof + 0.08), (0.1, roof + 0.1), (hood - 0.1, -0.17))
    p.box(TRIM, -0.94, 0.06, 0.94, 0.12, ink=False)
    p.limb(DARK, (-0.22, -0.06), (-0.12, -0.06), 0.035, ink=False)
    p.ell(PALE, 0.93, 0.0, 0.07, 0.05)
    p.ell(TRIM, -0.95, -0.02, 0.04, 0.06)
    wheel = p.r(0.17, 0.22)
    for x in (-0.56, 0.58):
        p.wheel(x, 0.22, wheel)
    return "Right"


def _car_front(p: Pen) -> str:
    half, roof = p.r(0.68, 0.8), -p.r(0.52, 0.68)
    for side in (-1, 1):
        p.box(BLACK, side * half * 0.8 - 0.12, 0.2, side * half * 0.8 + 0.12, 0.52, 0.03)
        p.ell(BODY, side * (half + 0.06), -0.1, 0.1, 0.06)
    p.blob(BODY, (-half, 0.35), (-half * 1.02, 0.0), (-half * 0.8, -0.12), (-half * 0.62, roof), (half * 0.62, roof),
           (half * 0.8, -0.12), (half * 1.02, 0.0), (half, 0.35))  # fmt: skip
    p.poly(GLASS, (-half * 0.74, -0.12), (-half * 0.54, roof + 0.1), (half * 0.54, roof + 0.1), (half * 0.74, -0.12))
    p.box(DARK, -half * 0.45, 0.06, half * 0.45, 0.2, 0.03)
    p.box(PALE, -0.16, 0.24, 0.16, 0.32)
    for side in (-1, 1):
        p.ell(PALE, side * half * 0.74, 0.08, 0.12, 0.08)
    return "Frontal"


def motorbike(p: Pen) -> str:
    """Draw a motorbike."""
    radius, base = p.r(0.3, 0.36), p.r(0.58, 0.66)
    for x in (-base, base):
        p.ell(BLACK, x, 0, radius)
        p.ell(HOLE, x, 0, radius * 0.56)
        for k in range(3):
            c, s = math.cos(k * math.pi / 3 + x) * radius * 0.6, math.sin(k * math.pi / 3 + x) * radius * 0.6
            p.limb(PALE, (x - c, -s), (x + c, s), 0.05, ink=False)
        p.ell(DARK, x, 0, radius * 0.22)
    p.limb(PALE, (base, 0), (base - 0.24, -0.55), 0.08)
    p.blob(DARK, (-0.3, 0.1), (-0.26, -0.2), (0.2, -0.22), (0.28, 0.02), (0.12, 0.16))
    for i in range(3):
        p.limb(PALE, (-0.1, -0.1 + i * 0.08), (0.16, -0.1 + i * 0.08), 0.03, ink=False)
    p.limb(PALE, (-0.02, 0.14), (-base - 0.3, 0.1 - p.r(0, 0.14)), 0.07, 0.12)
    p.blob(BODY, (-0.1, -0.22), (-0.06, -0.42), (0.2, -0.5), (0.4, -0.38), (0.34, -0.2), (0.1, -0.14))
    p.blob(BLACK, (-0.75, -0.4), (-0.5, -0.36), (-0.06, -0.36), (-0.05, -0.25), (-0.45, -0.22), (-0.7, -0.3))
    p.poly(SECOND, (-0.86, -0.4), (-0.4, -0.24), (-0.46, -0.12), (-0.8, -0.2))
    p.poly(SECOND, (base - 0.3, -0.34), (base + 0.22, -0.34), (base + 0.3, -0.22), (base - 0.1, -0.28))
    p.limb(DARK, (base - 0.22, -0.52), (base - 0.4, -p.r(0.62, 0.76)), 0.06)
    p.ell(PALE, base - 0.1, -0.5, 0.1)
    if p.chance(0.4):
        p.poly(GLASS, (base - 0.16, -0.56), (base - 0.36, -0.86), (base - 0.28, -0.54))
    return "Right"


def train(p: Pen) -> str:
    """Draw a train."""
    if p.chance(0.5):
        return _steam_train(p)
    top, nose = -p.r(0.4, 0.5), p.r(0.25, 0.5)
    p.box(BLACK, -1.5, 0.24, 1.55, 0.29, ink=False)
    for k in range(9):
        p.wheel(-1.35 + k * 0.32 - (0.1 if k % 2 else 0), 0.17, 0.085)
    for x in (-1.5, -0.62):
        p.box(BODY, x, top, x + 0.85, 0.12, 0.03)
    p.poly(BODY, (0.26, top), (1.5 - nose, top), (1.46, -0.04), (1.5, 0.12), (0.26, 0.12))
    p.poly(GLASS, (1.5 - nose - 0.12, top + 0.06), (1.5 - nose, top + 0.06), (1.4, -0.08), (1.5 - nose - 0.12, -0.08))
    p.poly(SECOND, (-1.5, -0.03), (1.47, -0.03), (1.49, 0.06), (-1.5, 0.06), ink=False)
    for x in (-1.5, -0.62, 0.26):
        for k in range(3):
            p.box(GLASS, x + 0.08 + k * 0.25, top + 0.1, x + 0.26 + k * 0.25, -0.09, 0.02)
    p.box(DARK, -0.75, top - 0.06, -0.3, top)
    return "Right"


def _steam_train(p: Pen) -> str:
    p.box(BLACK, -1.4, 0.44, 1.2, 0.49, ink=False)
    p.box(SECOND, -1.4, -0.22, -0.7, 0.26, 0.03)
    p.box(BODY, -0.6, -0.62, -0.1, 0.26)
    p.box(TRIM, -0.7, -0.7, 0.0, -0.6, 0.03)
    p.box(GLASS, -0.48, -0.5, -0.22, -0.2, 0.02)
    p.box(BODY, -0.1, -0.36, 0.9, 0.16, 0.06)
    p.box(TRIM, 0.78, -0.38, 0.94, 0.18, 0.03)
    for x in (0.12, 0.42):
        p.box(SECOND, x, -0.36, x + 0.06, 0.16, ink=False)
    high = -p.r(0.65, 0.82)
    p.poly(BLACK, (0.62, -0.36), (0.56, high), (0.84, high), (0.78, -0.36))
    p.ell(TRIM, 0.25, -0.38, 0.11, 0.1)
    p.poly(DARK, (0.8, 0.18), (1.15, 0.44), (0.7, 0.44))
    for x, radius in ((-1.2, 0.12), (-0.9, 0.12), (-0.38, 0.2), (0.08, 0.2), (0.54, 0.14)):
        p.wheel(x, 0.44 - radius, radius, hub=TRIM)
    p.limb(PALE, (-0.38, 0.28), (0.3, 0.28), 0.05)
    if p.chance(0.6):
        for k in range(4):
            p.ell(PALE, 0.6 - k * 0.24, high - 0.12 - k * 0.06, 0.1 + k * 0.035, ink=False)
    return "Right"
