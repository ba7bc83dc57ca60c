"""The context model: coefficients are coded in groups, each with means and probabilities from what is known before it.

Groups follow one another from low to high frequency; the first ones are split further into the two colours of a
checkerboard (D. He et al., "Checkerboard Context Model for Efficient Learned Image Compression", arXiv 2103.15306, and
"ELIC", arXiv 2203.10886, for uneven groups of channels). All networks compute with integers, see :mod:`.integer`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from .integer import IntegerConv, compand_table
from .tables import TABLES

__all__ = ["MEAN_UNIT", "ContextModel", "Quantizer"]

MEAN_UNIT = 16
"""Means, and reconstructed values in contexts, count in 1/16 of a quantisation step."""
INDEX_UNIT = 16
COMPAND = 4096


class Quantizer(Protocol):
    """Where residuals come from: rounding (training, encoding) or a file (decoding)."""

    def __call__(self, channels: slice, mask: Tensor | None, mean: Tensor, index: Tensor) -> Tensor:
        """Whole residuals (B, C, H, W) of a group of ordered channels where the mask is 1, elsewhere zero.

        Args:
            channels: Which ones.
            mask: (H, W), or None for all places.
            mean: Whole numbers, in 1/16 of a step.
            index: Of the table; fractions while training.
        """


class ContextModel(nn.Module):
    """Codes (B, C, H, W) coefficients.

    Args:
        groups: Numbers of channels of each group, in their order.
        split: How many of the first groups are coded in two passes.
        extra: Channels of integers that are known from the start.
        width: Channels of the running features.
    """

    def __init__(self, groups: Sequence[int], split: int, extra: int, width: int) -> None:
        super().__init__()
        self.groups, self.split = tuple(groups), split
        self.start = nn.Sequential(IntegerConv(extra, width, 3), IntegerConv(width, width, 1))
        self.steps, self.heads = nn.ModuleList(), nn.ModuleList()
        for number, size in enumerate(self.groups):
            for _ in range(2 if number < split else 1):
                self.heads.append(IntegerConv(width, 2 * size, 1, activation=False, resolution=MEAN_UNIT))
                self.steps.append(
                    nn.Sequential(IntegerConv(width + 2 * size, width, 3), IntegerConv(width, width, 1))
                )
        self.steps = self.steps[:-1]
        for head in self.heads:
            size = head.weight.shape[0] // 2
            nn.init.constant_(head.bias[size:], TABLES / 3)
        self.register_buffer("compand", compand_table(COMPAND).float(), persistent=False)

    def forward(self, extra: Tensor, finer: Tensor, quantizer: Quantizer) -> Tensor:
        """Run through all groups.

        Args:
            finer: Whole numbers (B, 1, 1, 1), by how many 1/16 all indices rise with the quality.
            extra: Integers of magnitude up to 127, (B, extra, H, W).
            quantizer: Gives each group's residuals.

        Returns:
            The reconstructed coefficients in 1/16 of a step, (B, C, H, W): means plus residuals.
        """
        state = self.start(extra)
        h, w = extra.shape[-2:]
        board = (torch.arange(h).view(-1, 1) + torch.arange(w)).remainder(2).to(extra)
        found, number, first = [], 0, 0
        for group, size in enumerate(self.groups):
            channels = slice(first, first + size)
            masks = (board, 1 - board) if group < self.split else (None,)
            values: Tensor | None = None
            for mask in masks:
                mean, index = self.heads[number](state).split(size, 1)
                index = ((index + finer) / INDEX_UNIT).clamp(0, TABLES - 1)
                residual = quantizer(channels, mask, mean, index)
                given = MEAN_UNIT * residual + mean
                if mask is not None:
                    given = given * mask
                values = given if values is None else values + given
                if number < len(self.steps):
                    state = self.steps[number](torch.cat([state, *self.show(values)], 1))
                number += 1
            found.append(values)
            first += size
        return torch.cat(found, 1)

    @torch.no_grad()
    def start_from(self, indices: Tensor) -> None:
        """Let the networks start from a table per ordered channel (C,), its index at the lowest quality."""
        first = 0
        heads = iter(self.heads)
        for group, size in enumerate(self.groups):
            for _ in range(2 if group < self.split else 1):
                next(heads).bias[size:] = indices[first : first + size]
            first += size

    def show(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """What the networks see of reconstructed values: companded with sign, and without. No gradient passes."""
        values = values.detach()
        size = self.compand[torch.round(values.abs()).clamp(max=COMPAND - 1).long()].to(values.dtype)
        return size * values.sign(), size
