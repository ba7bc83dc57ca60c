"""Sheets of pictures: labelled comparisons with zoomed details, and contact sheets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from .alpha import on_checkerboard

__all__ = ["ZoomBox", "comparison_sheet", "contact_sheet", "detail_boxes"]

Picture = NDArray[np.uint8] | Image.Image

_BACKGROUND = (250, 250, 250)
_INK = (30, 30, 30)
_MARGIN = 12
# Distinguishable with colour-blindness (Okabe-Ito), in the order of the boxes.
_BOX_COLOURS = [(213, 94, 0), (0, 114, 178), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233)]


@dataclass(frozen=True)
class ZoomBox:
    """A detail to enlarge, in pixels of the largest panel."""

    left: int
    top: int
    width: int
    height: int


def comparison_sheet(
    panels: Sequence[tuple[str, Picture]],
    zoom_boxes: Sequence[ZoomBox | tuple[int, int, int, int]] = (),
    *,
    title: str = "",
    panel_width: int = 400,
) -> Image.Image:
    """Put pictures of one scene side by side, with the same details enlarged below each.

    Panels are brought to the size of the largest one, the smaller ones by repeating pixels, so that what a
    low-resolution input lacks stays visible. Details are enlarged by repeating pixels, too.

    Args:
        panels: (label, picture) from left to right; pictures 8-bit (H, W), (H, W, C) or Pillow; a label
            may have several lines. Transparent pictures are shown on a checkerboard.
        zoom_boxes: details as `ZoomBox` or (left, top, width, height), in pixels of the largest panel;
            parts outside are cut off. Their frames are drawn on the full views.
        title: line above everything.
        panel_width: width of a panel on the sheet, in pixels.

    Returns:
        An RGB picture.

    Raises:
        ValueError: no panels, or a box that lies outside the picture.
    """
    if not panels:
        raise ValueError("comparison_sheet: no panels were given")
    pictures = [_rgb(picture) for _, picture in panels]
    size = max((picture.size for picture in pictures), key=lambda wh: wh[0] * wh[1])
    boxes = [_clip(box if isinstance(box, ZoomBox) else ZoomBox(*box), size) for box in zoom_boxes]

    panel_height = max(1, round(size[1] * panel_width / size[0]))
    inset_heights = [max(1, round(box.height * panel_width / box.width)) for box in boxes]
    label_height = max(_text_height(label) for label, _ in panels)
    title_height = _text_height(title, 20) + _MARGIN if title else 0
    sheet = Image.new(
        "RGB",
        (
            _MARGIN + len(panels) * (panel_width + _MARGIN),
            title_height + label_height + panel_height + sum(inset_heights) + _MARGIN * (2 + len(boxes)) + 4,
        ),
        _BACKGROUND,
    )
    draw = ImageDraw.Draw(sheet)
    if title:
        draw.multiline_text((_MARGIN, _MARGIN), title, fill=_INK, font=_font(20))

    for column, ((label, _), picture) in enumerate(zip(panels, pictures, strict=True)):
        left, top = _MARGIN + column * (panel_width + _MARGIN), _MARGIN + title_height
        draw.multiline_text((left, top), label, fill=_INK, font=_font())
        top += label_height + 4
        sheet.paste(_fit(picture, (panel_width, panel_height)), (left, top))
        for box, colour in zip(boxes, _frame_colours(len(boxes)), strict=True):
            ratio = panel_width / size[0]
            frame = [box.left, box.top, box.left + box.width, box.top + box.height]
            x0, y0, x1, y1 = (round(edge * ratio) for edge in frame)
            x1, y1 = max(x1, x0 + 1), max(y1, y0 + 1)  # a small detail of a large picture
            # a white line around it: some colour of the picture is always close to the frame's
            draw.rectangle((left + x0 - 1, top + y0 - 1, left + x1, top + y1), outline="white")
            draw.rectangle((left + x0, top + y0, left + x1 - 1, top + y1 - 1), outline=colour, width=2)
        top += panel_height + _MARGIN
        for box, inset_height, colour in zip(boxes, inset_heights, _frame_colours(len(boxes)), strict=True):
            inset = _detail(picture, box, size).resize((panel_width, inset_height), Image.Resampling.NEAREST)
            sheet.paste(inset, (left, top))
            edges = (left, top, left + panel_width - 1, top + inset_height - 1)
            draw.rectangle(edges, outline=colour, width=3)
            top += inset_height + _MARGIN
    return sheet


def contact_sheet(
    pictures: Sequence[tuple[str, Picture]], columns: int = 4, cell: int = 240, *, title: str = ""
) -> Image.Image:
    """Lay pictures out on a grid, each fitted into a square cell above its label.

    Args:
        pictures: (label, picture), row by row.
        columns: pictures in a row.
        cell: side of a cell in pixels; smaller pictures are not enlarged.
        title: line above everything.

    Returns:
        An RGB picture.
    """
    if not pictures or columns < 1:
        raise ValueError("contact_sheet: give at least one picture and one column")
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    label_height = max(_text_height(label) for label, _ in pictures)
    title_height = _text_height(title, 20) + _MARGIN if title else 0
    step = (cell + _MARGIN, cell + label_height + _MARGIN)
    size = (_MARGIN + columns * step[0], _MARGIN + title_height + rows * step[1])
    sheet = Image.new("RGB", size, _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    if title:
        draw.multiline_text((_MARGIN, _MARGIN), title, fill=_INK, font=_font(20))
    for index, (label, picture) in enumerate(pictures):
        left = _MARGIN + index % columns * step[0]
        top = _MARGIN + title_height + index // columns * step[1]
        thumbnail = _rgb(picture)
        thumbnail.thumbnail((cell, cell), Image.Resampling.LANCZOS)
        sheet.paste(thumbnail, (left + (cell - thumbnail.width) // 2, top + (cell - thumbnail.height) // 2))
        draw.multiline_text((left, top + cell + 2), label, fill=_INK, font=_font())
    return sheet


def detail_boxes(picture: Picture, count: int = 2, size: int = 96) -> list[ZoomBox]:
    """Choose square details where the picture has the most fine structure; they do not overlap.

    Args:
        picture: 8-bit array or Pillow picture, best the ground truth or the largest panel.
        count: how many boxes at most.
        size: side of a box in pixels, reduced for small pictures.
    """
    grey = np.asarray(_rgb(picture).convert("L"), dtype=np.float64)
    height, width = grey.shape
    size = max(1, min(size, height // 2, width // 2))
    energy = np.zeros_like(grey)
    energy[:, 1:] += np.abs(np.diff(grey, axis=1))
    energy[1:] += np.abs(np.diff(grey, axis=0))
    # The square root keeps one hard edge from outweighing a patch full of texture.
    table = np.zeros((height + 1, width + 1))
    table[1:, 1:] = np.sqrt(energy).cumsum(0).cumsum(1)
    sums = table[size:, size:] - table[:-size, size:] - table[size:, :-size] + table[:-size, :-size]
    boxes: list[ZoomBox] = []
    while len(boxes) < count and sums.max() > 0:
        top, left = (int(i) for i in np.unravel_index(int(sums.argmax()), sums.shape))
        boxes.append(ZoomBox(left, top, size, size))
        sums[max(0, top - size + 1) : top + size, max(0, left - size + 1) : left + size] = 0
    return boxes


def _rgb(picture: Picture) -> Image.Image:
    """A copy as RGB, transparency shown on a checkerboard."""
    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(picture[..., 0] if picture.shape[2:] == (1,) else picture)
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        return Image.fromarray(on_checkerboard(np.asarray(picture.convert("RGBA"))))
    return picture.convert("RGB") if picture.mode != "RGB" else picture.copy()


def _fit(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    smaller = picture.width < size[0]
    return picture.resize(size, Image.Resampling.NEAREST if smaller else Image.Resampling.LANCZOS)


def _detail(picture: Image.Image, box: ZoomBox, size: tuple[int, int]) -> Image.Image:
    """The pixels of ``picture`` under a box that is given in pixels of a picture of ``size``."""
    x, y = picture.width / size[0], picture.height / size[1]
    if (x, y) == (1, 1):
        return picture.crop((box.left, box.top, box.left + box.width, box.top + box.height))
    edges = (box.left * x, box.top * y, (box.left + box.width) * x, (box.top + box.height) * y)
    return picture.resize((box.width, box.height), Image.Resampling.NEAREST, box=edges)


def _clip(box: ZoomBox, size: tuple[int, int]) -> ZoomBox:
    left, top = max(0, box.left), max(0, box.top)
    right, bottom = min(size[0], box.left + box.width), min(size[1], box.top + box.height)
    if right <= left or bottom <= top:
        raise ValueError(f"zoom box {box} lies outside the picture of {size[0]}x{size[1]}")
    return ZoomBox(left, top, right - left, bottom - top)


def _frame_colours(count: int) -> list[tuple[int, int, int]]:
    return [_BOX_COLOURS[i % len(_BOX_COLOURS)] for i in range(count)]


def _font(size: int = 15) -> Any:
    return ImageFont.load_default(size)


def _text_height(text: str, size: int = 15) -> int:
    draw = ImageDraw.Draw(Image.new("L", (1, 1)))
    return int(draw.multiline_textbbox((0, 0), text or " ", font=_font(size))[3]) + 2
