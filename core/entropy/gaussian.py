"""Rounded Gaussians: likelihoods for training, and integer tables of a ladder of deviations for files."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["SCALES", "counts_of", "gaussian_bits", "gaussian_likelihood", "scale_boundaries", "scale_tables"]

LOWEST, HIGHEST, SCALES = 0.11, 256.0, 64
FLOOR = 1e-9


def scale_ladder() -> Tensor:
    """The deviations that a file knows: 64 from 0.11 to 256, evenly spaced in their logarithm, float64."""
    return torch.linspace(math.log(LOWEST), math.log(HIGHEST), SCALES, dtype=torch.float64).exp()


def scale_boundaries(unit: int) -> Tensor:
    """Whole numbers in 1/unit, int64 (63,): a deviation takes the first step of the ladder that is not below it."""
    return torch.floor(scale_ladder()[:-1] * unit).to(torch.int64)


def gaussian_likelihood(distance: Tensor, scale: Tensor) -> Tensor:
    """Mass of the unit interval around a value.

    Args:
        distance: of the value from the mean; its sign does not matter.
        scale: deviation; 0.11 at least is taken. Its gradient passes there too where it would raise the scale.

    Returns:
        At least 1e-9.
    """
    scale = _at_least(scale if scale.dtype == torch.float64 else scale.float(), LOWEST)
    distance = distance.abs()
    upper = torch.special.erfc(-(0.5 - distance) / scale / math.sqrt(2)) / 2
    lower = torch.special.erfc(-(-0.5 - distance) / scale / math.sqrt(2)) / 2
    return (upper - lower).clamp(min=FLOOR)


def gaussian_bits(distance: Tensor, scale: Tensor) -> Tensor:
    """Bits of each value, see :func:`gaussian_likelihood`."""
    return -torch.log2(gaussian_likelihood(distance, scale))


def scale_tables(radius: int, bits: int = 16) -> Tensor:
    """Integer counts of each residual -radius..radius and of an escape, int64 (64, 2 radius + 2).

    They are a part of the file format. Every row sums to ``2 ** bits``. No entry is so near to a whole number that
    another machine's error function could round it to another one (tested).
    """
    ladder = scale_ladder().view(-1, 1)
    edges = torch.arange(-radius, radius + 2, dtype=torch.float64) - 0.5
    below = torch.special.erfc(-edges / ladder / math.sqrt(2)) / 2
    return counts_of(torch.cat([below[:, 1:] - below[:, :-1], 2 * below[:, :1]], 1), bits)


def counts_of(masses: Tensor, bits: int = 16) -> Tensor:
    """Integer frequencies of masses, int64 (rows, symbols): each at least 1, every row sums to ``2 ** bits``."""
    total, width = 2**bits, masses.shape[1]
    counts = torch.floor(masses.double() * (total - width)).long() + 1
    counts[torch.arange(len(counts)), counts.argmax(1)] += total - counts.sum(1)
    return counts


class _AtLeast(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, values: Tensor, bound: float) -> Tensor:
        ctx.save_for_backward(values)
        ctx.bound = bound  # type: ignore[attr-defined]
        return values.clamp(min=bound)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (values,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return gradient * ((values >= ctx.bound) | (gradient < 0)), None  # type: ignore[attr-defined]


def _at_least(values: Tensor, bound: float) -> Tensor:
    return _AtLeast.apply(values, bound)  # type: ignore[no-any-return]
