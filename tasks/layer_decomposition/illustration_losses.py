"""What an illustration's layers are asked for besides the shared objective: each by what it is, all by their picture.

The paper of the four layers (arXiv 2603.14925) speaks of layer-wise losses and gives no formulas; these are ours.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .illustration import ROLES, LayerCode, blurred, recompose_code

__all__ = ["flat_loss", "iou_loss", "layer_losses", "line_loss", "recomposition_loss", "shading_loss"]


def iou_loss(predicted: Tensor, true: Tensor) -> Tensor:
    """1 - soft IoU of alphas (B, L, H, W) by picture and layer: (B, L).

    The sums have a floor of a five-hundredth of the picture, so that specks in a layer that should be empty cost little
    and small highlights still count.
    """
    floor = 0.002 * predicted.shape[-1] * predicted.shape[-2]
    predicted = predicted.clamp(0, 1)
    shared = torch.minimum(predicted, true).sum((-2, -1))
    return 1 - (shared + floor) / (torch.maximum(predicted, true).sum((-2, -1)) + floor)


def line_loss(alpha: Tensor, true: Tensor) -> Tensor:
    """L1 of alpha and of its Sobel edges, and an empty ground: (B,) of alphas (B, H, W)."""
    edges = (sobel(alpha) - sobel(true)).abs().mean((1, 2, 3))
    stray = (alpha.abs() * (true < 0.02)).mean((1, 2))
    return (alpha - true).abs().mean((1, 2)) + edges + stray


def flat_loss(code: Tensor, true: Tensor) -> Tensor:
    """L1 of a flat layer's code (B, 4, H, W), and no variation where the true one has none: (B,)."""
    variation = torch.zeros_like(code[:, 0, 0, 0])
    for axis in (-2, -1):
        step, true_step = code.diff(dim=axis), true.diff(dim=axis)
        plain = (true_step.abs().amax(1, keepdim=True) < 0.02).to(step)
        variation = variation + (step.abs() * plain).mean((1, 2, 3))
    return (code - true).abs().mean((1, 2, 3)) + variation


def shading_loss(alpha: Tensor, true: Tensor) -> Tensor:
    """L1 of alpha, also of its low frequencies, and nothing below zero: (B,) of alphas (B, H, W).

    Below zero a shadow would brighten and a highlight darken.
    """
    radius = max(1, alpha.shape[-1] // 32)
    low = (blurred(alpha[:, None], radius) - blurred(true[:, None], radius)).abs().mean((1, 2, 3))
    return (alpha - true).abs().mean((1, 2)) + low + F.relu(-alpha).mean((1, 2))


def recomposition_loss(code: Tensor, true: Tensor) -> Tensor:
    """L1 between the pictures that two codes (B, 4, L, H, W) make on white paper: (B,)."""
    return (recompose_code(code) - recompose_code(true)).abs().mean((1, 2, 3))


def layer_losses(code: Tensor, true: Tensor) -> dict[str, Tensor]:
    """All of them for codes (B, 4, L, H, W), by layer, and ``recomposition`` and ``iou``: each (B,)."""
    code, true = code.float(), true.float()
    alpha, true_alpha = LayerCode.alpha(code), LayerCode.alpha(true)
    flat, line = ROLES.index("flat"), ROLES.index("line")
    losses = {"flat": flat_loss(code[:, :, flat], true[:, :, flat])}
    for role in ("shadow", "highlight"):
        slot = ROLES.index(role)
        losses[role] = shading_loss(alpha[:, slot], true_alpha[:, slot])
    losses["line"] = line_loss(alpha[:, line], true_alpha[:, line])
    losses["recomposition"] = recomposition_loss(code, true)
    # Of the roles most drawings lack one: counted alike, leaving it empty always would pay.
    present = (true_alpha.sum((-2, -1)) > 0.001 * alpha.shape[-1] * alpha.shape[-2]).float()
    weights = 0.2 + 0.8 * present
    losses["iou"] = (iou_loss(alpha, true_alpha) * weights).sum(1) / weights.sum(1)
    return losses


def sobel(values: Tensor) -> Tensor:
    """Horizontal and vertical derivative (B, 2, H - 2, W - 2) of (B, H, W), by an eighth of Sobel's kernel."""
    kernel = values.new_tensor([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 8
    return F.conv2d(values[:, None], torch.stack([kernel, kernel.T])[:, None])
