"""How pictures, videos and volumes become tokens, and where the tokens are."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = [
    "LabelEmbed",
    "PatchEmbed",
    "TimestepEmbed",
    "sincos_positions",
    "sincos_table",
    "sinusoid",
    "unpatchify",
    "widened",
]


def sincos_table(grid: Sequence[int], dim: int, order: Sequence[int] | None = None) -> Tensor:
    """Fixed sine-cosine positions of a grid, row-major tokens: (1, N, D) float32; see :func:`sincos_positions`."""
    places = torch.meshgrid(
        *[torch.arange(g, dtype=torch.float64, device="cpu") for g in grid], indexing="ij"
    )
    return sincos_positions(torch.stack(places, dim=-1).flatten(0, -2), dim, order)[None]


def sincos_positions(position_ids: Tensor, dim: int, order: Sequence[int] | None = None) -> Tensor:
    """Sine-cosine features of coordinates.

    Each axis gets ``dim / axes`` channels, [sin | cos] halves, frequencies 10000^(-k / half).

    Args:
        position_ids: (N, A), integer or fractional.
        dim: width D; must divide by twice the number of axes.
        order: which axis each part of the channels encodes. Default: last axis first on two axes
            (DiT: the first half is the column), first axis first on three (DiT-3D).

    Returns:
        (N, D) float32, on the CPU.
    """
    places = position_ids.to("cpu", torch.float64)
    axes = places.shape[-1]
    if dim % (2 * axes):
        raise ValueError(
            f"sine-cosine positions over {axes} axes need a width that divides by {2 * axes}, not {dim}"
        )
    order = tuple(order) if order is not None else ((1, 0) if axes == 2 else tuple(range(axes)))
    half = dim // axes // 2
    frequencies = 1.0 / 10000 ** (torch.arange(half, dtype=torch.float64, device="cpu") / half)
    parts = []
    for axis in order:
        angle = places[:, axis, None] * frequencies
        parts += [angle.sin(), angle.cos()]
    return torch.cat(parts, dim=1).float()


def sinusoid(t: Tensor, dim: int = 256, max_period: float = 10000.0) -> Tensor:
    """(B,) -> (B, dim), cosines first, frequencies max_period^(-k / half) in float32."""
    half = dim // 2
    frequencies = torch.exp(
        -math.log(max_period) * torch.arange(half, dtype=torch.float32, device=t.device) / half
    )
    angle = t[..., None].float() * frequencies
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


class PatchEmbed(nn.Module):
    """Non-overlapping patches of an image (B, C, H, W) or volume (B, C, T, H, W) to tokens (B, N, D)."""

    def __init__(self, in_channels: int, hidden_size: int, patch_size: Sequence[int]) -> None:
        super().__init__()
        conv = {2: nn.Conv2d, 3: nn.Conv3d}[len(patch_size)]
        self.proj = conv(in_channels, hidden_size, kernel_size=tuple(patch_size), stride=tuple(patch_size))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *spatial) -> (B, N, D), row-major."""
        # A transposed view would hand its layout to every sum of the residual stream: strided rows in each block.
        return self.proj(x).flatten(2).transpose(1, 2).contiguous()


def widened(weight: Tensor, channels: int) -> Tensor:
    """An input layer's weight (out, in, ...) for more input channels: copies side by side, divided by their number.

    On equal copies of the old input it answers what the old layer did.

    Raises:
        ValueError: ``channels`` is not a multiple of the input channels.
    """
    times, rest = divmod(channels, weight.shape[1])
    if rest or not times:
        raise ValueError(f"{channels} channels are no multiple of {weight.shape[1]}")
    return weight.repeat(1, times, *[1] * (weight.ndim - 2)) / times


def unpatchify(tokens: Tensor, grid: Sequence[int], patch_size: Sequence[int]) -> Tensor:
    """(B, N, prod(patch)*C) -> (B, C, *spatial); inside a patch the channel is the fastest axis."""
    batch, axes = tokens.shape[0], len(grid)
    x = tokens.reshape(batch, *grid, *patch_size, -1)  # (B, g1..gA, p1..pA, C)
    order = [0, 2 * axes + 1]
    for axis in range(axes):
        order += [1 + axis, 1 + axes + axis]
    return x.permute(order).reshape(batch, -1, *(g * p for g, p in zip(grid, patch_size, strict=True)))


class TimestepEmbed(nn.Module):
    """Sinusoid of 256 features, then Linear - SiLU - Linear."""

    def __init__(self, hidden_size: int, frequency_dim: int = 256) -> None:
        super().__init__()
        self.frequency_dim = frequency_dim
        self.mlp = nn.Sequential(
            nn.Linear(frequency_dim, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size)
        )

    def forward(self, t: Tensor) -> Tensor:
        """(...,) -> (..., D)."""
        return self.mlp(sinusoid(t, self.frequency_dim).to(self.mlp[0].weight.dtype))


class LabelEmbed(nn.Module):
    """A table of class vectors; with dropout it has one row more, the null class of guidance."""

    def __init__(self, num_classes: int, hidden_size: int, dropout: float) -> None:
        super().__init__()
        self.num_classes, self.dropout = num_classes, dropout
        self.table = nn.Embedding(num_classes + (dropout > 0), hidden_size)

    def forward(self, labels: Tensor) -> Tensor:
        """(B,) -> (B, D). In training mode a label becomes the null class with probability ``dropout``."""
        if self.training and self.dropout > 0:
            dropped = torch.rand(labels.shape[0], device=labels.device) < self.dropout
            labels = torch.where(dropped, self.num_classes, labels)
        return self.table(labels)
