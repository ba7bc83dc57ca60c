"""How well layers explain a picture: alpha, background where it was hidden, recomposition."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["alpha_error", "alpha_sad", "region_psnr", "soft_iou"]

Alpha = NDArray[np.float32]


def soft_iou(alpha: Alpha, truth: Alpha) -> float:
    """Sum of the minima over sum of the maxima of two alphas; 0 where both are empty (LayerD's convention)."""
    either = float(np.maximum(alpha, truth).sum(dtype=np.float64))
    return float(np.minimum(alpha, truth).sum(dtype=np.float64)) / either if either else 0.0


def alpha_error(alpha: Alpha, truth: Alpha) -> float:
    """Mean absolute error of an alpha in [0, 1]."""
    return float(np.abs(alpha - truth).mean(dtype=np.float64))


def alpha_sad(alpha: Alpha, truth: Alpha) -> float:
    """Sum of absolute differences in thousands, as matting reports it."""
    return float(np.abs(alpha - truth).sum(dtype=np.float64)) / 1000


def region_psnr(picture: NDArray[Any], truth: NDArray[Any], region: NDArray[np.bool_]) -> float:
    """PSNR in dB of 8-bit pictures (H, W, 3) within a region (H, W); infinite where they are equal.

    Raises:
        ValueError: the region is empty.
    """
    if not region.any():
        raise ValueError("region_psnr: the region is empty")
    error = (picture[region].astype(np.float64) - truth[region].astype(np.float64)) ** 2
    mean = float(error.mean())
    return float("inf") if mean == 0 else 10 * float(np.log10(255**2 / mean))
