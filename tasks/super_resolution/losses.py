"""What super-resolution adds to the shared objective."""

from __future__ import annotations

from torch import Tensor

__all__ = ["gradient_loss"]


def gradient_loss(restored: Tensor, original: Tensor) -> Tensor:
    """Mean absolute difference of the horizontal and vertical pixel differences of two pictures (B, C, H, W)."""
    error = restored - original
    return error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
