"""Small charts without a plotting library: curves over steps, points of a trade-off."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

__all__ = ["line_chart"]

COLOURS = (
    "#1f5fa8", "#c8501e", "#2f8f4e", "#8a4fa3", "#b08a00", "#2a9aa8", "#b0306a", "#6b6b6b", "#7a3b12", "#4a5fd0",
    "#5c8a00", "#d07ab0",
)  # fmt: skip
Points = Sequence[tuple[float, float]]


def line_chart(
    series: Mapping[str, Points],
    title: str,
    x_label: str,
    y_label: str,
    *,
    log: bool = False,
    lines: bool = True,
    size: tuple[int, int] = (900, 520),
) -> Image.Image:
    """Curves, or single points with their names.

    Args:
        series: name to (x, y) pairs; values that are not finite, or not positive with ``log``, are left out.
        title: above.
        x_label: below.
        y_label: above the axis.
        log: a logarithmic y axis.
        lines: False draws each point with the name of its series beside it.
        size: of the picture.

    Raises:
        ValueError: there is no point to draw.
    """
    kept = {
        name: [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y) and (y > 0 or not log)]
        for name, points in series.items()
    }
    every = [point for points in kept.values() for point in points]
    if not every:
        raise ValueError(f"chart {title!r}: no point to draw")
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    font, small = ImageFont.load_default(15), ImageFont.load_default(12)
    left, top, right, bottom = 70, 50, size[0] - 190 if lines else size[0] - 60, size[1] - 50

    def height(y: float) -> float:
        return math.log10(y) if log else y

    x_low, x_high = _range([x for x, _ in every])
    y_low, y_high = _range([height(y) for _, y in every])

    def place(x: float, y: float) -> tuple[float, float]:
        across, up = (x - x_low) / (x_high - x_low), (height(y) - y_low) / (y_high - y_low)
        return left + across * (right - left), bottom - up * (bottom - top)

    for i in range(6):
        across, up = left + i * (right - left) / 5, bottom - i * (bottom - top) / 5
        draw.line([(left, up), (right, up)], "#e4e4e4")
        draw.line([(across, bottom), (across, bottom + 4)], "#888888")
        value = y_low + i * (y_high - y_low) / 5
        draw.text((left - 6, up), f"{10**value if log else value:.3g}", "#333333", small, anchor="rm")
        draw.text((across, bottom + 8), f"{x_low + i * (x_high - x_low) / 5:.3g}", "#333333", small, "mt")
    draw.rectangle([left, top, right, bottom], outline="#888888")
    draw.text((size[0] / 2, 12), title, "black", font, anchor="mt")
    draw.text(((left + right) / 2, size[1] - 8), x_label, "black", small, anchor="mb")
    draw.text((left, top - 6), y_label, "black", small, anchor="lb")
    labels: list[tuple[float, float, float, float]] = []
    for number, (name, points) in enumerate(kept.items()):
        colour = COLOURS[number % len(COLOURS)]
        places = [place(x, y) for x, y in points]
        if lines:
            if len(places) > 1:
                draw.line(places, colour, 2)
            draw.line([(right + 12, top + 10 + 18 * number), (right + 32, top + 10 + 18 * number)], colour, 3)
            draw.text((right + 38, top + 10 + 18 * number), name, "black", small, anchor="lm")
        for x, y in places:
            draw.ellipse([x - 3, y - 3, x + 3, y + 3], colour)
            if not lines:
                _label(draw, name, x, y, small, size[0], labels)
    return image


def _label(
    draw: ImageDraw.ImageDraw,
    name: str,
    x: float,
    y: float,
    font: Any,
    width: int,
    taken: list[tuple[float, float, float, float]],
) -> None:
    """A name beside its point, on the side that has room, moved down until it covers no other."""
    length = draw.textlength(name, font=font)
    left = x + 6 if x + 6 + length < width else x - 6 - length
    box = (left, y - 7, left + length, y + 7)
    while any(
        box[0] < end and box[2] > start and box[1] < bottom and box[3] > top
        for (start, top, end, bottom) in taken
    ):
        box = (box[0], box[1] + 14, box[2], box[3] + 14)
    taken.append(box)
    draw.text((left, (box[1] + box[3]) / 2), name, "black", font, anchor="lm")


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    if low == high:
        return low - 0.5, high + 0.5
    return low, high
