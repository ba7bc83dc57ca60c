"""Losses on the predicted mask."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

__all__ = ["cross_entropy", "overlap_loss"]


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean binary cross entropy of logits and targets in [0, 1], any shape; a scalar."""
    return F.binary_cross_entropy_with_logits(logits.float(), target.float())


def overlap_loss(mask: Tensor, target: Tensor) -> Tensor:
    """One minus the soft intersection over union, meaned over the batch.

    Args:
        mask: (B, 1, H, W) in [0, 1].
        target: the same.

    Returns:
        A scalar in [0, 1]; 0 for equal hard masks, empty ones included.
    """
    mask, target = mask.float().flatten(1), target.float().flatten(1)
    both = (mask * target).sum(1)
    return (1 - (both + 1) / ((mask + target).sum(1) - both + 1)).mean()
