"""The analysis transform of ELIC (arXiv 2203.10886), whose features DiT-IC's encoder looks at."""

from __future__ import annotations

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

__all__ = ["ElicAnalysis"]


class Bottleneck(nn.Module):
    """``x + 1x1(relu(3x3(relu(1x1(x)))))`` at half the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        mid = width // 2
        self.branch = nn.Sequential(
            nn.Conv2d(width, mid, 1),
            nn.ReLU(),
            nn.Conv2d(mid, mid, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(mid, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, H, W) -> the same."""
        return x + self.branch(x)


class ResidualUnit(nn.Module):
    """``relu(x + 1x1(relu(3x3(relu(1x1(x))))))``: a bottleneck under other names, and with a last ReLU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = Bottleneck(width).branch

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, H, W) -> the same."""
        return torch.relu(x + self.conv(x))


class SimpleAttention(nn.Module):
    """``x + a(x) * sigmoid(b(x))``, both branches of residual units."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv_a = nn.Sequential(*(ResidualUnit(width) for _ in range(3)))
        self.conv_b = nn.Sequential(*(ResidualUnit(width) for _ in range(3)), nn.Conv2d(width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, H, W) -> the same."""
        return x + self.conv_a(x) * torch.sigmoid(self.conv_b(x))


class ElicAnalysis(ModelMixin, ConfigMixin):
    """Pictures to features at 1/16 of their size.

    Args:
        width: of the first three levels.
        out_channels: of the features.
    """

    @register_to_config
    def __init__(self, width: int = 192, out_channels: int = 320) -> None:
        super().__init__()
        self.analysis_transform = nn.Sequential(
            nn.Conv2d(3, width, 5, stride=2, padding=2),
            *(Bottleneck(width) for _ in range(3)),
            nn.Conv2d(width, width, 5, stride=2, padding=2),
            *(Bottleneck(width) for _ in range(3)),
            SimpleAttention(width),
            nn.Conv2d(width, width, 5, stride=2, padding=2),
            *(Bottleneck(width) for _ in range(3)),
            nn.Conv2d(width, out_channels, 5, stride=2, padding=2),
            SimpleAttention(out_channels),
        )

    def forward(self, pictures: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1], sides multiples of 16 -> (B, out_channels, H / 16, W / 16)."""
        return self.analysis_transform((pictures + 1) / 2)
