"""People and the things they live with. Each function draws with the pen and returns VOC's word for the pose."""

from __future__ import annotations

import math

from adco.sample.shapes import BLACK, BODY, DARK, GLASS, PALE, SECOND, SKIN, TRIM, Pen


def bottle(p: Pen) -> str:
    """Draw a bottle."""
    half, neck, shoulder, top = p.r(0.2, 0.28), p.r(0.07, 0.11), p.r(-0.42, -0.15), -p.r(0.85, 1.0)
    curve = p.r(0.03, 0.3)
    left = [
        (-half, 0.9),
        (-half, shoulder + 0.1),
        (-half * 0.9, shoulder),
        (-neck - 0.02, shoulder - curve),
        (-neck, top),
    ]
    p.poly(BODY, (-half * 0.9, 0.97), *left, *[(-x, y) for x, y in reversed(left)], (half * 0.9, 0.97))
    label = p.r(0.0, 0.2)
    p.box(SECOND, -half, label, half, label + p.r(0.35, 0.55))
    p.ell(TRIM, 0, label + 0.2, half * 0.5, half * 0.5, ink=False)
    p.box(TRIM, -neck - 0.025, top - 0.1, neck + 0.025, top + 0.06, 0.02)
    p.limb(PALE, (-half * 0.62, shoulder + 0.08), (-half * 0.62, 0.82), 0.045, ink=False)
    return "Unspecified"


def chair(p: Pen) -> str:
    """Draw a chair."""
    wide, slant, back, skew = p.r(0.3, 0.38), p.r(-0.04, 0.14), -p.r(0.75, 0.95), p.r(0.12, 0.22)
    leg, low = p.r(0.06, 0.09), p.r(0.62, 0.78)
    p.limb(DARK, (-wide + skew, 0), (-wide + skew, low - 0.12), leg)
    p.limb(DARK, (wide + skew, 0), (wide + skew, low - 0.12), leg)
    corners = ((-wide + skew - slant, back), (wide + skew - slant, back), (wide + skew, -0.1), (-wide + skew, -0.1))
    if p.chance(0.5):
        p.poly(BODY, *corners)
    else:
        for side in (-1, 1):
            p.limb(BODY, (side * wide + skew - slant, back - 0.03), (side * wide + skew, 0), 0.09)
        for i in range(3):
            y = back + 0.06 + i * 0.24
            p.box(BODY, -wide + skew - slant, y, wide + skew - slant * 0.6, y + 0.12, 0.03)
    p.poly(SECOND, (-wide + skew, -0.1), (wide + skew, -0.1), (wide - skew, 0.1), (-wide - skew, 0.1))
    p.poly(BODY, (-wide - skew, 0.1), (wide - skew, 0.1), (wide - skew, 0.19), (-wide - skew, 0.19))
    p.poly(BODY, (wide - skew, 0.1), (wide + skew, -0.1), (wide + skew, -0.01), (wide - skew, 0.19))
    p.limb(DARK, (-wide - skew + 0.05, 0.18), (-wide - skew + 0.05, low), leg)
    p.limb(DARK, (wide - skew - 0.05, 0.18), (wide - skew - 0.05, low), leg)
    return "Right"


def diningtable(p: Pen) -> str:
    """Draw a dining table."""
    half, deep, drop, inset = p.r(0.9, 1.05), p.r(0.22, 0.34), p.r(0.12, 0.34), p.r(0.16, 0.3)
    for x in (-half + inset + 0.08, half - inset - 0.08):
        p.limb(DARK, (x, 0), (x, 0.6), 0.08)
    for x in (-half + 0.08, half - 0.08):
        p.limb(DARK, (x, deep), (x, p.r(0.78, 0.88)), 0.1)
    p.poly(BODY, (-half + inset, -deep), (half - inset, -deep), (half, deep), (-half, deep))
    hem = [(half - 2 * half * i / 8, deep + drop + (0.05 if i % 2 else 0.0)) for i in range(9)]
    p.poly(SECOND, (-half, deep), (half, deep), *hem)
    for i in range(int(p.r(2, 4.99))):
        x, y = -0.55 + 0.38 * i + p.r(-0.05, 0.05), p.r(-0.12, 0.1)
        p.ell(PALE, x, y, 0.17, 0.065)
        p.ell(TRIM, x, y - 0.01, 0.09, 0.035, ink=False)
    if p.chance(0.6):
        x = p.r(-0.4, 0.4)
        p.box(GLASS, x - 0.05, -0.45, x + 0.05, -0.05, 0.04)
        p.ell(TRIM, x, -0.5, 0.13, 0.1)
    return "Frontal"


def person(p: Pen) -> str:
    """Draw a person."""
    shoulder, hip, stride = p.r(0.21, 0.28), p.r(0.15, 0.2), p.r(0.02, 0.28)
    for side, arm in ((-1, p.r(-0.3, 2.4)), (1, p.r(-0.2, 0.7))):
        x0 = side * shoulder
        elbow = (x0 + side * 0.25 * math.sin(arm), -0.42 + 0.25 * math.cos(arm))
        bend = arm + p.r(0.1, 0.9)
        hand = (elbow[0] + side * 0.24 * math.sin(bend), elbow[1] + 0.24 * math.cos(bend))
        p.limb(SKIN, elbow, hand, 0.1, 0.075)
        p.ell(SKIN, *hand, 0.055)
        p.limb(BODY, (x0 - side * 0.03, -0.42), elbow, 0.15, 0.12)
    skirt = p.chance(0.25)
    for side in (-1, 1):
        foot = (side * (hip * 0.6 + stride * 0.7), 0.98)
        knee = (side * (hip * 0.6 + stride * 0.5), 0.52)
        p.limb(SKIN if skirt else SECOND, (side * hip * 0.5, 0.08), knee, 0.19, 0.15)
        p.limb(SKIN if skirt else SECOND, knee, foot, 0.14, 0.11)
        p.limb(BLACK, foot, (foot[0] + 0.1, foot[1] + 0.01), 0.1)
    if skirt:
        p.poly(SECOND, (-hip, 0.0), (hip, 0.0), (hip + 0.2, 0.5), (-hip - 0.2, 0.5))
    p.limb(SKIN, (0, -0.6), (0, -0.45), 0.13)
    p.blob(
        BODY,
        (-shoulder, -0.47),
        (0, -0.52),
        (shoulder, -0.47),
        (hip * 1.1, -0.1),
        (hip * 1.1, 0.12),
        (-hip * 1.1, 0.12),
        (-hip * 1.1, -0.1),
    )
    head = p.r(0.15, 0.18)
    long_hair = p.chance(0.4)
    if long_hair:
        p.blob(DARK, (-head, -0.9), (0, -0.99), (head, -0.9), (head * 1.25, -0.5), (0, -0.56), (-head * 1.25, -0.5))
    p.ell(SKIN, 0, -0.75, head * 0.92, head * 1.15)
    if p.chance(0.25):
        p.box(TRIM, -head * 1.5, -0.88, head * 1.5, -0.83, 0.02)
        p.box(TRIM, -head, -1.05, head, -0.84, 0.05)
    else:
        p.blob(
            DARK,
            (-head, -0.76),
            (-head * 0.9, -0.93),
            (0, -1.0),
            (head * 0.9, -0.93),
            (head, -0.76),
            (head * 0.5, -0.86),
            (-head * 0.5, -0.86),
        )
    for side in (-1, 1):
        p.ell(BLACK, side * 0.06, -0.74, 0.022, ink=False)
    p.limb(DARK, (-0.04, -0.65), (0.04, -0.65), 0.02, ink=False)
    return "Frontal"


def pottedplant(p: Pen) -> str:
    """Draw a potted plant."""
    half, low, leaves, broad = p.r(0.26, 0.36), p.r(0.62, 0.8), int(p.r(9, 15)), p.r(0.09, 0.17)
    for k in range(leaves):
        a = -math.pi / 2 + (k - (leaves - 1) / 2) / leaves * p.r(2.7, 3.5) * (1 if k % 2 else 0.85)
        long = p.r(0.6, 0.95)
        c, s = math.cos(a), math.sin(a)
        tip, sag = (c * long, 0.1 + s * long + 0.3 * abs(c) * long), p.r(0.4, 0.6)
        mid = (c * long * sag, 0.08 + s * long * sag)
        p.blob(
            BODY if k % 3 else SECOND,
            (0, 0.14),
            (mid[0] - s * broad, mid[1] + c * broad),
            tip,
            (mid[0] + s * broad, mid[1] - c * broad),
        )
    if p.chance(0.4):
        for _ in range(int(p.r(2, 5))):
            x, y = p.r(-0.45, 0.45), p.r(-0.7, -0.25)
            for k in range(5):
                p.ell(PALE, x + 0.085 * math.cos(k * 1.257), y + 0.085 * math.sin(k * 1.257), 0.065, ink=False)
            p.ell(DARK, x, y, 0.05, ink=False)
    p.poly(TRIM, (-half * 0.9, 0.25), (half * 0.9, 0.25), (half * 0.66, low), (-half * 0.66, low))
    p.box(TRIM, -half, 0.12, half, 0.28, 0.02)
    for k in range(3):
        x = (k - 1) * half * 0.5
        p.poly(GLASS, (x - 0.06, 0.45), (x, 0.36), (x + 0.06, 0.45), (x, 0.54), ink=False)
    return "Unspecified"


def sofa(p: Pen) -> str:
    """Draw a sofa."""
    half, back, arm, seats = p.r(0.85, 1.05), -p.r(0.42, 0.6), p.r(0.16, 0.24), int(p.r(2, 3.99))
    for x in (-half + 0.12, half - 0.12):
        p.box(DARK, x - 0.05, 0.4, x + 0.05, 0.54)
    p.box(BODY, -half + 0.06, back, half - 0.06, 0.2, 0.12)
    step = 2 * (half - arm) / seats
    for i in range(seats):
        x = -half + arm + i * step
        p.box(BODY, x + 0.01, back + 0.1, x + step - 0.01, 0.06, 0.05)
        p.box(SECOND, x, -0.0, x + step, 0.2, 0.06)
    p.box(BODY, -half + 0.04, 0.2, half - 0.04, 0.42, 0.04)
    for side in (-1, 1):
        x = side * (half - arm / 2)
        p.box(BODY, x - arm / 2, -0.14, x + arm / 2, 0.44, arm * 0.45)
    if p.chance(0.6):
        x = p.r(-0.4, 0.4)
        p.poly(TRIM, (x - 0.18, -0.08), (x + 0.02, -0.26), (x + 0.2, -0.08), (x, 0.08))
    return "Frontal"


def tvmonitor(p: Pen) -> str:
    """Draw a monitor."""
    half, high, rim = p.r(0.72, 0.95), p.r(0.48, 0.66), p.r(0.05, 0.1)
    old = p.chance(0.4)
    if old:
        p.limb(DARK, (0, -high), (-0.3, -high - 0.36), 0.03, ink=False)
        p.limb(DARK, (0, -high), (0.34, -high - 0.32), 0.03, ink=False)
        for x in (-half * 0.6, half * 0.6):
            p.limb(DARK, (x, high), (x * 1.15, high + 0.24), 0.07)
    else:
        p.box(DARK, -0.09, high - 0.05, 0.09, high + 0.2)
        p.box(BLACK, -0.36, high + 0.16, 0.36, high + 0.23, 0.03)
    p.box(SECOND if old else BLACK, -half, -high, half, high, 0.09 if old else 0.04)
    right = half - rim - (0.28 if old else 0)
    p.box(BODY, -half + rim, -high + rim, right, high - rim, 0.1 if old else 0.02)
    if old:
        for k in range(2):
            p.ell(PALE, half - 0.17, -high + 0.2 + k * 0.24, 0.07)
        for k in range(3):
            p.box(DARK, half - 0.25, high - 0.34 + k * 0.08, half - 0.09, high - 0.31 + k * 0.08, ink=False)
    p.poly(PALE, (-half + rim + 0.08, -high + rim + 0.3), (-half + rim + 0.3, -high + rim + 0.06),
           (-half + rim + 0.4, -high + rim + 0.06), (-half + rim + 0.08, -high + rim + 0.42), ink=False)  # fmt: skip
    return "Frontal"
