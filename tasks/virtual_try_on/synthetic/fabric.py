"""What garments are made of: plain cloth, stripes, checks, dots, photographs; and the prints on them."""

from __future__ import annotations

import colorsys
import string
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

__all__ = ["EXTENT", "Pictures", "draw_colour", "draw_fabric", "draw_print", "sample"]

EXTENT = 1.3
"""A sheet of fabric covers [-EXTENT, EXTENT] garment units in both directions."""

Sheet = NDArray[np.float32]


class Pictures(Protocol):
    """Where photographs and cut-outs come from."""

    def photo(self, rng: np.random.Generator) -> NDArray[np.uint8]:
        """(H, W, 3)."""

    def cutout(self, rng: np.random.Generator) -> NDArray[np.uint8]:
        """(H, W, 4)."""


def draw_colour(rng: np.random.Generator, dull: float = 0.0) -> NDArray[np.float32]:
    """A colour of clothes, (3,) in [0, 1]: any hue, often black, white or grey.

    Args:
        rng: of the draw.
        dull: 0 for any saturation, 1 for greys only.
    """
    if rng.random() < 0.25:
        return np.full(3, rng.choice([0.08, 0.15, 0.35, 0.6, 0.85, 0.93]), np.float32)
    saturation, value = rng.uniform(0.25, 0.95) * (1 - dull), rng.uniform(0.25, 0.95)
    return np.array(colorsys.hsv_to_rgb(rng.random(), saturation, value), np.float32)


def draw_fabric(rng: np.random.Generator, pictures: Pictures, resolution: int) -> Sheet:
    """A sheet (resolution, resolution, 3) in [0, 1] that covers [-EXTENT, EXTENT] garment units."""
    axis = np.linspace(-EXTENT, EXTENT, resolution, dtype=np.float32)
    x, y = axis[None, :], axis[:, None]
    blank = np.zeros((resolution, resolution), np.float32)
    pixel = 2 * EXTENT / resolution
    kind = rng.choice(["plain", "stripes", "checks", "dots", "photo"], p=[0.3, 0.2, 0.12, 0.1, 0.28])
    base, other = draw_colour(rng), draw_colour(rng)
    while np.abs(base - other).max() < 0.25:  # a pattern nobody sees is no pattern
        other = draw_colour(rng)
    if kind == "photo":
        return _photograph(rng, pictures, resolution)
    if kind == "plain":
        share = blank
    elif kind == "stripes":
        turn = rng.choice([0.0, np.pi / 2, rng.uniform(-0.8, 0.8)], p=[0.55, 0.25, 0.2])
        share = _band(y * np.cos(turn) + x * np.sin(turn) + blank, rng, pixel)
    elif kind == "checks":
        state = rng.bit_generator.state
        rows = _band(y + blank, rng, pixel)
        rng.bit_generator.state = state
        share = (rows + _band(x + blank, rng, pixel)) / 2
    else:
        period = rng.uniform(0.14, 0.3)
        row = np.round(y / period)
        shift = 0.5 * (row % 2) if rng.random() < 0.6 else 0.0
        dx = (x / period + shift + 0.5) % 1 - 0.5
        dy = y / period - row
        share = np.clip(0.5 + (rng.uniform(0.2, 0.34) - np.hypot(dx, dy)) * period / pixel, 0, 1)
    sheet = base + (other - base) * share[..., None]
    strength = rng.choice([0.0, 0.012, 0.03])
    # Threads of their own: how many are drawn depends on the resolution, what is drawn after them must not.
    threads = np.random.default_rng(rng.integers(2**62))
    weave = threads.normal(0, strength, (resolution // 2 + 1,) * 2).astype(np.float32)
    weave = np.repeat(np.repeat(weave, 2, 0), 2, 1)[:resolution, :resolution]
    return np.clip(sheet + weave[..., None], 0, 1).astype(np.float32)


def draw_print(rng: np.random.Generator, pictures: Pictures, sheet: Sheet) -> Sheet:
    """Copy of a sheet with a picture or letters on the chest."""
    resolution = sheet.shape[0]
    per_unit = resolution / (2 * EXTENT)
    width = rng.uniform(0.3, 0.52) * per_unit  # garment units to pixels
    written = rng.random() < 0.3
    figure = _letters(rng, sheet, int(width * 1.5) + 8) if written else Image.fromarray(pictures.cutout(rng))
    ratio = min(width / figure.width, 0.55 * per_unit / figure.height)
    size = (max(2, round(figure.width * ratio)), max(2, round(figure.height * ratio)))
    figure = figure.convert("RGBa").resize(size, Image.Resampling.LANCZOS)
    middle = (rng.uniform(-0.03, 0.03), rng.uniform(0.36, 0.5))
    left, top = (round((middle[i] + EXTENT) * per_unit - size[i] / 2) for i in range(2))
    painted = sheet.copy()
    rgba = np.asarray(figure, np.float32) / 255
    part = painted[top : top + size[1], left : left + size[0]]
    part[:] = part * (1 - rgba[..., 3:]) + rgba[..., :3]
    return np.clip(painted, 0, 1)


def sample(sheet: Sheet, x: NDArray[Any], y: NDArray[Any]) -> Sheet:
    """Colours (N, 3) of a sheet at garment units (N,), bilinear; beyond its edge the edge."""
    resolution = sheet.shape[0]
    scale = resolution / (2 * EXTENT)
    column = np.clip((x + EXTENT) * scale - 0.5, 0, resolution - 1.001)
    row = np.clip((y + EXTENT) * scale - 0.5, 0, resolution - 1.001)
    left, top = column.astype(np.int32), row.astype(np.int32)
    a, b = (column - left)[:, None], (row - top)[:, None]
    flat = sheet.reshape(-1, 3)
    index = top * resolution + left
    above = flat[index] * (1 - a) + flat[index + 1] * a
    below = flat[index + resolution] * (1 - a) + flat[index + resolution + 1] * a
    return (above * (1 - b) + below * b).astype(np.float32)


def _band(position: NDArray[Any], rng: np.random.Generator, pixel: float) -> NDArray[Any]:
    """1 inside stripes, 0 between them, of a random period; edges one pixel soft."""
    period, width = rng.uniform(0.1, 0.34), rng.uniform(0.25, 0.6)
    phase = (position / period + rng.random()) % 1
    distance = np.abs(phase - 0.5) - (0.5 - width / 2)
    return np.clip(0.5 + distance * period / pixel, 0, 1)


def _photograph(rng: np.random.Generator, pictures: Pictures, resolution: int) -> Sheet:
    photo = pictures.photo(rng)
    height, width = photo.shape[:2]
    side = int(min(height, width) * rng.uniform(0.4, 1.0))
    top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
    crop = Image.fromarray(photo[top : top + side, left : left + side])
    sheet = np.asarray(crop.resize((resolution, resolution), Image.Resampling.BILINEAR), np.float32) / 255
    if rng.random() < 0.3:  # two-tone
        grey = sheet.mean(-1, keepdims=True)
        dark, light = draw_colour(rng) * 0.5, draw_colour(rng) * 0.5 + 0.5
        sheet = dark + (light - dark) * np.clip((grey - grey.mean()) / (3 * grey.std() + 1e-3) + 0.5, 0, 1)
    return sheet


def _letters(rng: np.random.Generator, sheet: Sheet, width: int) -> Image.Image:
    ground = sheet[sheet.shape[0] // 2 :].mean((0, 1))
    colour = draw_colour(rng)
    while np.abs(colour - ground).max() < 0.35:
        colour = draw_colour(rng)
    alphabet = list(string.ascii_uppercase + string.digits)
    text = "".join(rng.choice(alphabet, int(rng.integers(1, 4))))
    font = ImageFont.load_default(max(8, width // max(1, len(text))))
    left, top, right, bottom = (round(edge) for edge in font.getbbox(text, stroke_width=1))
    figure = Image.new("RGBA", (right - left + 2, bottom - top + 2), (*_bytes(colour), 0))
    ink = (*_bytes(colour), 255)
    ImageDraw.Draw(figure).text((1 - left, 1 - top), text, fill=ink, font=font, stroke_width=1)
    return figure


def _bytes(colour: NDArray[Any]) -> tuple[int, ...]:
    return tuple(int(value * 255) for value in colour)
