"""Drawing a person: background, body, the worn garment, hair and face, and the masks of all this."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .body import Body, LimbField
from .fabric import Pictures, draw_colour
from .flat import SLEEVE_START, body_colours, edge, grid, put, sleeve_colours, sleeve_points
from .garment import Garment, Values

__all__ = ["Cloth", "Figure", "draw_person"]

LOWEST_HEM = 1.24
"""Below the longest garment, in torso lengths; the masks reach so far, whatever is worn."""


class Figure:
    """Fields of a body on a grid of pixels, from which pictures and masks are made.

    Args:
        body: the body.
        size: (height, width) in pixels.
    """

    def __init__(self, body: Body, size: tuple[int, int]) -> None:
        self.body, self.size = body, size
        row, column = grid(*size)
        scale = body.unit * size[0]
        self.pixel = 1 / scale
        self.x, self.y = column / np.float32(scale), row / np.float32(scale)
        self.across, self.down = body.torso.coordinates(self.x, self.y)
        self.half = body.half_width(self.down)
        self.arms = [arm.field(self.x, self.y) for arm in body.arms]
        self.forearms = [arm.field(self.x, self.y, second_only=True) for arm in body.arms]
        self.head = self._head()

    def _head(self) -> tuple[Values, Values]:
        c, s = np.float32(np.cos(self.body.head_turn)), np.float32(np.sin(self.body.head_turn))
        dx, dy = self.x - np.float32(self.body.head[0]), self.y - np.float32(self.body.head[1])
        return (dx * c - dy * s) / self.body.head_size[0], (dx * s + dy * c) / self.body.head_size[1]

    def skin_torso(self) -> Values:
        """How far inside the torso or neck pixels lie, in torso lengths."""
        side = np.abs(self.across)
        slope = 0.12 / max(0.1, self.body.shoulder - self.body.neck_radius)
        shoulders = self.down - np.maximum(side - self.body.neck_radius, 0) * slope
        torso = np.minimum(self.half - side, np.minimum(shoulders, 1.1 - self.down))
        neck = np.minimum(self.body.neck_radius - side, np.minimum(self.down + 0.4, 0.3 - self.down))
        return np.maximum(torso, neck)

    def hand(self, arm: int) -> Values:
        """How far inside a hand pixels lie."""
        limb = self.body.arms[arm]
        direction = (limb.c - limb.b) / np.linalg.norm(limb.c - limb.b)
        middle = limb.c + 0.07 * direction
        dx, dy = self.x - np.float32(middle[0]), self.y - np.float32(middle[1])
        along, across = dx * direction[0] + dy * direction[1], dx * direction[1] - dy * direction[0]
        size = limb.radii[2] / 0.055
        return (1 - np.hypot(along / (0.11 * size), across / (0.068 * size))) * np.float32(0.068 * size)

    def face(self) -> Values:
        """How far inside the head, with its hair, pixels lie."""
        hx, hy = self.head
        return (1.06 - np.hypot(hx, hy)) * np.float32(self.body.head_size[0])

    def front_hair(self) -> Values:
        """How far inside the hair on the head pixels lie."""
        hx, hy = self.head
        line = self.body.hair_line + 0.5 * hx * hx
        return np.minimum((1.1 - np.hypot(hx, hy)) * 0.17, (line - hy) * 0.2)

    def back_hair(self) -> Values:
        """How far inside long hair behind the shoulders pixels lie."""
        hx, hy = self.head
        return np.minimum(
            (1.25 - np.abs(hx)) * 0.17, np.minimum(hy + 0.3, 1 - hy + 4 * self.body.long_hair) * 0.2
        )

    def lit(self, side: Values, facing: Values | None = None) -> Values:
        """Light on a round surface; `side` is -1..1 across it, `facing` the image-x of that direction."""
        bounded = np.clip(side, -1, 1)
        x = bounded if facing is None else np.clip(facing, -1, 1)
        lx, lz = self.body.light
        return 0.62 + 0.4 * np.clip(lx * x + lz * np.sqrt(1 - bounded * bounded), 0, 1)


@dataclass
class Cloth:
    """Which cloth each pixel of a person shows.

    Attributes:
        part: (H, W) int8; 0 none, 1 the body part, 2 and 3 the sleeves.
        x, y: (H, W) of the garment laid flat, in its units; where there is cloth.
    """

    part: NDArray[np.int8]
    x: Values
    y: Values

    def cover(self, alpha: Values, part: int = 0, points: tuple[Values, Values] | None = None) -> None:
        """Lay something over: the part with its points, or what is no cloth."""
        at = alpha > 0.5
        self.part[at] = part
        if points is not None:
            self.x[at], self.y[at] = points[0][at], points[1][at]


def draw_person(
    figure: Figure, garment: Garment, pictures: Pictures, rng: np.random.Generator
) -> tuple[NDArray[np.float32], Values, Cloth]:
    """Picture of the person in the garment.

    Args:
        figure: the body on its grid.
        garment: what is worn.
        pictures: for the background.
        rng: of background, trousers and folds.

    Returns:
        (H, W, 3) colours, (H, W) mask of the garment's visible part, in [0, 1], and which cloth is where.
    """
    body, pixel = figure.body, figure.pixel
    canvas = _background(rng, pictures, figure.size)
    trousers, folds = draw_colour(rng, dull=0.5), _Folds(rng)
    if body.long_hair:
        _paint(canvas, edge(figure.back_hair(), pixel), body.hair * 0.8, np.ones_like(figure.x))
    for leg in body.legs:
        field = leg.field(figure.x, figure.y)
        _paint(canvas, edge(-field.outside, pixel), trousers, figure.lit(field.side, field.facing))
    flank = figure.across / figure.half
    lit = figure.lit(flank)
    skin = figure.skin_torso()
    _paint(canvas, edge(skin, pixel), body.skin, lit)
    belt = np.minimum(figure.half - np.abs(figure.across), np.minimum(figure.down - 0.93, 1.15 - figure.down))
    _paint(canvas, edge(belt, pixel), trousers, lit)
    nothing = np.zeros(figure.size, np.float32)
    cloth = Cloth(np.zeros(figure.size, np.int8), nothing, nothing.copy())
    worn = _wear_body(figure, garment, canvas, folds, cloth)
    for number in range(2):
        _cast_shadow(figure, canvas, number)
        worn = _draw_arm(figure, garment, canvas, worn, number, folds, cloth)
    return *_draw_head(figure, canvas, worn, cloth), cloth


def _wear_body(figure: Figure, garment: Garment, canvas: Values, folds: _Folds, cloth: Cloth) -> Values:
    body = figure.body
    ease = 0.02 + 0.45 * max(0.0, garment.hem - 0.37)
    half = figure.half + np.float32(ease) * np.clip(figure.down / 0.5, 0.2, 1)
    side = figure.across / half
    crease, shift = folds.at(figure.across, figure.down)
    turned = body.yaw * np.clip((figure.down - 0.1) / 0.4, 0, 1) * (1 - np.minimum(side * side, 1))
    y = figure.down + shift
    x = (side - turned + shift * 0.5) * garment.half_width(y)
    alpha = edge(garment.body_inside(x, y), figure.pixel)
    worn = np.zeros(figure.size, np.float32)
    light = figure.lit(side) * (1 + crease)
    put(canvas, worn, alpha, lambda at: body_colours(garment, x[at], y[at]), light)
    cloth.cover(alpha, 1, (x, y))
    return worn


def _draw_arm(
    figure: Figure,
    garment: Garment,
    canvas: Values,
    worn: Values,
    number: int,
    folds: _Folds,
    cloth: Cloth,
) -> Values:
    body, field = figure.body, figure.arms[number]
    light = figure.lit(field.side, field.facing)
    bare = edge(-field.outside, figure.pixel)
    _paint(canvas, bare, body.skin, light)
    worn = worn * (1 - bare)
    cloth.cover(bare)
    if garment.sleeve:
        along = field.along + np.float32(SLEEVE_START)
        half = garment.sleeve_half_width(along)
        radius = _radius(field)
        ease = np.maximum(0.012, 0.55 * (half - 1.5 * radius)).astype(np.float32)
        inside = np.minimum(ease - field.outside, garment.sleeve + SLEEVE_START - along)
        alpha = edge(inside, figure.pixel)
        side = field.side * radius / (radius + ease)
        crease, shift = folds.at(side * 0.3, along * 0.8 + number)
        light = figure.lit(side, field.facing * radius / (radius + ease)) * (1 + crease)
        across = (side * half + shift).astype(np.float32)
        put(canvas, worn, alpha, lambda at: sleeve_colours(garment, across[at], along[at]), light)
        cloth.cover(alpha, 2 + number, sleeve_points(garment, across, along, 2 * number - 1))
    hand = edge(figure.hand(number), figure.pixel)
    _paint(canvas, hand, body.skin, figure.lit(field.side, field.facing))
    cloth.cover(hand)
    return worn * (1 - hand)


def _radius(field: LimbField) -> Values:
    """Radius of a limb at each pixel: what lies between its middle line and its surface."""
    # |across| = side * radius and outside = distance - radius; beside the segment distance is |across|.
    return np.interp(field.along, [0, 0.6, 1.1], [0.1, 0.078, 0.055]).astype(np.float32)


def _cast_shadow(figure: Figure, canvas: Values, number: int) -> None:
    """A forearm before the torso darkens what is around it."""
    near = np.clip(1 - figure.forearms[number].outside / 0.09, 0, 1) * (figure.skin_torso() > -0.05)
    at = near > 0
    canvas[at] *= (1 - 0.3 * near[at])[:, None]


def _draw_head(
    figure: Figure, canvas: Values, worn: Values, cloth: Cloth
) -> tuple[NDArray[np.float32], Values]:
    body, pixel = figure.body, figure.pixel
    hx, hy = figure.head
    inside = (1 - np.hypot(hx, hy)) * np.float32(body.head_size[0])
    light = figure.lit(hx)
    cover = edge(inside, pixel)
    _paint(canvas, cover, body.skin, light)
    middle = body.yaw * 0.9
    for place in (-0.36, 0.36):
        eye = (0.1 - np.hypot(hx - middle - place, (hy + 0.02) * 1.5)) * body.head_size[0]
        _paint(canvas, edge(eye, pixel), np.float32([0.12, 0.1, 0.1]), np.ones_like(hx))
    mouth = np.minimum(0.3 - np.abs(hx - middle), 0.07 - np.abs(hy - 0.52)) * body.head_size[0]
    _paint(canvas, edge(mouth, pixel), body.skin * np.float32([0.8, 0.5, 0.5]), np.ones_like(hx))
    hair = edge(figure.front_hair(), pixel)
    _paint(canvas, hair, body.hair, light)
    cloth.cover(np.maximum(cover, hair))
    return canvas.clip(0, 1), worn * (1 - cover) * (1 - hair)


class _Folds:
    """Creases of cloth: a few waves, each in a place of its own."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.waves = [
            (
                *rng.uniform((-0.35, 0.2), (0.35, 1.1)),  # where
                rng.uniform(-1.2, 1.2),  # direction
                rng.uniform(14, 32),  # how narrow
                rng.uniform(0.03, 0.09),  # how dark
            )
            for _ in range(4)
        ]

    def at(self, x: Values, y: Values) -> tuple[Values, Values]:
        """What they add to the light (relative), and how far they move the cloth, in garment units."""
        light, shift = np.zeros_like(x), np.zeros_like(x)
        for x0, y0, turn, narrow, strength in self.waves:
            dx, dy = x - np.float32(x0), y - np.float32(y0)
            phase = np.float32(narrow) * (dx * np.float32(np.sin(turn)) + dy * np.float32(np.cos(turn)))
            window = np.float32(strength) * np.exp(-8 * (dx * dx + dy * dy))
            light += window * np.cos(phase)
            shift += window * np.sin(phase) * np.float32(0.15)
        return light, shift


def _paint(canvas: Values, alpha: Values, colour: Values, light: Values) -> None:
    put(canvas, None, alpha, lambda at: colour, light)


def _background(rng: np.random.Generator, pictures: Pictures, size: tuple[int, int]) -> Values:
    height, width = size
    if rng.random() < 0.4:  # a studio
        top, bottom = rng.uniform(0.35, 0.95, 3), rng.uniform(0.35, 0.95, 3)
        if rng.random() < 0.6:
            top, bottom = (np.full(3, colour.mean()) for colour in (top, bottom))
        share = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
        return np.broadcast_to(top + (bottom - top) * share, (height, width, 3)).astype(np.float32)
    photo = pictures.photo(rng)
    room = min(photo.shape[0] / height, photo.shape[1] / width)
    scale = room * rng.uniform(0.5, 1.0)
    high, wide = (max(1, int(side * scale)) for side in size)
    top, left = int(rng.integers(photo.shape[0] - high + 1)), int(rng.integers(photo.shape[1] - wide + 1))
    crop = Image.fromarray(photo[top : top + high, left : left + wide])
    blur = rng.uniform(2, 6) * height / 192
    soft = crop.resize((max(2, int(width / blur)), max(2, int(height / blur))), Image.Resampling.BOX)
    return np.asarray(soft.resize((width, height), Image.Resampling.BICUBIC), np.float32) / 255


def masks_of(figure: Figure, rng: np.random.Generator) -> dict[str, Any]:
    """Regions of the body that the masks are made of; none depends on what is worn.

    Returns:
        ``arms``, ``torso``, ``head`` and ``hands``: (H, W) bool.
    """
    arm_room, side_room = rng.uniform(0.07, 0.11), rng.uniform(0.09, 0.14)
    arms = np.minimum(figure.arms[0].outside, figure.arms[1].outside) < arm_room
    side = np.abs(figure.across)
    torso = (side < figure.half + side_room) & (figure.down > -0.05) & (figure.down < LOWEST_HEM)
    head = (figure.face() > 0) | (figure.front_hair() > 0)
    hands = np.maximum(figure.hand(0), figure.hand(1)) > 0
    return {"arms": arms, "torso": torso, "head": head, "hands": hands}
