"""What super-resolution adds to the shared objective."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["gradient_loss", "psnr_loss"]


def psnr_loss(restored: Tensor, original: Tensor, floor: float = 4e-5) -> Tensor:
    """Minus the mean PSNR of a batch, in dB (as NAFNet trains, arXiv 2204.04676).

    A mean of squared or absolute errors is made by the textured pictures alone; this one counts a smooth picture's
    decibels like any other's.

    Args:
        restored: (B, C, H, W) in [-1, 1].
        original: likewise.
        floor: added to the squared error, so that pictures that are right already (50 dB) do not take over.
    """
    error = (restored - original).float().square().flatten(1).mean(1)
    return 10 * torch.log10((error + floor) / 4).mean()


def gradient_loss(restored: Tensor, original: Tensor) -> Tensor:
    """Mean absolute difference of the horizontal and vertical pixel differences of two pictures (B, C, H, W)."""
    error = restored - original
    return error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
