"""Networks that improve what was decoded; nothing of the bitstream depends on them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Refine"]


SLOW = 0.1
"""On the answer: the many weights behind it, changed together, would overshoot with the learning rate of the others."""


class Refine(nn.Module):
    """Residual convolutions whose answer is zero at the start.

    Args:
        channels: of input and answer.
        width: of the features.
        depth: number of residual blocks.
    """

    def __init__(self, channels: int, width: int, depth: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels + 1, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.SiLU(), nn.Conv2d(width, width, 1))
            for _ in range(depth)
        )
        self.last = nn.Conv2d(width, channels, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, values: Tensor, level: Tensor) -> Tensor:
        """What to add to the values (B, C, H, W), up to a factor.

        Args:
            values: (B, C, H, W).
            level: the quality, (B, 1, 1, 1) in -1..1.
        """
        hidden = self.first(torch.cat([values, level.expand(-1, -1, *values.shape[-2:]).to(values)], 1))
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return self.last(F.silu(hidden)) * SLOW
