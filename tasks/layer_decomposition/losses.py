"""What layer decomposition adds to the shared objective."""

from __future__ import annotations

import torch
from torch import Tensor

from .formulation import Layers

__all__ = ["alpha_loss", "consistency_loss", "region_psnr_loss"]


def consistency_loss(layers: Layers, image: Tensor, t: Tensor, gated: bool = True) -> Tensor:
    """Mean absolute difference of the predicted layers' composite to the picture (LayerDecomp, arXiv 2411.17864).

    It needs no true layers, so pairs without a true foreground teach it, too.

    Args:
        layers: from predicted clean data.
        image: (B, 3, H, W) in [0, 1].
        t: project times (B,).
        gated: weight by (1 - t)^2: near pure noise a sampler's prediction of clean data means little. A network that
            is trained to answer in one step is measured without.
    """
    error = (layers.composite() - image).abs().flatten(1).mean(1)
    return ((1 - t) ** 2 * error if gated else error).mean()


def alpha_loss(alpha: Tensor, truth: Tensor, counted: Tensor) -> Tensor:
    """One minus the soft intersection over union of alphas (B, 1, H, W), over samples with a true one.

    Args:
        alpha: predicted.
        truth: true, where there is one.
        counted: (B,) bool.
    """
    both, either = torch.minimum(alpha, truth).sum((1, 2, 3)), torch.maximum(alpha, truth).sum((1, 2, 3))
    loss = 1 - (both + 1) / (either + 1)
    return (loss * counted).sum() / counted.sum().clamp(min=1)


def region_psnr_loss(picture: Tensor, truth: Tensor, region: Tensor, floor: float = 1e-4) -> Tensor:
    """Minus the mean PSNR of a batch within a region, in dB.

    Args:
        picture: (B, C, H, W) in [0, 1].
        truth: likewise.
        region: (B, 1, H, W), weights.
        floor: added to the squared error, so that what is right already does not take over.
    """
    squared = ((picture - truth).float().square() * region).sum((1, 2, 3))
    error = squared / (picture.shape[1] * region.sum((1, 2, 3))).clamp(min=1)
    return 10 * torch.log10(error + floor).mean()
