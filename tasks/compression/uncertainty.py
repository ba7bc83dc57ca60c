"""How far a decoded picture may be from the one that was coded, as its own file tells."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .context import Quantizer
from .lapped import SIZE
from .tables import NARROWEST, TABLES, WIDEST

__all__ = ["Uncertainty"]


class Uncertainty:
    """Listens to a context model and sums up the squared errors to expect.

    A coefficient was coded with a table for its spread, s steps: if that is small nothing was coded and the error is
    the coefficient itself, ``s**2``; if it is large the error is that of rounding, ``1 / 12``. In between stands
    ``s**2 / (1 + 12 s**2)``.
    """

    def __init__(self) -> None:
        self.squares: Tensor | None = None

    def of(self, quantizer: Quantizer) -> Quantizer:
        """The same quantiser, listened to."""

        def listening(channels: slice, mask: Tensor | None, mean: Tensor, index: Tensor) -> Tensor:
            spread = NARROWEST * torch.exp(index.detach() * (math.log(WIDEST / NARROWEST) / (TABLES - 1)))
            squares = spread.square() / (1 + 12 * spread.square())
            if mask is not None:
                squares = squares * mask
            total = squares.sum(1, keepdim=True)
            self.squares = total if self.squares is None else self.squares + total
            return quantizer(channels, mask, mean, index)

        return listening

    def deviation(self, step: Tensor) -> Tensor:
        """Expected deviation of the pixels of each block, (B, 1, H / 8, W / 8), of pictures in [-1, 1].

        Args:
            step: quantisation step of each picture in levels of 0..255, (B,).

        Raises:
            ValueError: nothing was listened to.
        """
        if self.squares is None:
            raise ValueError("no context model ran")
        return (self.squares.float() / (3 * SIZE**2)).sqrt() * (step.view(-1, 1, 1, 1) / 127.5)
