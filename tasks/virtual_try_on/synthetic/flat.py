"""A garment laid flat on a light ground, as product photographs show it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .fabric import sample
from .garment import SHOULDER_DROP, Garment, Values

__all__ = ["SLEEVE_START", "Lay", "draw_flat", "edge", "sleeve_colours", "sleeve_points"]

SLEEVE_START = 0.1
"""Where, on a sleeve laid flat, the shoulder's joint lies."""


@dataclass(frozen=True)
class Lay:
    """Where a garment lies in its picture.

    Attributes:
        size: (height, width) of the picture in pixels.
        scale: pixels to a garment unit.
        turn: how far it is turned, radians.
        middle: column of its middle line, pixels.
        down: how far it reaches down, garment units.
    """

    size: tuple[int, int]
    scale: float
    turn: float
    middle: float
    down: float

    def units(self, column: Values, row: Values) -> tuple[Values, Values]:
        """Garment units of pixels."""
        px = (column - self.middle) / self.scale
        py = (row - self.size[0] / 2) / self.scale + self.down / 2
        return px + self.turn * (py - self.down / 2), py - self.turn * px

    def place(self, x: Values, y: Values) -> Values:
        """Where garment units lie in the picture, (2, ...) in [-1, 1] from edge to edge; inverse of `units`."""
        px = (x + self.turn * (self.down / 2 - y)) / (1 + self.turn**2)
        py = y + self.turn * px
        height, width = self.size
        column = px * self.scale + self.middle
        row = (py - self.down / 2) * self.scale + height / 2
        return np.stack([2 * column / width - 1, 2 * row / height - 1]).astype(np.float32)

    def shows(self, garment: Garment, x: Values, y: Values, sleeve: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Whether points of the body part or of a sleeve can be seen: the body part lies over the sleeves."""
        return np.where(sleeve, garment.body_inside(x, y) < -0.5 / self.scale, True)


def draw_flat(
    garment: Garment, size: tuple[int, int], rng: np.random.Generator
) -> tuple[NDArray[np.float32], Values, Lay]:
    """Picture and mask of a garment laid flat.

    Args:
        garment: what to draw.
        size: (height, width) in pixels.
        rng: of ground, light and folds.

    Returns:
        (H, W, 3) colours and (H, W) mask, in [0, 1], and how it lies.
    """
    height, width = size
    reach = max(garment.shoulder, garment.chest, garment.hem)
    if garment.sleeve:
        end = garment.sleeve + SLEEVE_START
        reach = max(reach, sleeve_origin(garment)[0] + end * np.sin(garment.sleeve_angle) + 0.12)
        down = max(garment.length, sleeve_origin(garment)[1] + end * np.cos(garment.sleeve_angle) + 0.08)
    else:
        down = garment.length
    scale = min(width / (2 * reach), height / down) * rng.uniform(0.88, 0.94)  # pixels to a unit
    row, column = grid(height, width)
    turn = rng.uniform(-0.04, 0.04)
    lay = Lay(size, scale, turn, width / 2 * rng.uniform(0.97, 1.03), down)
    x, y = lay.units(column, row)
    pixel = 1 / scale
    ground = np.float32(rng.uniform(0.9, 0.98)) + rng.uniform(-0.02, 0.02, 3).astype(np.float32)
    canvas = np.broadcast_to(ground.clip(0, 1), (height, width, 3)).copy()
    mask = np.zeros((height, width), np.float32)
    light = _soft_light(x, y, rng)
    if garment.sleeve:
        for sign in (-1, 1):
            along, across = sleeve_coordinates(garment, x, y, sign)
            half = garment.sleeve_half_width(along)
            inside = np.minimum(half - np.abs(across), garment.sleeve + SLEEVE_START - along)
            alpha = edge(np.minimum(inside, along + 0.05), pixel)
            put(
                canvas,
                mask,
                alpha,
                lambda at, a=along, c=across: sleeve_colours(garment, c[at], a[at]),
                light * 0.97,
            )
    inside = garment.body_inside(x, y)
    alpha = edge(inside, pixel)
    if garment.sleeve:  # the seam
        light = light * (1 - 0.12 * np.exp(-((inside / (1.2 * pixel)) ** 2)))
    put(canvas, mask, alpha, lambda at: body_colours(garment, x[at], y[at]), light)
    return canvas.clip(0, 1), mask, lay


def body_colours(garment: Garment, x: Values, y: Values) -> Values:
    """Colours (N, 3) of the body part at garment units (N,)."""
    colours = sample(garment.sheet, x, y)
    band = garment.trim_share(x, y)[:, None]
    return colours + (garment.trim_colour - colours) * band


def sleeve_colours(garment: Garment, across: Values, along: Values) -> Values:
    """Colours (N, 3) of a sleeve at its own coordinates (N,)."""
    colours = sample(garment.sleeve_sheet, across, along - 0.5)
    band = (along > garment.sleeve + SLEEVE_START - garment.trim)[:, None]
    return np.where(band, garment.trim_colour, colours).astype(np.float32)


def sleeve_origin(garment: Garment) -> tuple[float, float]:
    """Where the middle line of the right sleeve laid flat begins: its upper edge meets the shoulder."""
    half, angle = garment.sleeve_width[0], garment.sleeve_angle
    return garment.shoulder - half * np.cos(angle), SHOULDER_DROP + half * np.sin(angle)


def sleeve_coordinates(garment: Garment, x: Values, y: Values, sign: int) -> tuple[Values, Values]:
    """(along, across) of pixels on a sleeve laid flat; `sign` is -1 for the left one of the picture."""
    start = sleeve_origin(garment)
    sine, cosine = sign * np.sin(garment.sleeve_angle), np.cos(garment.sleeve_angle)
    dx, dy = x - np.float32(sign * start[0]), y - np.float32(start[1])
    return (dx * sine + dy * cosine).astype(np.float32), (dx * cosine - dy * sine).astype(np.float32)


def sleeve_points(garment: Garment, across: Values, along: Values, sign: int) -> tuple[Values, Values]:
    """Garment units of points on a sleeve laid flat; inverse of `sleeve_coordinates`."""
    start = sleeve_origin(garment)
    sine, cosine = sign * np.sin(garment.sleeve_angle), np.cos(garment.sleeve_angle)
    x, y = along * sine + across * cosine, along * cosine - across * sine
    return (x + sign * start[0]).astype(np.float32), (y + start[1]).astype(np.float32)


def edge(inside: Values, pixel: float) -> Values:
    """Coverage in [0, 1] of pixels by a shape, from how far inside it they lie."""
    return np.clip(0.5 + inside / pixel, 0, 1).astype(np.float32)


def put(canvas: Values, mask: Values | None, alpha: Values, colours_at: Any, light: Values) -> None:
    """Lay a shape over the canvas, in place; only its own pixels are computed."""
    at = alpha > 0
    cover = alpha[at]
    colours = colours_at(at) * light[at][:, None]
    below = canvas[at]
    canvas[at] = below + (colours - below) * cover[:, None]
    if mask is not None:
        mask[at] = np.maximum(mask[at], cover)


@lru_cache(maxsize=8)
def grid(height: int, width: int) -> tuple[Values, Values]:
    """Middles of pixels: rows (H, W) and columns (H, W)."""
    row, column = np.mgrid[:height, :width].astype(np.float32) + np.float32(0.5)
    row.flags.writeable = column.flags.writeable = False
    return row, column


def _soft_light(x: Values, y: Values, rng: np.random.Generator) -> Values:
    light = np.full_like(x, 1.0)
    for _ in range(2):
        kx, ky = rng.uniform(-9, 9), rng.uniform(-4, 4)
        light += rng.uniform(0, 0.03) * np.sin(kx * x + ky * y + rng.uniform(0, 6.3))
    return light
