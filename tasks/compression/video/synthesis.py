"""From coefficients to pixels with integers: what predictions are made from must be the same on every machine.

The transforms of `codec` and `lapped` in fixed point: matrices count in 1/16384, values in 1/256 of a level, and
float64 holds the whole numbers, which no sum brings near 2^53.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..codec import BLOCK, PER_QUALITY, QUALITIES, LatentCodec, step_of
from ..context import MEAN_UNIT
from ..lapped import SIZE
from .motion import WHITE

__all__ = ["IntegerSynthesis"]

MATRIX_BITS = 14
VALUE = 256
"""Coefficients and unrounded pixels count in 1/256 of a level."""
FACTOR_BITS = 8


class IntegerSynthesis(nn.Module):
    """Integer reconstruction for the transform and gains of a codec; made from it by `adopt`.

    Args:
        codec: whose orders of channels it uses.
    """

    def __init__(self, codec: LatentCodec) -> None:
        super().__init__()
        self.register_buffer("coarse_order", codec.coarse_order.clone(), persistent=False)
        self.register_buffer("fine_order", codec.fine_order.clone(), persistent=False)
        self.register_buffer("dct", torch.zeros(SIZE, SIZE, dtype=torch.int32))
        self.register_buffer("border", torch.zeros(SIZE, SIZE, dtype=torch.int32))
        self.register_buffer("colour", torch.zeros(3, 3, dtype=torch.int32))
        self.register_buffer("factors", torch.zeros(QUALITIES, 3 * BLOCK, dtype=torch.int32))
        self.adopt(codec)

    @torch.no_grad()
    def adopt(self, codec: LatentCodec) -> None:
        """Take over the codec's transform and gains, rounded."""
        scale = 2**MATRIX_BITS
        self.dct.copy_((codec.dct.double() * scale).round())
        self.border.copy_((torch.linalg.inv(codec.lapped.border().double()) * scale).round())
        self.colour.copy_((codec.colour.double() * scale).round())
        anchors = torch.arange(QUALITIES) * PER_QUALITY
        steps = step_of(anchors).view(-1, 1, 1, 1) / codec.gains(anchors)
        self.factors.copy_((steps.flatten(1).double() * (VALUE * 2**FACTOR_BITS / MEAN_UNIT)).round())

    def factor(self, index: int) -> Tensor:
        """What a coefficient in 1/16 of a step is worth at a quality index, in 1/65536 of a level: (192,) int64."""
        low = min(index // PER_QUALITY, QUALITIES - 2)
        part = index - low * PER_QUALITY
        two = self.factors[low : low + 2].to(torch.int64)
        return (two[0] * (PER_QUALITY - part) + two[1] * part + PER_QUALITY // 2) // PER_QUALITY

    def scale(self, index: int) -> Tensor:
        """By what analysis multiplies coefficients, (1, 192, 1, 1): the inverse of `factor`, to steps."""
        return (VALUE * 2**FACTOR_BITS / MEAN_UNIT / self.factor(index).double()).float().view(1, -1, 1, 1)

    def forward(self, coarse16: Tensor, fine16: Tensor, index: int) -> Tensor:
        """The picture of ordered coefficients.

        Args:
            coarse16: (1, 192, h / 8, w / 8), in 1/16 of a step.
            fine16: (1, 189, h, w).
            index: quality.

        Returns:
            (3, 8 h, 8 w) int32 in 1/16 of a level, not clipped.
        """
        factor = self.factor(index).double().view(1, -1, 1, 1)
        b, _, h, w = fine16.shape
        whole = torch.zeros(b, 3 * BLOCK, h, w, dtype=torch.float64, device=fine16.device)
        whole[:, self.fine_order] = fine16.double()
        unsorted = torch.zeros(coarse16.shape, dtype=torch.float64, device=fine16.device)
        unsorted[:, self.coarse_order] = coarse16.double()
        means = unsorted.view(b, 3, BLOCK, *coarse16.shape[-2:]) * factor[:, ::BLOCK, None]
        whole = _shift(whole * factor, FACTOR_BITS)
        means = _shift(means, FACTOR_BITS).flatten(1, 2)
        whole[:, ::BLOCK] = self._idct(means)
        pixels = self._idct(whole)
        for axis in (-2, -1):
            pixels = self._across_borders(pixels, axis)
        mixed = torch.einsum("dc,bdhw->bchw", self.colour.double(), pixels)
        return _shift(mixed, MATRIX_BITS + 4)[0].to(torch.int32)  # 1/256 to 1/16 of a level

    def frame(self, pixels: Tensor) -> Tensor:
        """Clipped to what a frame can hold."""
        return pixels.clamp(0, WHITE)

    def _idct(self, coefficients: Tensor) -> Tensor:
        b, channels, h, w = coefficients.shape
        c, dct = channels // BLOCK, self.dct.double()
        blocks = coefficients.reshape(b, c, SIZE, SIZE, h, w)
        rows = _shift(torch.einsum("vy,bcvuhw->bcyuhw", dct, blocks), MATRIX_BITS)
        pixels = _shift(torch.einsum("bcyuhw,ux->bchywx", rows, dct), MATRIX_BITS)
        return pixels.reshape(b, c, h * SIZE, w * SIZE)

    def _across_borders(self, pixels: Tensor, axis: int) -> Tensor:
        half = SIZE // 2
        if pixels.shape[axis] <= SIZE:
            return pixels
        pixels = pixels.transpose(axis, -1)
        inner = pixels[..., half:-half].unflatten(-1, (-1, SIZE))
        inner = _shift(inner @ self.border.double().T, MATRIX_BITS).flatten(-2)
        return torch.cat([pixels[..., :half], inner, pixels[..., -half:]], -1).transpose(axis, -1)

    def block_transform(self, grey: Tensor) -> Tensor:
        """Integer DCT of 8x8 blocks: (H, W) whole numbers to (64, H / 8, W / 8), orthonormal."""
        h, w = grey.shape[0] // SIZE, grey.shape[1] // SIZE
        dct = self.dct.double()
        blocks = grey.double().view(h, SIZE, w, SIZE)
        rows = _shift(torch.einsum("vy,hywx->hvwx", dct, blocks), MATRIX_BITS)
        return _shift(torch.einsum("hvwx,ux->vuhw", rows, dct), MATRIX_BITS).reshape(BLOCK, h, w)


def _shift(values: Tensor, bits: int) -> Tensor:
    """Divide whole numbers by a power of two and round half up: exact."""
    return torch.floor(values / 2**bits + 0.5)
