"""Masks drawn at random: brush strokes, closed Bezier curves, rectangles and the outlines of real objects."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

__all__ = ["RandomMasks", "bezier_blob", "brush_strokes", "object_shape", "rectangle"]

Size = tuple[int, int]
_OVERSAMPLING = 2  # drawn larger and reduced, so that outlines are not stairs
_BLOB_SAMPLES = 24  # per curve


def brush_strokes(
    size: Size,
    generator: torch.Generator,
    strokes: tuple[int, int] = (1, 4),
    vertices: tuple[int, int] = (4, 10),
    width: tuple[float, float] = (0.03, 0.12),
) -> NDArray[np.bool_]:
    """Strokes of a round brush that change direction: free-form masks as inpainting is trained on.

    Args:
        size: (height, width).
        generator: on the CPU.
        strokes: least and most strokes.
        vertices: least and most corners of a stroke.
        width: least and greatest width, as a share of the mean side.

    Returns:
        bool (H, W).
    """
    rng = _random(generator)
    canvas, draw = _canvas(size)
    height, full_width = canvas.height, canvas.width
    mean_side = (height + full_width) / 2
    for _ in range(rng.integers(strokes[0], strokes[1] + 1)):
        x, y = rng.uniform(0, full_width), rng.uniform(0, height)
        heading, thick = rng.uniform(0, 2 * math.pi), rng.uniform(*width) * mean_side
        points = [(x, y)]
        for _ in range(rng.integers(vertices[0], vertices[1] + 1)):
            heading += rng.normal(0, 0.8)
            length = rng.uniform(0.05, 0.25) * mean_side
            x = float(np.clip(x + length * math.cos(heading), 0, full_width))
            y = float(np.clip(y + length * math.sin(heading), 0, height))
            points.append((x, y))
        draw.line(points, fill=255, width=max(1, round(thick)), joint="curve")
        for px, py in points:
            draw.ellipse((px - thick / 2, py - thick / 2, px + thick / 2, py + thick / 2), fill=255)
    return _reduced(canvas, size)


def bezier_blob(
    size: Size,
    generator: torch.Generator,
    extent: tuple[float, float] = (0.15, 0.5),
    corners: tuple[int, int] = (4, 9),
    roughness: float = 0.45,
) -> NDArray[np.bool_]:
    """A closed smooth curve through random points around a random middle, filled.

    Args:
        size: (height, width).
        generator: on the CPU.
        extent: least and greatest diameter, as a share of the shorter side.
        corners: least and most points it goes through.
        roughness: how far radii differ, 0 (nearly an ellipse) to 1.

    Returns:
        bool (H, W).
    """
    rng = _random(generator)
    canvas, draw = _canvas(size)
    radius = rng.uniform(*extent) * min(canvas.size) / 2
    stretch = math.exp(rng.uniform(-0.5, 0.5))
    count = int(rng.integers(corners[0], corners[1] + 1))
    angles = 2 * math.pi * (np.arange(count) + rng.uniform(-0.3, 0.3, count)) / count
    radii = radius * (1 - roughness * rng.uniform(0, 1, count))
    points = np.stack([np.cos(angles) * radii * stretch, np.sin(angles) * radii / stretch], 1)
    turn = rng.uniform(0, 2 * math.pi)
    points = points @ np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    points += _middle(canvas, radius, rng)
    # Cubic Bezier segments whose handles are a third of the chord between the neighbours: a smooth closed curve.
    handles = (np.roll(points, -1, 0) - np.roll(points, 1, 0)) / 6
    t = np.linspace(0, 1, _BLOB_SAMPLES, endpoint=False)[:, None]
    outline: list[tuple[float, float]] = []
    for i in range(count):
        a, b = points[i], points[(i + 1) % count]
        c, d = a + handles[i], b - handles[(i + 1) % count]
        curve = (1 - t) ** 3 * a + 3 * (1 - t) ** 2 * t * c + 3 * (1 - t) * t**2 * d + t**3 * b
        outline += [(float(x), float(y)) for x, y in curve]
    draw.polygon(outline, fill=255)
    return _reduced(canvas, size)


def rectangle(
    size: Size, generator: torch.Generator, extent: tuple[float, float] = (0.15, 0.6)
) -> NDArray[np.bool_]:
    """An upright rectangle whose sides are drawn as shares of the picture's. Bool (H, W)."""
    rng = _random(generator)
    mask = np.zeros(size, dtype=bool)
    height, width = (max(1, round(rng.uniform(*extent) * side)) for side in size)
    top, left = rng.integers(0, size[0] - height + 1), rng.integers(0, size[1] - width + 1)
    mask[top : top + height, left : left + width] = True
    return mask


def object_shape(
    size: Size,
    generator: torch.Generator,
    shape: NDArray,
    extent: tuple[float, float] = (0.2, 0.7),
) -> NDArray[np.bool_]:
    """The outline of a real object, mirrored, turned, scaled and put somewhere.

    Args:
        size: (height, width).
        generator: on the CPU.
        shape: mask of the object (h, w): bool, 8-bit or float; alpha of a cut-out, for one.
        extent: least and greatest longer side, as a share of the shorter side of ``size``.

    Returns:
        bool (H, W); at least half of the object is in the picture.
    """
    from .masks import bounding_box, soften

    box = bounding_box(shape)
    if box is None:
        return np.zeros(size, dtype=bool)
    rng = _random(generator)
    picture = Image.fromarray(np.rint(soften(np.asarray(shape))[box.slices] * 255).astype(np.uint8))
    if rng.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    longest = rng.uniform(*extent) * min(size)
    scale = longest / max(picture.size)
    picture = picture.resize(
        [max(1, round(side * scale)) for side in picture.size], Image.Resampling.BILINEAR
    )
    picture = picture.rotate(rng.uniform(-30, 30), Image.Resampling.BILINEAR, expand=True)
    canvas = Image.new("L", (size[1], size[0]), 0)
    x = round(rng.uniform(-picture.width / 4, size[1] - 3 * picture.width / 4))
    y = round(rng.uniform(-picture.height / 4, size[0] - 3 * picture.height / 4))
    canvas.paste(picture, (x, y))
    return np.asarray(canvas) > 127


@dataclass(frozen=True)
class RandomMasks:
    """Draws one of the kinds above per call.

    Attributes:
        brush: how often strokes, relative to the others.
        blob: how often closed curves.
        rectangle: how often rectangles.
        object: how often outlines from ``shapes``.
        shapes: masks of objects, (h, w) each.
        area: least and greatest share of the picture that is set; what misses is drawn again, ten times at most.
    """

    brush: float = 1.0
    blob: float = 1.0
    rectangle: float = 0.0
    object: float = 0.0
    shapes: Sequence[NDArray] = field(default=(), repr=False)
    area: tuple[float, float] = (0.01, 0.6)

    def __post_init__(self) -> None:
        """Check what is asked for."""
        if self.object and not len(self.shapes):
            raise ValueError("RandomMasks(object=...) needs shapes: masks of objects to draw from")
        if not any((self.brush, self.blob, self.rectangle, self.object)):
            raise ValueError("RandomMasks: all kinds have weight 0; give one of them more")

    def __call__(self, size: Size, generator: torch.Generator) -> NDArray[np.bool_]:
        """Return a mask, bool (H, W), that is never empty."""
        weights = torch.tensor([self.brush, self.blob, self.rectangle, self.object], dtype=torch.float64)
        best, distance = np.zeros(size, dtype=bool), math.inf
        for _ in range(10):
            kind = int(torch.multinomial(weights, 1, generator=generator))
            if kind == 3:
                which = int(torch.randint(len(self.shapes), (), generator=generator))
                mask = object_shape(size, generator, self.shapes[which])
            else:
                mask = (brush_strokes, bezier_blob, rectangle)[kind](size, generator)
            share = float(mask.mean())
            miss = max(self.area[0] - share, share - self.area[1], 0.0)
            if share and miss < distance:
                best, distance = mask, miss
            if not distance:
                break
        return best if best.any() else rectangle(size, generator)


def _random(generator: torch.Generator) -> np.random.Generator:
    return np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))


def _canvas(size: Size) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    canvas = Image.new("L", (size[1] * _OVERSAMPLING, size[0] * _OVERSAMPLING), 0)
    return canvas, ImageDraw.Draw(canvas)


def _middle(canvas: Image.Image, radius: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Where a thing of this radius goes: inside where there is room."""
    low = [min(radius, side / 2) for side in canvas.size]
    return np.array([rng.uniform(a, max(a, side - a)) for a, side in zip(low, canvas.size, strict=True)])


def _reduced(canvas: Image.Image, size: Size) -> NDArray[np.bool_]:
    return np.asarray(canvas.reduce(_OVERSAMPLING)) > 127
