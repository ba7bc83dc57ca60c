"""What training and encoding do to values: whole residuals to a mean, with an eye on what they cost."""

from __future__ import annotations

import torch
from torch import Tensor

from .context import MEAN_UNIT
from .tables import ProbabilityTables

__all__ = ["Rounding"]


class Rounding:
    """The quantiser of training and encoding: rounds, or takes the value one nearer to the mean where that costs less.

    Args:
        values: ordered coefficients in steps, (B, C, H, W).
        tables: what bits are counted with.
        thrift: squared error (in steps) that a saved bit is worth; 0 rounds.
    """

    def __init__(self, values: Tensor, tables: ProbabilityTables, thrift: float) -> None:
        self.values, self.tables, self.thrift = values, tables, thrift
        self.bits = values.new_zeros(len(values))

    def choose(self, channels: slice, mean: Tensor, index: Tensor) -> Tensor:
        """Whole residuals of a group of channels; see `context.Quantizer`."""
        return self._whole(self.values[:, channels] - mean / MEAN_UNIT, index)

    @torch.no_grad()
    def _whole(self, offset: Tensor, index: Tensor) -> Tensor:
        residual = torch.floor(offset + 0.5)
        if not self.thrift:
            return residual
        near = residual - residual.sign()
        error = (near - offset).square_() - (residual - offset).square_()
        return torch.where(self.thrift * self.tables.saving(residual, index) > error, near, residual)

    def __call__(self, channels: slice, mask: Tensor | None, mean: Tensor, index: Tensor) -> Tensor:
        """See `context.Quantizer`; counts bits.

        Gradients: what is rounded to zero becomes its mean, so the mean learns from the error; what is not becomes,
        nearly, its value.
        """
        offset = self.values[:, channels] - mean / MEAN_UNIT
        whole = self._whole(offset, index)
        bits = self.tables(whole, index, offset)
        residual = torch.where(whole == 0, 0.0, whole + (offset - offset.detach()))
        if mask is not None:
            bits, residual = bits * mask, residual * mask
        self.bits = self.bits + bits.sum((1, 2, 3))
        return residual
