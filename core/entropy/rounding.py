"""Rounding that can be trained through."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["noisy", "round_through"]


def round_through(values: Tensor) -> Tensor:
    """Round; the gradient passes as if nothing happened (straight-through)."""
    return values + (torch.round(values) - values).detach()


def noisy(values: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Add noise, uniform in [-1/2, 1/2]: what rounding does to a density, as the rate sees it in training."""
    noise = torch.rand(values.shape, generator=generator, device=None if generator else values.device)
    return values + noise.to(values) - 0.5
