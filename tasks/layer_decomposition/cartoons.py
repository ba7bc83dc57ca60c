"""Drawn illustrations whose layers are known exactly: shapes in flat colours, their outlines, cel shading.

The infinite set beside the vector drawings of the corpus, and the shading of those drawings that have none.
"""

from __future__ import annotations

import colorsys
import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

__all__ = ["cel_shading", "draw_cartoon"]

Layer = NDArray[np.float32]
_FINER = 2  # drawn larger, then averaged: smooth edges


def draw_cartoon(rng: np.random.Generator, side: int = 128, ground: float = 0.25) -> Layer:
    """A picture of outlined shapes as its layers.

    Args:
        rng: of everything.
        side: in pixels.
        ground: how often the whole picture has a colour, instead of lying on paper.

    Returns:
        (4, side, side, 4): flat colour, shadow, highlight, line art; straight alpha in [0, 1].
    """
    big = side * _FINER
    flat = Image.new("RGBA", (big, big), (0, 0, 0, 0))
    line = Image.new("RGBA", (big, big), (0, 0, 0, 0))
    flat_pen, line_pen = ImageDraw.Draw(flat), ImageDraw.Draw(line)
    ink = _ink(rng)
    width = max(1, round(big * rng.uniform(0.006, 0.022)))
    if rng.random() < ground:
        flat_pen.rectangle((0, 0, big, big), fill=(*_colour(rng), 255))
    count = int(rng.integers(3, 11))
    centre, spread = big * rng.uniform(0.4, 0.6, 2), big * rng.uniform(0.15, 0.35)
    for index in range(count):
        size = big * rng.uniform(0.12, 0.4) * (1 - 0.6 * index / count)
        points = _outline(rng, centre + rng.normal(0, spread, 2), size)
        if rng.random() < 0.92:
            flat_pen.polygon(points, fill=(*_colour(rng), 255))
            line_pen.polygon(points, fill=(0, 0, 0, 0))
        if rng.random() < 0.9:
            colour = ink if rng.random() < 0.85 else _ink(rng)
            _stroke(line_pen, [*points, points[0]], width, colour)
        for _ in range(int(rng.integers(0, 3))):  # strokes inside: folds, hair, feathers
            first, last = (points[int(rng.integers(len(points)))] for _ in range(2))
            bend = np.array(points).mean(0) + rng.normal(0, size / 3, 2)
            curve = [_bezier(first, bend, last, s) for s in np.linspace(0.15, 0.75, 12)]
            _stroke(line_pen, curve, max(1, width // 2 + 1), ink)
    flat_layer, line_layer = _reduced(flat, side), _reduced(line, side)
    flat_layer = under_lines(flat_layer, line_layer[..., 3])
    shadow, highlight = cel_shading(rng, flat_layer[..., 3], line_layer[..., 3])
    return stack(flat_layer, shadow, highlight, line_layer)


def stack(flat: Layer, shadow: Layer, highlight: Layer, line: Layer) -> Layer:
    """Four layers (4, H, W, 4) of two with colours (H, W, 4) and two that are their alpha (H, W)."""
    black, white = np.zeros_like(flat), np.ones_like(flat)
    black[..., 3], white[..., 3] = shadow, highlight
    return np.stack([flat, black, white, line])


def under_lines(flat: Layer, line_alpha: Layer) -> Layer:
    """The flat layer with the colour of the nearest pixel beside the line under it, where nobody sees it."""
    from scipy import ndimage

    hidden = line_alpha > 0.05
    if not hidden.any() or hidden.all():
        return flat
    rows, columns = ndimage.distance_transform_edt(hidden, return_distances=False, return_indices=True)
    return flat[rows, columns]


def cel_shading(rng: np.random.Generator, alpha: Layer, line: Layer) -> tuple[Layer, Layer]:
    """Alpha (H, W) of shadow and highlight of bodies lit from one side.

    The whole figure, or in one picture of four every region that lines enclose, is a pillow with waves on it; where
    its normal is turned from the light far enough is shadow, where it looks at the light, highlight. Edges are hard, or
    soft in one picture of four.

    Args:
        rng: of light, waves, thresholds and strengths.
        alpha: (H, W) of the flat layer.
        line: (H, W) of the line layer.
    """
    from scipy import ndimage

    height, width = alpha.shape
    inside = (alpha > 0.5) & ((line < 0.5) | (rng.random() < 0.75))
    depth = ndimage.distance_transform_edt(np.pad(inside, 1))[1:-1, 1:-1]
    reach = rng.uniform(0.1, 0.3) * width
    pillow = np.sqrt(np.clip(depth / reach, 0, 1)) * reach
    waves = ndimage.zoom(rng.normal(size=(6, 6)), (height / 6, width / 6), order=3)[:height, :width]
    blur = rng.uniform(0.015, 0.035) * width
    surface = ndimage.gaussian_filter(pillow + waves * rng.uniform(0.0, 0.05) * width, blur)
    down, right = np.gradient(surface)
    angle = rng.uniform(0, 2 * math.pi)
    light = -(right * math.cos(angle) + down * math.sin(angle)) / np.sqrt(1 + down**2 + right**2)
    softness = rng.uniform(0.1, 0.3) if rng.random() < 0.25 else 0.04
    where = ndimage.gaussian_filter(inside.astype(np.float32), 0.5) * (alpha > 0.5)
    result = []
    for sign, threshold, strength, share in (
        (-1, rng.uniform(0.15, 0.4), rng.uniform(0.2, 0.6), 0.9),
        (1, rng.uniform(0.35, 0.6), rng.uniform(0.3, 0.8), 0.75),
    ):
        amount = np.clip((sign * light - threshold) / softness + 0.5, 0, 1) * strength
        result.append((amount * where * (rng.random() < share)).astype(np.float32))
    return result[0], result[1] * (result[0] < 0.02)


def _outline(rng: np.random.Generator, centre: NDArray, size: float) -> list[tuple[float, float]]:
    """The corners of a blob, an ellipse, a polygon or a rounded star."""
    kind = rng.random()
    angles = np.linspace(0, 2 * math.pi, 72, endpoint=False)
    radii = np.ones_like(angles)
    if kind < 0.5:
        for wave in range(2, 6):
            radii += rng.normal(0, 0.28 / wave) * np.cos(wave * angles + rng.uniform(0, 2 * math.pi))
    elif kind < 0.8:
        corners = int(rng.integers(3, 8))
        angles = (
            np.sort(rng.uniform(0, 2 * math.pi, corners)) if rng.random() < 0.4 else angles[:: 72 // corners]
        )
        radii = rng.uniform(0.7, 1.1, len(angles))
    stretch = np.array([1.0, rng.uniform(0.4, 1.0)])
    turn = rng.uniform(0, 2 * math.pi)
    points = np.stack([np.cos(angles), np.sin(angles)], 1) * np.clip(radii, 0.2, 2)[:, None] * stretch * size
    rotation = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    return [(float(x), float(y)) for x, y in points @ rotation.T + centre]


def _stroke(pen: ImageDraw.ImageDraw, points: list, width: int, colour: tuple[int, int, int]) -> None:
    pen.line(points, fill=(*colour, 255), width=width, joint="curve")
    for x, y in (points[0], points[-1]):
        half = width / 2
        pen.ellipse((x - half, y - half, x + half, y + half), fill=(*colour, 255))


def _bezier(first: tuple, bend: NDArray, last: tuple, s: float) -> tuple[float, float]:
    x, y = (1 - s) ** 2 * np.array(first) + 2 * s * (1 - s) * bend + s**2 * np.array(last)
    return float(x), float(y)


def _colour(rng: np.random.Generator) -> tuple[int, int, int]:
    if rng.random() < 0.12:
        return (255, 255, 255)
    saturation = rng.uniform(0, 0.2) if rng.random() < 0.25 else rng.uniform(0.25, 1)
    rgb = colorsys.hsv_to_rgb(rng.random(), saturation, rng.uniform(0.35, 1))
    return tuple(round(255 * c) for c in rgb)  # type: ignore[return-value]


def _ink(rng: np.random.Generator) -> tuple[int, int, int]:
    value = 0.0 if rng.random() < 0.6 else rng.uniform(0, 0.35)
    rgb = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0, 0.8), value)
    return tuple(round(255 * c) for c in rgb)  # type: ignore[return-value]


def _reduced(picture: Image.Image, side: int) -> Layer:
    """Averaged with its alpha premultiplied: straight colours again, in [0, 1]."""
    values = np.asarray(picture, np.float32) / 255
    values = np.concatenate([values[..., :3] * values[..., 3:], values[..., 3:]], -1)
    values = values.reshape(side, _FINER, side, _FINER, 4).mean((1, 3))
    values[..., :3] /= np.maximum(values[..., 3:], 1e-3)
    return values
