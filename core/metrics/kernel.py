"""Kernel distance between two sets of pictures (KID, when the features are Inception's)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from .frechet import Features, extract

__all__ = ["Kernel", "KernelDistance", "gaussian_kernel", "kernel_distance", "polynomial_kernel"]


Kernel = Callable[[Tensor, Tensor], Tensor]
"""Of samples (M, D) and (N, D): (M, N)."""


def polynomial_kernel(degree: int = 3, gamma: float | None = None) -> Kernel:
    """``(gamma x.y + 1) ** degree``; gamma is 1 / D unless given."""

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        products = a @ b.T
        return ((products / a.shape[1] if gamma is None else gamma * products) + 1) ** degree

    return kernel


def gaussian_kernel(gamma: float | None = None) -> Kernel:
    """``exp(-gamma |x - y|^2)``; gamma is 1 / D unless given."""

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        squares = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
        return torch.exp(-(1 / a.shape[1] if gamma is None else gamma) * squares)

    return kernel


def kernel_distance(a: Tensor, b: Tensor, kernel: Kernel | None = None) -> Tensor:
    """Return the unbiased squared maximum mean discrepancy of two samples, a float64 scalar.

    With the polynomial kernel (x.y / D + 1)^3 of "Demystifying MMD GANs" (arXiv 1801.01401) unless another is given.
    Unbiased: its mean is 0 for samples of one distribution, so single values may be negative. Differentiable.

    Args:
        a: (M, D) features, M of 2 or more.
        b: (N, D) features, N of 2 or more.
        kernel: of the samples.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        shapes = f"{tuple(a.shape)} and {tuple(b.shape)}"
        raise ValueError(f"kernel distance: needs (M, D) and (N, D), not {shapes}")
    a, b = a.double(), b.double()
    k = kernel or polynomial_kernel()
    return _mean_off_diagonal(k(a, a)) + _mean_off_diagonal(k(b, b)) - 2 * k(a, b).mean()


def _mean_off_diagonal(square: Tensor) -> Tensor:
    count = len(square)
    return (square.sum() - square.diagonal().sum()) / (count * (count - 1))


class KernelDistance(Metric):
    """Kernel distance between the features of real and of generated pictures: mean over random subsets.

    Published KID takes 100 subsets of 1000. All features are kept (1000 pictures of 2048 features: 16 MB).
    """

    higher_is_better = False
    is_differentiable = False
    full_state_update = False
    real: list[Tensor]
    fake: list[Tensor]

    def __init__(
        self, features: Features, subsets: int = 100, subset_size: int = 1000, seed: int = 0
    ) -> None:
        """Prepare the lists.

        Args:
            features: maps float pictures (B, 3, H, W) in [-1, 1] to (B, D); `InceptionFeatures` gives KID.
            subsets: number of subsets.
            subset_size: pictures of each kind in a subset.
            seed: of the draw of the subsets.
        """
        super().__init__()
        if subsets < 1 or subset_size < 2:
            raise ValueError(f"kernel distance: {subsets} subsets of {subset_size}; at least 1 of 2")
        self._features: list[Features] = [features]
        self.subsets, self.subset_size, self.seed = subsets, subset_size, seed
        self.add_state("real", [], dist_reduce_fx="cat")
        self.add_state("fake", [], dist_reduce_fx="cat")

    def update(self, pictures: Tensor, real: bool) -> None:
        """Add pictures, (B, 3, H, W) in [-1, 1], to the real or to the generated ones."""
        (self.real if real else self.fake).append(extract(self._features[0], pictures, None))

    def compute(self) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation over the subsets, float64 scalars.

        Raises:
            ValueError: fewer pictures of a kind than a subset takes.
        """
        for kind in ("real", "fake"):
            count = sum(len(features) for features in getattr(self, kind))
            if count < self.subset_size:
                needed = f"a subset takes {self.subset_size}"
                raise ValueError(f"kernel distance: {count} {kind} pictures, {needed}")
        real, fake = dim_zero_cat(self.real), dim_zero_cat(self.fake)
        generator = torch.Generator().manual_seed(self.seed)

        def draw(features: Tensor) -> Tensor:
            return features[torch.randperm(len(features), generator=generator)[: self.subset_size]]

        values = torch.stack([kernel_distance(draw(real), draw(fake)) for _ in range(self.subsets)])
        return values.mean(), values.std(unbiased=False)
