"""Chairs, tables, lamps and planes from parameters: an infinite set of shapes that are known exactly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.errors import PolyditError
from ...core.geometry.primitives import Ball, Extrusion, Frustum, Placed, Union, box, rotation

__all__ = ["FAMILIES", "make_shape", "shape_generator"]

Parts = list[Placed]
Array = NDArray[Any]


def shape_generator(category: str, number: int, held_out: bool = False) -> np.random.Generator:
    """The draws of one shape of a family; held-out shapes have numbers of their own."""
    return np.random.default_rng([list(FAMILIES).index(category), number, int(held_out), 20261])


def make_shape(category: str, number: int, held_out: bool = False) -> Union:
    """Shape ``number`` of a family: Y-up, centred, its longest side 1.9; planes point along z.

    Raises:
        PolyditError: there is no such family.
    """
    if category not in FAMILIES:
        raise PolyditError(f"category {category!r}: unknown; the families are {', '.join(FAMILIES)}")
    return Union(FAMILIES[category](shape_generator(category, number, held_out))).fitted()


def _at(part: Any, x: float, y: float, z: float, turn: Array | None = None) -> Placed:
    return Placed(part, np.array([x, y, z], np.float64), np.eye(3) if turn is None else turn)


def _rod(start: Array, end: Array, lower: float, upper: float) -> Placed:
    """A frustum from one point to another."""
    along = end - start
    length = float(np.linalg.norm(along))
    y = along / length
    helper = np.array([1.0, 0, 0]) if abs(y[0]) < 0.9 else np.array([0, 0, 1.0])
    z = np.cross(helper, y)
    z /= np.linalg.norm(z)
    return Placed(Frustum(lower, upper, length / 2), (start + end) / 2, np.stack([np.cross(y, z), y, z], 1))


def _legs(draw: np.random.Generator, width: float, depth: float, top: float, thick: float) -> Parts:
    """Four legs from the floor (y = 0) to ``top``: round or square, straight or splayed, tapered."""
    splay = draw.choice([0.0, draw.uniform(0.02, 0.12)])
    square = draw.random() < 0.4
    taper = draw.uniform(0.55, 1.0)
    parts = []
    for x in (-1, 1):
        for z in (-1, 1):
            high = np.array([x * (width / 2 - thick), top, z * (depth / 2 - thick)])
            low = np.array([high[0] + x * splay, 0.0, high[2] + z * splay])
            if square and not splay:
                parts.append(_at(box(2 * thick, top, 2 * thick), high[0], top / 2, high[2]))
            else:
                parts.append(_rod(low, high, thick * taper, thick))
    return parts


def chair(draw: np.random.Generator) -> Parts:
    """Seat, legs or a pedestal, a back of a board or slats, perhaps arms."""
    width, depth = draw.uniform(0.42, 0.62), draw.uniform(0.42, 0.6)
    seat, thick = draw.uniform(0.36, 0.52), draw.uniform(0.035, 0.1)
    back, lean = draw.uniform(0.35, 0.65), draw.uniform(0, 14)
    parts = [_at(box(width, thick, depth), 0, seat + thick / 2, 0)]
    if draw.random() < 0.75:
        parts += _legs(draw, width, depth, seat + thick / 4, draw.uniform(0.02, 0.04))
    else:
        radius = draw.uniform(0.03, 0.06)
        parts.append(_at(Frustum(radius, radius, seat / 2), 0, seat / 2 + 0.01, 0))
        foot = draw.uniform(0.6, 0.95) * min(width, depth) / 2
        parts.append(_at(Frustum(foot, foot * draw.uniform(0.6, 1.0), 0.025), 0, 0.025, 0))
    turn = rotation(x=-lean)
    board = draw.uniform(0.03, 0.07)
    foot_of_back = np.array([0, seat + thick / 2, -depth / 2 + board / 2])

    def on_back(part: Any, x: float, y: float) -> Placed:
        return Placed(part, foot_of_back + turn @ np.array([x, y, 0.0]), turn)

    if draw.random() < 0.6:
        gap = draw.choice([0.0, draw.uniform(0.05, 0.2)])
        parts.append(on_back(box(width, back - gap, board), 0, gap + (back - gap) / 2))
        if gap:
            parts += [
                on_back(box(0.05, gap + 0.04, board * 0.8), s * (width / 2 - 0.05), gap / 2) for s in (-1, 1)
            ]
    else:
        parts += [on_back(box(0.05, back, board), s * (width / 2 - 0.025), back / 2) for s in (-1, 1)]
        count = int(draw.integers(2, 5))
        if draw.random() < 0.5:
            tall = draw.uniform(0.04, 0.08)
            places = np.linspace(0.35, 1, count) * (back - tall / 2)
            parts += [on_back(box(width, tall, board), 0, y) for y in places]
        else:
            parts.append(on_back(box(width, 0.06, board), 0, back - 0.03))
            places = np.linspace(-1, 1, count + 2)[1:-1] * (width / 2 - 0.03)
            parts += [on_back(box(0.04, back, board * 0.8), x, back / 2) for x in places]
    if draw.random() < 0.35:
        high, wide = draw.uniform(0.16, 0.26), draw.uniform(0.03, 0.06)
        for s in (-1, 1):
            x = s * (width / 2 - wide / 2)
            parts.append(_at(box(wide, 0.04, depth), x, seat + thick + high, 0))
            parts.append(
                _at(box(wide, high + thick / 2, wide), x, seat + thick / 2 + high / 2, depth / 2 - wide / 2)
            )
    return parts


def table(draw: np.random.Generator) -> Parts:
    """A round, oval-free or rectangular top on four legs, a pedestal, or two boards; perhaps a shelf."""
    width, depth = draw.uniform(0.7, 1.5), draw.uniform(0.5, 0.9)
    high, thick = draw.uniform(0.35, 0.85), draw.uniform(0.03, 0.09)
    round_top = draw.random() < 0.35
    if round_top:
        depth = width = draw.uniform(0.6, 1.1)
        top: Any = Frustum(width / 2, width / 2, thick / 2)
    else:
        top = box(width, thick, depth)
    parts = [_at(top, 0, high + thick / 2, 0)]
    kind = draw.random()
    if kind < 0.6 or (kind >= 0.8 and round_top):
        inner = 0.72 if round_top else draw.uniform(0.85, 1.0)
        leg = draw.uniform(0.022, 0.05)
        parts += _legs(draw, width * inner, depth * inner, high + thick / 4, leg)
        if draw.random() < 0.25:
            parts.append(
                _at(box(width * inner * 0.9, 0.03, depth * inner * 0.9), 0, high * draw.uniform(0.2, 0.5), 0)
            )
    elif kind < 0.8:
        radius = draw.uniform(0.03, 0.09)
        parts.append(_at(Frustum(radius, radius * draw.uniform(0.6, 1.2), high / 2), 0, high / 2 + 0.01, 0))
        foot = draw.uniform(0.4, 0.7) * min(width, depth) / 2
        parts.append(_at(Frustum(foot, foot * draw.uniform(0.5, 1.0), 0.03), 0, 0.03, 0))
    else:
        board = draw.uniform(0.04, 0.08)
        inset = draw.uniform(0.0, 0.15) * width
        for s in (-1, 1):
            x = s * (width / 2 - board / 2 - inset)
            parts.append(_at(box(board, high + thick / 4, depth * draw.uniform(0.7, 1.0)), x, high / 2, 0))
    return parts


def lamp(draw: np.random.Generator) -> Parts:
    """A foot, a pole, and a shade: standing lamps, table lamps, desk lamps with an arm, hanging lamps."""
    kind = draw.random()
    top, bottom = draw.uniform(0.08, 0.22), draw.uniform(0.16, 0.34)
    shade = draw.uniform(0.2, 0.42)
    pole = draw.uniform(0.018, 0.04)
    if kind < 0.65:
        high = draw.uniform(0.5, 1.4)
        foot = draw.uniform(0.12, 0.26)
        parts = [
            _at(Frustum(foot, foot * draw.uniform(0.4, 1.0), 0.03), 0, 0.03, 0),
            _at(Frustum(pole, pole, high / 2), 0, high / 2 + 0.02, 0),
            _at(Frustum(bottom, top, shade / 2), 0, high + shade / 2, 0),
        ]
        if draw.random() < 0.35:
            parts.append(_at(Ball(draw.uniform(0.06, 0.14)), 0, high * draw.uniform(0.2, 0.6), 0))
        return parts
    if kind < 0.85:
        foot = draw.uniform(0.12, 0.22)
        high, reach = draw.uniform(0.4, 0.7), draw.uniform(0.2, 0.5)
        elbow = np.array([-draw.uniform(0.05, 0.25), high, 0.0])
        end = np.array([reach, high + draw.uniform(0.0, 0.3), 0.0])
        head = end - np.array([0.0, draw.uniform(0.12, 0.2), 0.0])
        return [
            _at(Frustum(foot, foot * 0.8, 0.03), 0, 0.03, 0),
            _rod(np.array([0.0, 0.03, 0.0]), elbow, pole, pole),
            _rod(elbow, end, pole, pole),
            _at(Ball(pole * 1.6), *elbow),
            _rod(head, end + np.array([0, 0.02, 0]), draw.uniform(0.1, 0.2), pole * 1.5),
        ]
    drop = draw.uniform(0.4, 1.0)
    return [
        _at(Frustum(0.1, 0.1, 0.02), 0, drop + shade, 0),
        _at(Frustum(pole * 0.7, pole * 0.7, drop / 2), 0, drop / 2 + shade, 0),
        _at(Frustum(bottom * 1.2, top * 0.6, shade / 2), 0, shade / 2, 0),
    ]


def plane(draw: np.random.Generator) -> Parts:
    """Fuselage, swept wings, tail, perhaps engines; nose towards +z."""
    radius, length = draw.uniform(0.07, 0.13), draw.uniform(0.8, 1.3)
    nose, tail = draw.uniform(0.12, 0.3), draw.uniform(0.25, 0.5)
    lying = rotation(x=90)  # y of a part becomes z
    body = length / 2
    parts = [
        _at(Frustum(radius, radius, body / 2 + 0.01), 0, 0, 0, lying),
        _at(Frustum(radius, radius * draw.uniform(0.1, 0.5), nose / 2), 0, 0, body / 2 + nose / 2, lying),
        _at(Frustum(radius * draw.uniform(0.15, 0.4), radius, tail / 2), 0, 0, -body / 2 - tail / 2, lying),
    ]

    def wings(span: float, root: float, tip: float, sweep: float, thick: float, y: float, z: float) -> Parts:
        # Half a wing is convex: from the middle to the tip, leading edge in front.
        half = np.array([[0, -root / 2], [span, -sweep - tip / 2], [span, -sweep + tip / 2], [0, root / 2]])
        mirrored = (half * [-1, 1])[::-1]
        return [_at(Extrusion(corners, thick / 2), 0, y, z) for corners in (half, mirrored)]

    span, root = draw.uniform(0.5, 0.95), draw.uniform(0.22, 0.42)
    height = draw.uniform(-0.6, 0.8) * radius
    sweep = draw.uniform(0.0, 0.45) * span
    place = draw.uniform(-0.1, 0.15)
    parts += wings(span, root, root * draw.uniform(0.25, 0.9), sweep, draw.uniform(0.03, 0.05), height, place)
    end = -body / 2 - tail + 0.1
    small = draw.uniform(0.3, 0.45)
    high = draw.uniform(0.18, 0.35)
    on_fin = draw.random() < 0.25
    parts += wings(
        span * small, root * 0.55, root * 0.3, sweep * small, 0.03, high if on_fin else radius * 0.3, end
    )
    upright = rotation(z=90)  # x of a part points up
    fin = np.array([[0, -0.11], [high, -0.11 - 0.12], [high, -0.02 - 0.08], [0, 0.11]])
    parts.append(_at(Extrusion(fin, 0.015), 0, 0, end + 0.05, upright))
    if draw.random() < 0.6:
        engine = draw.uniform(0.035, 0.06)
        for s in (-1, 1):
            x = s * span * draw.uniform(0.3, 0.45)
            parts.append(
                _at(
                    Frustum(engine, engine, 0.11),
                    x,
                    height - engine,
                    place - sweep * abs(x) / span + 0.08,
                    lying,
                )
            )
    return parts


FAMILIES: dict[str, Callable[[np.random.Generator], Parts]] = {
    "chair": chair,
    "table": table,
    "lamp": lamp,
    "plane": plane,
}
