"""How pictures of any size come to the size of the weights, and back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...core.data.masks import bounding_box

__all__ = ["View", "fit_garment", "fit_mask", "fit_person", "view_around"]

Pixels = NDArray[np.uint8]
MASK_SHARE = 0.62
"""Height of the mask in the part of a photograph that the network sees; what the drawn people have."""


@dataclass(frozen=True)
class View:
    """A part of a picture; it may reach beyond its edges, where the edges are repeated.

    Attributes:
        top, left, height, width: in pixels of the picture.
    """

    top: int
    left: int
    height: int
    width: int

    def cut(self, picture: Pixels) -> Pixels:
        """The part of an (H, W) or (H, W, C) array."""
        rows = np.clip(np.arange(self.top, self.top + self.height), 0, picture.shape[0] - 1)
        columns = np.clip(np.arange(self.left, self.left + self.width), 0, picture.shape[1] - 1)
        return picture[rows[:, None], columns]

    def insert(self, picture: Pixels, part: Pixels) -> Pixels:
        """A copy of `picture` with `part` (height, width, ...) in its place."""
        top, left = max(self.top, 0), max(self.left, 0)
        bottom = min(self.top + self.height, picture.shape[0])
        right = min(self.left + self.width, picture.shape[1])
        result = picture.copy()
        result[top:bottom, left:right] = part[
            top - self.top : bottom - self.top, left - self.left : right - self.left
        ]
        return result


def view_around(mask: NDArray[np.bool_], size: tuple[int, int], share: float = MASK_SHARE) -> View:
    """The part of a photograph that the network sees: of its proportions, with the whole mask in it.

    As much as possible is taken where the mask is large; where it is small (a person far away), what is around it.

    Args:
        mask: (H, W), not empty.
        size: (height, width) of the weights.
        share: of the view's height that a small mask fills.
    """
    high, wide = mask.shape
    aspect = size[1] / size[0]
    box = bounding_box(mask)
    assert box is not None
    full = min(high, wide / aspect)  # the largest view that lies inside
    close = max(box.height / share, box.width / aspect / 0.95)
    height = full if close > 0.8 * full and box.width <= full * aspect and box.height <= full else close
    height = max(height, 8.0)
    width = height * aspect
    top = (box.top + box.bottom) / 2 - 0.53 * height
    left = (box.left + box.right - width) / 2
    return View(
        _inside(top, height, high), _inside(left, width, wide), max(1, round(height)), max(1, round(width))
    )


def fit_person(picture: Pixels, size: tuple[int, int]) -> Pixels:
    """Resize to cover `size` (height, width) and cut the middle out, as the published protocols do."""
    return _resize(_middle(picture.shape[:2], size).cut(picture), size)


def fit_mask(mask: NDArray[np.bool_], size: tuple[int, int]) -> Pixels:
    """A mask as `fit_person` fits its picture; (H, W), 0 or 255, set where any of it was."""
    part = _middle(mask.shape, size).cut(mask.astype(np.uint8) * 255)
    return ((_resize(part, size, Image.Resampling.BOX) > 0) * 255).astype(np.uint8)


def fit_garment(picture: Pixels, size: tuple[int, int], ground: int = 255) -> Pixels:
    """Resize to fit into `size` (height, width) and fill up with white; nothing is cut off."""
    scale = min(size[0] / picture.shape[0], size[1] / picture.shape[1])
    height, width = (max(1, round(side * scale)) for side in picture.shape[:2])
    result = np.full((*size, *picture.shape[2:]), ground, np.uint8)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    result[top : top + height, left : left + width] = _resize(picture, (height, width))
    return result


def _middle(shape: tuple[int, ...], size: tuple[int, int]) -> View:
    scale = min(shape[0] / size[0], shape[1] / size[1])
    height, width = (max(1, round(side * scale)) for side in size)
    return View((shape[0] - height) // 2, (shape[1] - width) // 2, height, width)


def _inside(start: float, length: float, limit: int) -> int:
    """Moved into the picture if it fits, else to its middle."""
    if length >= limit:
        return round((limit - length) / 2)
    return round(min(max(start, 0), limit - length))


def _resize(
    picture: Pixels, size: tuple[int, int], how: Image.Resampling = Image.Resampling.LANCZOS
) -> Pixels:
    if picture.shape[:2] == size:
        return picture
    return np.asarray(Image.fromarray(picture).resize((size[1], size[0]), how))
