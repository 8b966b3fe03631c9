"""Charts as inline SVG. Their colours are variables of the page (`--s1` ... `--s8`), for light and dark mode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from matplotlib.ticker import MaxNLocator

TOP, RIGHT, BOTTOM, LEFT = 14, 16, 44, 46  # px around the plotting area
MARKERS = (  # SVG path of each slot's marker; the first is a circle
    "",
    "M-3-3H3V3H-3Z",
    "M0-4.4L4.4 0L0 4.4L-4.4 0Z",
    "M0-4.2L4 3.2H-4Z",
    "M0 4.2L4-3.2H-4Z",
    "M-1.3-4H1.3V-1.3H4V1.3H1.3V4H-1.3V1.3H-4V-1.3H-1.3Z",
    "M-4-2.6L-2.6-4L0-1.4L2.6-4L4-2.6L1.4 0L4 2.6L2.6 4L0 1.4L-2.6 4L-4 2.6L-1.4 0Z",
    "M-1.4-4.4H1.4V4.4H-1.4Z",
)


@dataclass(frozen=True)
class Point:
    """A value y at x. low, high: ends of its band or interval, equal to y if there is none."""

    x: float
    y: float
    low: float
    high: float


@dataclass(frozen=True)
class Series:
    """A line. slot: colour and marker of the palette, 1 to 8; lone: points without a line."""

    name: str
    points: Sequence[Point]
    slot: int
    dashed: bool = False
    lone: bool = False


@dataclass(frozen=True)
class Axis:
    """A linear axis: data from `low` to `high` on the pixels from `start` to `stop`."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        """The position of a value, in pixels."""
        share = (value - self.low) / ((self.high - self.low) or 1)
        return round(self.start + share * (self.stop - self.start), 1)

    def ticks(self, count: int, whole: bool = False) -> list[float]:
        """At most about `count` round values in its range, integers if `whole`."""
        values = MaxNLocator(count, steps=[1, 2, 2.5, 5, 10], integer=whole).tick_values(self.low, self.high)
        slack = 1e-9 * (self.high - self.low)
        return [float(tick) for tick in values if self.low - slack <= tick <= self.high + slack]


def line_chart(
    series: Sequence[Series],
    size: tuple[int, int],
    x_label: str,
    y_label: str,
    named: bool = False,
) -> str:
    """Mean lines over their bands.

    Args:
        series: The lines.
        size: Width and height in px.
        x_label, y_label: Labels of the axes.
        named: Write the names at the ends of the lines.
    """
    width, height = size
    right = RIGHT + (max((_width(one.name) for one in series), default=0) + 14 if named else 0)
    low, high = _padded([v for one in series for p in one.points for v in (p.low, p.high)])
    x = Axis(0, max((p.x for one in series for p in one.points), default=1), LEFT, width - right)
    y = Axis(low, high, height - BOTTOM, TOP)
    parts = [*_grid(x, y, width, height, right, x_label, y_label)]
    for one in series:
        parts += _band(one, x, y)
    for one in series:
        parts += _line(one, x, y)
    if named:
        parts += _names(series, x, y, height)
    return _svg(width, height, parts)


def bar_chart(names: Sequence[str], series: Sequence[Series], width: int, unit: str) -> str:
    """Horizontal bars with whiskers: a group for each name, in it a bar for each series.

    Args:
        names: Names of the groups.
        series: The bars; x of a point is the index of its group.
        width: Width in px.
        unit: Label of the axis.
    """
    thick = 9 if len(series) < 4 else 6
    group = thick * len(series) + 8
    left, height = max(map(_width, names), default=0) + 16, TOP + group * len(names) + BOTTOM
    _, high = _padded([0.0, *(p.high for one in series for p in one.points)])
    x = Axis(0, high, left, width - RIGHT)
    parts = []
    for tick in x.ticks(4 if width < 500 else 8):
        parts.append(f'<path class="grid" d="M{x(tick)} {TOP}V{height - BOTTOM}"/>')
        parts.append(_text(x(tick), height - BOTTOM + 17, f"{tick:g}", "tick", "middle"))
    parts.append(_text((left + width - RIGHT) / 2, height - 8, unit, "label", "middle"))
    for row, name in enumerate(names):
        top = TOP + group * row + 4
        parts.append(_text(left - 8, top + thick * len(series) / 2 + 4, name, "tick", "end"))
        for number, one in enumerate(series):
            for p in (p for p in one.points if p.x == row):
                parts += _bar(p, x, top + thick * number, thick - 1, one, number)
    parts.append(f'<path class="axis" d="M{left} {TOP}V{height - BOTTOM}"/>')
    return _svg(width, height, parts)


def swatch(slot: int, look: str) -> str:
    """The symbol of a legend. look: `line` (with its marker), `dashed`, `bar` or `hollow`."""
    dash = ' stroke-dasharray="5 3"' if look == "dashed" else ""
    drawn = f'<path class="line s{slot}" d="M1 6H29"{dash}/>{_marker(15, 6, slot)}'
    if look in ("bar", "hollow"):
        drawn = f'<rect class="bar {look} s{slot}" x="1" y="2" width="26" height="8"/>'
    return f'<svg class="swatch" viewBox="0 0 30 12" width="30" height="12" aria-hidden="true">{drawn}</svg>'


def _grid(x: Axis, y: Axis, width: int, height: int, right: float, x_label: str, y_label: str) -> list[str]:
    parts = []
    for tick in y.ticks(6):
        parts.append(f'<path class="grid" d="M{LEFT} {y(tick)}H{width - right:.1f}"/>')
        parts.append(_text(LEFT - 8, y(tick) + 4, f"{tick:g}", "tick", "end"))
    for tick in x.ticks(5 if width < 500 else 9, whole=True):
        parts.append(f'<path class="grid" d="M{x(tick)} {height - BOTTOM}v4"/>')
        parts.append(_text(x(tick), height - BOTTOM + 18, f"{tick:g}", "tick", "middle"))
    parts.append(f'<path class="axis" d="M{LEFT} {height - BOTTOM}H{width - right:.1f}"/>')
    parts.append(_text((LEFT + width - right) / 2, height - 6, x_label, "label", "middle"))
    middle = (TOP + height - BOTTOM) / 2
    parts.append(
        f'<text class="label" text-anchor="middle" transform="translate(13 {middle}) rotate(-90)">'
        f"{escape(y_label)}</text>"
    )
    return parts


def _band(one: Series, x: Axis, y: Axis) -> list[str]:
    if one.lone or all(p.high == p.low for p in one.points):
        return []
    upper = " ".join(f"{x(p.x)},{y(p.high)}" for p in one.points)
    lower = " ".join(f"{x(p.x)},{y(p.low)}" for p in reversed(one.points))
    return [f'<polygon class="band s{one.slot}" points="{upper} {lower}"/>']


def _line(one: Series, x: Axis, y: Axis) -> list[str]:
    dash = ' stroke-dasharray="6 4"' if one.dashed else ""
    path = " ".join(f"{x(p.x)},{y(p.y)}" for p in one.points)
    line = [] if one.lone else [f'<polyline class="line s{one.slot}" points="{path}"{dash}/>']
    return [*line, *(_marker(x(p.x), y(p.y), one.slot, _tooltip(one, p)) for p in one.points)]


def _tooltip(one: Series, p: Point) -> str:
    spread = f" ({p.low:.1f} to {p.high:.1f})" if p.high > p.low else ""
    return f"{one.name}, {p.x:g}: {p.y:.1f}{spread}"


def _names(series: Sequence[Series], x: Axis, y: Axis, height: int) -> list[str]:
    """The name of each line right of its end, moved down where two would overlap."""
    places, free = [], 0.0
    for one in sorted((one for one in series if one.points), key=lambda one: y(one.points[-1].y)):
        free = max(y(one.points[-1].y), free)
        places.append((free, one))
        free += 15
    over = max(places[-1][0] - (height - BOTTOM), 0) if places else 0
    parts = []
    for place, one in ((place - over, one) for place, one in places):
        parts.append(
            f'<path class="leader" d="M{x(one.points[-1].x) + 6} {y(one.points[-1].y)}L{x.stop + 9} {place}"/>'
        )
        parts.append(
            f'<text class="name s{one.slot}" x="{x.stop + 12:.1f}" y="{place + 4:.1f}">{escape(one.name)}</text>'
        )
    return parts


def _bar(p: Point, x: Axis, top: float, thick: float, one: Series, number: int) -> list[str]:
    middle = top + thick / 2
    look = "bar" if number % 2 == 0 else "bar hollow"
    parts = [
        f'<rect class="{look} s{one.slot}" x="{x(0)}" y="{top:.1f}" width="{max(x(p.y) - x(0), 0.5):.1f}" '
        f'height="{thick}"><title>{escape(one.name)}: {p.y:.1f}</title></rect>'
    ]
    if p.high > p.low:
        ends = f"M{x(max(p.low, 0))} {middle}H{x(p.high)}M{x(p.high)} {middle - 3}v6"
        parts.append(f'<path class="whisker" d="{ends}"/>')
    return parts


def _marker(x: float, y: float, slot: int, tooltip: str = "") -> str:
    """The marker of a slot of the palette, which distinguishes lines without colour."""
    title = f"<title>{escape(tooltip)}</title>" if tooltip else ""
    path = MARKERS[(slot - 1) % len(MARKERS)]
    if not path:
        return f'<circle class="mark s{slot}" cx="{x}" cy="{y}" r="3.4">{title}</circle>'
    return f'<path class="mark s{slot}" transform="translate({x} {y})" d="{path}">{title}</path>'


def _text(x: float, y: float, text: str, look: str, anchor: str = "start") -> str:
    return f'<text class="{look}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _padded(values: Sequence[float]) -> tuple[float, float]:
    """The range of the values with a margin; never empty."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    margin = 0.06 * (high - low) or 1.0
    return (0.0 if 0 <= low < 0.25 * high else low - margin), high + margin


def _width(text: str) -> float:
    return 6.7 * len(text)


def _svg(width: float, height: float, parts: Sequence[str]) -> str:
    return f'<svg class="chart" viewBox="0 0 {width} {height}" width="{width}" height="{height}">{"".join(parts)}</svg>'
