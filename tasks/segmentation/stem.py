"""Convolutions before and behind the blocks: a small network sees texture and draws rims with few examples.

"Early Convolutions Help Transformers See Better" (arXiv 2106.14881) for the stem; the head joins its maps again on the
way back to pixels, as a U-Net does (arXiv 1505.04597).
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ConvHead", "ConvStem"]


class ConvStem(nn.Module):
    """Picture to tokens by convolutions that halve it, as many as a patch has powers of two.

    Args:
        in_channels: of the input.
        hidden_size: of the tokens.
        width: channels of the first map; each further one has twice as many.
        patch: side of a patch, a power of two from 4.
    """

    def __init__(self, in_channels: int, hidden_size: int, width: int, patch: int) -> None:
        super().__init__()
        steps = patch.bit_length() - 1
        if patch != 2**steps or steps < 2:
            raise ValueError(f"patch_size {patch}: a stem of convolutions needs a power of two from 4")
        sizes = [in_channels, *(width * 2**step for step in range(steps - 1)), hidden_size]
        self.widths = sizes[1:-1]
        self.steps = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in itertools.pairwise(sizes)
        )

        keep_amplitude(self)

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(B, C, H, W) -> tokens (B, N, D), and the maps on the way, fine ones first."""
        maps = []
        # Convolutions of few channels are 10 to 20 % faster so on a CPU; what follows keeps the order.
        hidden_states = hidden_states.contiguous(memory_format=torch.channels_last)
        for number, step in enumerate(self.steps):
            hidden_states = step(hidden_states)
            if number < len(self.steps) - 1:
                hidden_states = F.gelu(hidden_states, approximate="tanh")
                maps.append(hidden_states)
        return hidden_states.flatten(2).transpose(1, 2), maps


class ConvHead(nn.Module):
    """Tokens back to pixels, each enlargement joined by the stem's map of its size.

    Args:
        hidden_size: of the tokens.
        widths: channels of the stem's maps, fine ones first.
        out_channels: of the output.
    """

    def __init__(self, hidden_size: int, widths: list[int], out_channels: int) -> None:
        super().__init__()
        sizes = [hidden_size, *reversed(widths)]
        self.enter = nn.ModuleList(
            nn.Conv2d(a, b, 1) for a, b in itertools.pairwise(sizes)
        )  # before the enlargement, where it is cheap
        self.join = nn.ModuleList(nn.Conv2d(2 * b, b, 3, padding=1) for b in sizes[1:])
        self.last = nn.Conv2d(widths[0], 4 * out_channels, 3, padding=1)
        keep_amplitude(self)
        nn.init.zeros_(self.last.weight)  # a fresh model predicts exactly zero
        nn.init.zeros_(self.last.bias)

    def forward(self, tokens: Tensor, maps: list[Tensor], grid: tuple[int, ...]) -> Tensor:
        """Tokens (B, N, D) and the stem's maps -> (B, C, H, W)."""
        hidden = tokens.transpose(1, 2).unflatten(2, grid)
        for enter, join, skip in zip(self.enter, self.join, reversed(maps), strict=True):
            larger = F.interpolate(enter(hidden), scale_factor=2, mode="nearest")
            hidden = F.gelu(join(torch.cat([larger, skip], dim=1)), approximate="tanh")
        return F.pixel_shuffle(self.last(hidden), 2)


def keep_amplitude(module: nn.Module) -> None:
    """Initialise convolutions so that what leaves them is as large as what enters; torch's own shrink it.

    "Delving Deep into Rectifiers" (arXiv 1502.01852). It matters in front of blocks without norms.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
