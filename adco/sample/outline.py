"""Masks in COCO's formats: polygons around the outside, or run lengths."""

from __future__ import annotations

import numpy as np

SIMPLIFY_PX, MIN_AREA_PX = 0.6, 4.0


def polygons(mask: np.ndarray) -> list[np.ndarray]:
    """The outer outlines of a mask.

    Staircases are straightened by at most SIMPLIFY_PX. Holes are filled, because COCO's polygons cannot have any.
    Pieces below MIN_AREA_PX are left out unless nothing else remains.

    Args:
        mask: (H, W) bool.

    Returns:
        For each piece the corners (N, 2), x and y in whole pixels, where pixel (0, 0) covers 0 to 1; largest piece
        first.
    """
    outer = sorted((loop for loop in _loops(mask) if _signed_area(loop) > 0), key=_signed_area, reverse=True)
    kept: list[np.ndarray] = []
    for loop in outer:  # a loop starts at the upper left corner of one of its pixels
        if kept and (_signed_area(loop) < MIN_AREA_PX or any(_inside(loop[0] + 0.5, other) for other in kept)):
            continue
        kept.append(loop)
    return [_simplify(loop, SIMPLIFY_PX) for loop in kept]


def area(outlines: list[np.ndarray]) -> float:
    """The total area of outlines (N, 2) in square pixels."""
    return float(sum(_signed_area(loop) for loop in outlines))


def bounding_box(outlines: list[np.ndarray]) -> list[float]:
    """The box of outlines (N, 2) in COCO's format: [x, y, width, height] in pixels, from 0."""
    joined = np.concatenate(outlines)
    (x0, y0), (x1, y1) = joined.min(0), joined.max(0)
    return [float(x0), float(y0), float(x1 - x0), float(y1 - y0)]


def run_lengths(mask: np.ndarray) -> dict[str, list[int]]:
    """A mask in COCO's uncompressed run-length encoding.

    Args:
        mask: (H, W) bool.

    Returns:
        counts: the lengths of runs down the columns, the first one of zeros; size: [height, width].
    """
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    return {"counts": [0, *counts] if flat[0] else counts, "size": list(mask.shape)}


def _loops(mask: np.ndarray) -> list[np.ndarray]:
    """Closed walks along pixel edges, the mask to the right: clockwise on screen around pieces, else around holes."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, left = int(rows[0]), int(columns[0])
    m = np.pad(mask[top : rows[-1] + 1, left : columns[-1] + 1], 1)
    steps: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for (dy, dx), (sx, sy), (ex, ey) in (
        ((-1, 0), (0, 0), (1, 0)), ((0, 1), (1, 0), (1, 1)), ((1, 0), (1, 1), (0, 1)), ((0, -1), (0, 1), (0, 0)),
    ):  # fmt: skip
        ys, xs = np.nonzero(m & ~np.roll(m, (-dy, -dx), (0, 1)))
        for x, y in zip((xs + left - 1).tolist(), (ys + top - 1).tolist(), strict=True):
            steps.setdefault((x + sx, y + sy), []).append((x + ex, y + ey))
    loops = []
    while steps:
        start = here = next(iter(steps))
        heading, corners = (0, 0), []
        while True:
            ways = steps[here]
            right = (here[0] - heading[1], here[1] + heading[0])
            there = right if len(ways) > 1 and right in ways else ways[0]
            ways.remove(there)
            if not ways:
                del steps[here]
            turn = (there[0] - here[0], there[1] - here[1])
            if turn != heading:
                corners.append(here)
            heading, here = turn, there
            if here == start:
                break
        loops.append(np.array(corners, dtype=float))
    return loops


def _simplify(loop: np.ndarray, tolerance: float) -> np.ndarray:
    """Douglas-Peucker on a closed loop, cut at its first point and the point farthest from it."""
    far = int(np.argmax(((loop - loop[0]) ** 2).sum(1)))
    closed = np.concatenate([loop, loop[:1]])
    keep = np.zeros(len(closed), bool)
    keep[[0, far]] = True
    pending = [(0, far), (far, len(loop))]
    while pending:
        a, b = pending.pop()
        if b - a < 2:
            continue
        chord, offset = closed[b] - closed[a], closed[a + 1 : b] - closed[a]
        away = np.abs(chord[0] * offset[:, 1] - chord[1] * offset[:, 0]) / max(float(np.hypot(*chord)), 1e-9)
        worst = int(np.argmax(away))
        if away[worst] > tolerance:
            middle = a + 1 + worst
            keep[middle] = True
            pending += [(a, middle), (middle, b)]
    return loop[keep[:-1]]


def _signed_area(loop: np.ndarray) -> float:
    """Positive when the walk is clockwise on screen (y down)."""
    x, y = loop[:, 0], loop[:, 1]
    return float(0.5 * (x @ np.roll(y, -1) - y @ np.roll(x, -1)))


def _inside(point: np.ndarray, loop: np.ndarray) -> bool:
    """Whether the point lies within the loop (crossings of a ray to the right)."""
    x0, y0 = loop[:, 0], loop[:, 1]
    x1, y1 = np.roll(x0, -1), np.roll(y0, -1)
    crosses = (y0 > point[1]) != (y1 > point[1])
    at = x0 + (point[1] - y0) / np.where(crosses, y1 - y0, 1) * (x1 - x0)
    return bool((crosses & (at > point[0])).sum() % 2)
