"""The convolution block of recent codecs (DCVC-RT, arXiv 2502.20762) and what changes the size of its maps."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["ChunkAdd", "DepthConvBlock", "Downsample", "SubpixelUp", "WSiLU"]


class WSiLU(nn.Module):
    """``x * sigmoid(4 x)``."""

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise."""
        return x * torch.sigmoid(4 * x)


class ChunkAdd(nn.Module):
    """Activate, then add the two halves of the channels: (B, 2C, H, W) -> (B, C, H, W)."""

    def __init__(self) -> None:
        super().__init__()
        self.activation = WSiLU()

    def forward(self, x: Tensor) -> Tensor:
        """Sum of the activated halves."""
        first, second = self.activation(x).chunk(2, dim=1)
        return first + second


class DepthConvBlock(nn.Module):
    """``u = x + 1x1(depthwise3x3(wsilu(1x1(x))))``, then ``u + 1x1(chunk_add(1x1(u)))``.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the result; another number puts a 1x1 convolution in front. None is the same.
    """

    def __init__(self, in_channels: int, out_channels: int | None = None) -> None:
        super().__init__()
        width = out_channels or in_channels
        self.adaptor = nn.Conv2d(in_channels, width, 1) if width != in_channels else None
        self.dc = nn.Sequential(
            nn.Conv2d(width, width, 1),
            WSiLU(),
            nn.Conv2d(width, width, 3, padding=1, groups=width),
            nn.Conv2d(width, width, 1),
        )
        self.ffn = nn.Sequential(nn.Conv2d(width, 4 * width, 1), ChunkAdd(), nn.Conv2d(2 * width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H, W)."""
        if self.adaptor is not None:
            x = self.adaptor(x)
        x = x + self.dc(x)
        return x + self.ffn(x)


class Downsample(nn.Module):
    """A 3x3 convolution with stride 2."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Half the height and width."""
        return self.down(x)


class SubpixelUp(nn.Module):
    """3x3 convolution, GELU, 1x1 convolution to four times the channels, pixel shuffle."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.up = nn.Sequential(
            nn.Conv2d(in_channels, in_channels, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(in_channels, 4 * out_channels, 1),
            nn.PixelShuffle(2),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Twice the height and width."""
        return self.up(x)
