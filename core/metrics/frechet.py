"""Fréchet distance between two sets of pictures (FID, when the features are Inception's)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torchmetrics import Metric

__all__ = ["FrechetDistance", "frechet_distance"]

Features = Callable[[Tensor], Tensor]


def frechet_distance(mean_a: Tensor, covariance_a: Tensor, mean_b: Tensor, covariance_b: Tensor) -> Tensor:
    """Return the squared Fréchet distance of two Gaussians, a float64 scalar.

    |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), "GANs Trained by a Two Time-Scale Update Rule Converge
    to a Local Nash Equilibrium" (arXiv 1706.08500).

    Args:
        mean_a: (D,).
        covariance_a: (D, D), symmetric and positive semi-definite; may be singular.
        mean_b: (D,).
        covariance_b: (D, D).
    """
    mean_a, mean_b = mean_a.double(), mean_b.double()
    covariance_a, covariance_b = covariance_a.double(), covariance_b.double()
    # (C_a C_b)^(1/2) has the trace of (R C_b R)^(1/2) with R = C_a^(1/2): symmetric, so eigh does it, and no
    # imaginary parts or offsets are needed when there are fewer pictures than features.
    values, vectors = torch.linalg.eigh(covariance_a)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ covariance_b @ root).clamp(min=0).sqrt().sum()
    distance = (mean_a - mean_b).square().sum() + covariance_a.trace() + covariance_b.trace() - 2 * cross
    return distance.clamp(min=0)


class FrechetDistance(Metric):
    """Fréchet distance between the features of real and of generated pictures, over a data set.

    Only sums are kept, in float64 (2048 features: 64 MB), also across processes. With fewer pictures than
    features the covariances are singular and the figure is not comparable with published ones (50,000
    pictures).
    """

    higher_is_better = False
    is_differentiable = False
    full_state_update = False
    real_sum: Tensor
    real_products: Tensor
    real_count: Tensor
    fake_sum: Tensor
    fake_products: Tensor
    fake_count: Tensor

    def __init__(self, features: Features, size: int) -> None:
        """Prepare the sums.

        Args:
            features: maps float pictures (B, 3, H, W) in [-1, 1] to (B, size); `InceptionFeatures` gives FID.
            size: number of features.
        """
        super().__init__()
        # In a list a network is not a submodule: its weights stay out of the checkpoints of the metric's
        # user.
        self._features: list[Features] = [features]
        self.size = size
        for kind in ("real", "fake"):
            total = torch.zeros(size, dtype=torch.float64)
            self.add_state(f"{kind}_sum", total, dist_reduce_fx="sum")
            self.add_state(f"{kind}_products", torch.outer(total, total), dist_reduce_fx="sum")
            self.add_state(f"{kind}_count", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, pictures: Tensor, real: bool) -> None:
        """Add pictures, (B, 3, H, W) in [-1, 1], to the real or to the generated ones."""
        features = extract(self._features[0], pictures, self.size).to(self.real_sum.device)
        kind = "real" if real else "fake"
        getattr(self, f"{kind}_sum").add_(features.sum(0))
        getattr(self, f"{kind}_products").add_(features.T @ features)
        getattr(self, f"{kind}_count").add_(len(features))

    def compute(self) -> Tensor:
        """Return the distance, a float64 scalar; raises ValueError with fewer than two pictures of a kind."""
        return frechet_distance(*self._moments("real"), *self._moments("fake"))

    def _moments(self, kind: str) -> tuple[Tensor, Tensor]:
        total, products = getattr(self, f"{kind}_sum"), getattr(self, f"{kind}_products")
        count = int(getattr(self, f"{kind}_count"))
        if count < 2:
            raise ValueError(f"Fréchet distance: needs at least 2 {kind} pictures, has {count}")
        mean = total / count
        return mean, (products - count * torch.outer(mean, mean)) / (count - 1)


def extract(features: Features, pictures: Tensor, size: int | None) -> Tensor:
    """Return ``features(pictures)`` as float64 (B, D), checked."""
    with torch.no_grad():
        out = features(pictures)
    expected = f"({len(pictures)}, {size if size is not None else 'D'})"
    if out.ndim != 2 or len(out) != len(pictures) or (size is not None and out.shape[1] != size):
        raise ValueError(f"features must come as {expected}, not {tuple(out.shape)}")
    if not torch.isfinite(out).all():
        raise ValueError("features contain NaN or infinity")
    return (out.cpu() if out.device.type == "mps" else out).double()
