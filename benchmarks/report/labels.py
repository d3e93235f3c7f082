"""Labels of points in, each at a free place beside its point out, in a matplotlib picture whose layout is fixed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Label", "place_labels"]

_FAR = 9.0  # points from a mark from which on a label needs a line to it
_MARK = 6.0  # points from the middle of a mark that are not free
_GAPS = (6.0, 13.0, 22.0, 34.0, 46.0)  # points between a mark's middle and its label
_LINE = "#9aa5b4"

Box = tuple[float, float, float, float]  # left, bottom, right, top in pixels


@dataclass(frozen=True)
class Label:
    """What stands beside the point ``x, y``; one that must be near is rather left out than led to."""

    text: str
    x: float
    y: float
    size: float
    colour: str
    must_be_near: bool = False


def place_labels(axes: Any, labels: Sequence[Label]) -> None:
    """Draw ``labels``, each at the nearest free place about its point; one without a place is left out."""
    from matplotlib.patheffects import withStroke

    renderer = axes.figure.canvas.get_renderer()
    scale = axes.figure.dpi / 72
    frame = axes.get_window_extent(renderer)
    spots = [tuple(map(float, axes.transData.transform((label.x, label.y)))) for label in labels]
    reach = _MARK * scale
    taken: list[Box] = [(x - reach, y - reach, x + reach, y + reach) for x, y in spots]
    for label, spot in zip(labels, spots, strict=True):
        place = {"textcoords": "offset points", "ha": "center", "va": "center", "zorder": 5}
        drawn = axes.annotate(label.text, (label.x, label.y), (0, 0), fontsize=label.size, color=label.colour, **place)
        drawn.set_path_effects([withStroke(linewidth=2.2, foreground="white")])
        extent = drawn.get_window_extent(renderer)
        half = (extent.width / 2, extent.height / 2)
        for shift in _shifts(half[0] / scale, half[1] / scale):
            x, y = (spot[i] + shift[i] * scale for i in (0, 1))
            box = (x - half[0], y - half[1], x + half[0], y + half[1])
            if (
                _within(box, frame)
                and not any(_overlap(box, other) for other in taken)
                and _told(box, spot, spots, label, scale)
            ):
                taken.append(box)
                drawn.set_position(shift)
                _lead(axes, spot, box, scale)
                break
        else:
            drawn.remove()


def _shifts(half_width: float, half_height: float) -> Iterator[tuple[float, float]]:
    """Shifts of a label's centre in points, nearest first."""
    for gap in _GAPS:
        right, up = half_width + gap, half_height + gap
        yield from ((0, up), (0, -up), (right, 0), (-right, 0))
        yield from ((half_width, up), (-half_width, up), (half_width, -up), (-half_width, -up))


def _told(box: Box, spot: Sequence[float], spots: Sequence[Sequence[float]], label: Label, scale: float) -> bool:
    """Whether a reader can tell whose label it is: a line meets its point and no other, or no other is nearer."""
    if _far(box, spot, scale):
        clear = all(other == spot or _beyond(spot, _edge(box, spot), other, _MARK * scale) for other in spots)
        return clear and not label.must_be_near
    distance = math.dist(_edge(box, spot), spot)
    return all(distance <= math.dist(_edge(box, other), other) for other in spots)


def _lead(axes: Any, spot: Sequence[float], box: Box, scale: float) -> None:
    if _far(box, spot, scale):
        ends = axes.transData.inverted().transform([spot, _edge(box, spot)])
        axes.plot(*ends.T, color=_LINE, linewidth=0.7, zorder=1.5, scalex=False, scaley=False)


def _far(box: Box, spot: Sequence[float], scale: float) -> bool:
    return math.dist(_edge(box, spot), spot) > _FAR * scale


def _edge(box: Box, spot: Sequence[float]) -> tuple[float, float]:
    """The point of ``box`` that is nearest to ``spot``."""
    return (min(max(spot[0], box[0]), box[2]), min(max(spot[1], box[1]), box[3]))


def _beyond(start: Sequence[float], end: Sequence[float], spot: Sequence[float], reach: float) -> bool:
    """Whether ``spot`` is farther than ``reach`` from the line from ``start`` to ``end``."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    along = ((spot[0] - start[0]) * dx + (spot[1] - start[1]) * dy) / (dx * dx + dy * dy)
    along = min(max(along, 0.0), 1.0)
    return math.dist(spot, (start[0] + along * dx, start[1] + along * dy)) > reach


def _within(box: Box, frame: Any) -> bool:
    return bool(box[0] >= frame.x0 and box[2] <= frame.x1 and box[1] >= frame.y0 and box[3] <= frame.y1)


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
