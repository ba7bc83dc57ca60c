"""Latents coded in passes: each pass takes some places of some channels, with what came before as context.

The four-pass quadtree is that of DCVC-DC (arXiv 2302.14402), which DiT-IC uses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .depth_conv import DepthConvBlock
from .rounding import round_through

__all__ = ["QUADTREE", "HalfTanh", "QuadtreeContext", "Quantizer", "pass_masks", "squeeze", "unsqueeze"]

QUADTREE = ((0, 1, 2, 3), (3, 2, 1, 0), (2, 3, 0, 1), (1, 0, 3, 2))
"""Which corner of a 2x2 cell (row-major) each of the four groups of channels is coded at, in each of four passes."""

Quantizer = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``(mean, scale, mask) -> values``, all (B, C, H, W) but the mask (1, C, H, W): a pass' reconstructed values. What it
gives where the mask is 0 is not used."""


def pass_masks(channels: int, height: int, width: int, order: Sequence[Sequence[int]] = QUADTREE) -> Tensor:
    """Where each pass codes, bool (passes, 1, channels, height, width); every place is in exactly one.

    Args:
        channels: divided evenly among the groups.
        height: of the latents, any.
        width: of the latents, any.
        order: of the corners, by pass and group.
    """
    corner = (torch.arange(height).view(-1, 1) % 2) * 2 + torch.arange(width) % 2
    groups = len(order[0])
    if channels % groups:
        raise ValueError(f"{channels} channels do not divide into {groups} groups")
    corners = torch.tensor(order).repeat_interleave(channels // groups, dim=1)  # (passes, C)
    return (corners[:, :, None, None] == corner)[:, None]


def squeeze(values: Tensor, mask: Tensor, groups: int = 4) -> Tensor:
    """A pass' values (B, C, H, W) as (B, C / groups, H, W): at each place one group has any."""
    return torch.where(mask, values, 0).unflatten(1, (groups, -1)).sum(1)


def unsqueeze(values: Tensor, mask: Tensor, groups: int = 4) -> Tensor:
    """Inverse of :func:`squeeze`; 0 where the mask is."""
    return torch.where(mask, values.repeat(1, groups, 1, 1), 0)


class HalfTanh(nn.Module):
    """``tanh(x) / 2``: no correction leaves the interval that was rounded."""

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise."""
        return 0.5 * torch.tanh(x)


def three_convolutions(first: int, middle: int, last: int, activation: type[nn.Module]) -> nn.Sequential:
    """3x3, three times."""
    return nn.Sequential(
        nn.Conv2d(first, middle, 3, padding=1),
        activation(),
        nn.Conv2d(middle, middle, 3, padding=1),
        activation(),
        nn.Conv2d(middle, last, 3, padding=1),
    )


class QuadtreeContext(nn.Module):
    """Means and scales of four passes from side information and from the passes before.

    In pass p: ``mean, scale = out_p(shared(in_p(base)))``; the values are rounded about the mean where the mask of the
    pass is, corrected by ``tanh(...) / 2`` of a look at them (latent residual prediction, arXiv 2007.08739), and
    replace ``base`` there.

    Args:
        channels: of the latents.
        activation: between the convolutions of the adapters.
    """

    def __init__(self, channels: int, activation: type[nn.Module] = nn.GELU) -> None:
        super().__init__()
        c, mid, wide = channels, channels * 3 // 2, 2 * channels
        passes = range(len(QUADTREE))
        self.adapter_in = nn.ModuleList(three_convolutions(c, mid, wide, activation) for _ in passes)
        self.g_c = nn.Sequential(*(DepthConvBlock(wide) for _ in range(3)), nn.Conv2d(wide, wide, 1))
        self.adapter_out = nn.ModuleList(three_convolutions(wide, wide, wide, activation) for _ in passes)
        self.LRP = nn.ModuleList(three_convolutions(wide, mid, c, activation) for _ in passes)
        self.bounded = HalfTanh()

    def forward(self, base: Tensor, quantizer: Quantizer) -> tuple[Tensor, Tensor]:
        """Run the passes.

        Args:
            base: what the side information says, (B, C, H, W).
            quantizer: gives the values of each pass.

        Returns:
            The reconstructed latents and the scales that they were coded with, (B, C, H, W).
        """
        masks = pass_masks(*base.shape[1:]).to(base.device)
        values, scales = torch.zeros_like(base), torch.zeros_like(base)
        for number, mask in enumerate(masks):
            mean, scale = self.adapter_out[number](self.g_c(self.adapter_in[number](base))).chunk(2, dim=1)
            given = torch.where(mask, quantizer(mean, scale, mask), 0)
            correction = self.LRP[number](torch.cat([given, base], dim=1))
            given = given + self.bounded(torch.where(mask, correction, 0))
            base = torch.where(mask, given, base)
            values, scales = values + given, scales + torch.where(mask, scale, 0)
        return values, scales


class Rounding:
    """The quantiser of training and of estimates: rounds about the means and keeps what the rate needs.

    Args:
        latents: to be coded, (B, C, H, W).

    Attributes:
        means: those of the pass that each place was coded in, after the run.
    """

    def __init__(self, latents: Tensor) -> None:
        self.latents = latents
        self.means = torch.zeros_like(latents)

    def __call__(self, mean: Tensor, scale: Tensor, mask: Tensor) -> Tensor:
        """See :data:`Quantizer`."""
        self.means = torch.where(mask, mean, self.means)
        return round_through(self.latents - mean) + mean
