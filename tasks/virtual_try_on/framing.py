"""Between pictures of any size and the one size that a network is made for."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from ...core.data.masks import resize_mask

__all__ = ["Frame"]


@dataclass(frozen=True)
class Frame:
    """How a picture lies in the network's: scaled as a whole, in the middle, its border repeated around it.

    Attributes:
        whole: (height, width) of the picture.
        size: (height, width) of the network.
        inner: (height, width) of the scaled picture.
        top: Rows above it.
        left: Columns left of it.
    """

    whole: tuple[int, int]
    size: tuple[int, int]
    inner: tuple[int, int]
    top: int
    left: int

    @classmethod
    def fitting(cls, whole: tuple[int, ...], size: tuple[int, int]) -> Frame:
        """The largest place for a picture of ``whole`` (height, width) in one of ``size``."""
        scale = min(size[0] / whole[0], size[1] / whole[1])
        height, width = (
            min(limit, max(1, round(side * scale))) for side, limit in zip(whole, size, strict=True)
        )
        top, left = (size[0] - height) // 2, (size[1] - width) // 2
        return cls((whole[0], whole[1]), size, (height, width), top, left)

    @classmethod
    def onto_white(cls, picture: Tensor, size: tuple[int, int]) -> Tensor:
        """A garment's picture (1, 3, h, w) in the network's, with white around it."""
        frame = cls.fitting(tuple(picture.shape[-2:]), size)
        return F.pad(frame._scaled(picture), frame._padding, value=1.0)

    def shrink(self, picture: Tensor) -> Tensor:
        """(1, 3, *whole) in [-1, 1] to (1, 3, *size)."""
        return _repeat_border(self._scaled(picture), self._padding)

    def shrink_mask(self, mask: Tensor) -> Tensor:
        """(1, 1, *whole) to (1, 1, *size), set wherever a part is; nothing is set around the picture."""
        if self.inner == self.whole:
            return F.pad(mask, self._padding)
        return F.pad(resize_mask(mask, self.inner, "max"), self._padding)

    def enlarge(self, picture: Tensor) -> Tensor:
        """(1, 3, *size) back to (1, 3, *whole)."""
        part = picture[..., self.top : self.top + self.inner[0], self.left : self.left + self.inner[1]]
        if self.inner == self.whole:
            return part
        return F.interpolate(part, self.whole, mode="bicubic", antialias=True).clamp(-1, 1)

    def stretch(self, maps: Tensor) -> Tensor:
        """Values of any range (1, C, *size) at the picture's size, (1, C, *whole); linear between pixels."""
        part = maps[..., self.top : self.top + self.inner[0], self.left : self.left + self.inner[1]]
        return F.interpolate(part, self.whole, mode="bilinear")

    def inside(self, places: Tensor) -> Tensor:
        """Places (B, 2, H, W) in the network's picture as places in the picture that was framed.

        Columns, then rows, of -1 to 1 from edge to edge; what lies around the picture is beyond that.
        """
        start, size, inner = self._sides(places)
        return ((places + 1) / 2 * size - start) / inner * 2 - 1

    def outside(self, places: Tensor) -> Tensor:
        """The inverse of :meth:`inside`."""
        start, size, inner = self._sides(places)
        return ((places + 1) / 2 * inner + start) / size * 2 - 1

    def _sides(self, like: Tensor) -> list[Tensor]:
        sides = ((self.left, self.top), self.size[::-1], self.inner[::-1])
        return [like.new_tensor(side).view(1, 2, 1, 1) for side in sides]

    def _scaled(self, picture: Tensor) -> Tensor:
        if self.inner == tuple(picture.shape[-2:]):
            return picture
        return F.interpolate(picture, self.inner, mode="bicubic", antialias=True).clamp(-1, 1)

    @property
    def _padding(self) -> tuple[int, int, int, int]:
        bottom, right = self.size[0] - self.inner[0] - self.top, self.size[1] - self.inner[1] - self.left
        return (self.left, right, self.top, bottom)


def _repeat_border(picture: Tensor, padding: tuple[int, int, int, int]) -> Tensor:
    return F.pad(picture, padding, mode="replicate") if any(padding) else picture
