"""What inpainting adds to the shared objective: more weight where something is made up."""

from __future__ import annotations

import torch
from torch import Tensor

from ...core.data.masks import dilate

__all__ = ["focal_weight", "hole_psnr_loss"]


def focal_weight(mask: Tensor, inside: float = 2.0, outside: float = 1.0, grow: int = 1) -> Tensor:
    """The focal-area weight of "EraserDiT" (arXiv 2506.12853): the error counts 1 + D, D the dilated latent mask.

    Args:
        mask: (B, 1, T, h, w) of the latents, above 0 where something is made up.
        inside: the weight there; 2 as published.
        outside: the weight elsewhere.
        grow: latents by which the mask is dilated.

    Returns:
        Like ``mask``.
    """
    area = dilate((mask > 0).float(), grow)
    return outside + (inside - outside) * area


def hole_psnr_loss(prediction: Tensor, target: Tensor, hole: Tensor) -> Tensor:
    """Minus the PSNR inside the hole in units of 10 dB, the mean over the clips that have one.

    Args:
        prediction: (B, 3, T, H, W) in [0, 1].
        target: of the same shape.
        hole: (B, 1, T, H, W).
    """
    area = (hole > 0).float()
    count = area.sum((1, 2, 3, 4))
    squares = (area * (prediction - target) ** 2).sum((1, 2, 3, 4)) / (3 * count.clamp(min=1))
    there = (count > 0).float()
    return (there * torch.log10(squares + 1e-4)).sum() / there.sum().clamp(min=1)
