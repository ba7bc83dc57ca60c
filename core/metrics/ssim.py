"""Structural similarity, at one scale and at five."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .pictures import Channels, Picture, compared

__all__ = ["ms_ssim", "ssim"]

_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
_SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_ROWS_AT_ONCE = 32  # bounds memory on large pictures, and stays in the cache


def ssim(prediction: Picture, target: Picture, *, channels: Channels = "rgb", crop: int = 0) -> Tensor:
    """Return the mean structural similarity of each picture: (B,) float64, 1 for equal pictures.

    "Image Quality Assessment: From Error Visibility to Structural Similarity" (Wang et al., 2004), as its
    MATLAB code has it: an 11x11 Gaussian window with sigma 1.5, population covariances, only windows that lie
    inside. The same as scikit-image with ``gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
    data_range=255``. Pictures are rounded to 8 bits first; on RGB it is the mean over channels.

    Args:
        prediction: see `levels` for the types taken; sides of 11 pixels or more after the crop.
        target: of the same shape.
        channels: ``"rgb"``, or ``"y"``: studio-range luma, as the super-resolution literature has it.
        crop: pixels left out along each border.

    Raises:
        ValueError: the shapes differ, or less than a window is left.
    """
    a, b = compared(prediction, target, channels, crop)
    return _means(a, b)[0].mean(1)


def ms_ssim(prediction: Picture, target: Picture, *, channels: Channels = "rgb", crop: int = 0) -> Tensor:
    """Return the multi-scale structural similarity of each picture: (B,) float64.

    "Multi-Scale Structural Similarity for Image Quality Assessment" (Wang et al., 2003): contrast and
    structure at five scales with weights .0448 .2856 .3001 .2363 .1333, luminance at the coarsest; scales are
    made by 2x2 means; negative terms count as 0. Compression papers quote it on RGB.

    Args:
        prediction: see `levels` for the types taken; sides above 160 pixels after the crop.
        target: of the same shape.
        channels: ``"rgb"`` (mean over channels) or ``"y"``.
        crop: pixels left out along each border.

    Raises:
        ValueError: the shapes differ, or a side is 160 pixels or less.
    """
    a, b = compared(prediction, target, channels, crop)
    shortest = (_WINDOW - 1) * 2 ** (len(_SCALE_WEIGHTS) - 1)
    if min(a.shape[-2:]) <= shortest:
        raise ValueError(f"ms_ssim needs sides above {shortest} pixels, not {a.shape[-1]}x{a.shape[-2]}")
    result = a.new_ones(a.shape[:2])
    for scale, weight in enumerate(_SCALE_WEIGHTS):
        if scale:
            odd = [side % 2 for side in a.shape[-2:]]
            a, b = (F.avg_pool2d(x, 2, padding=odd) for x in (a, b))
        similarity, contrast = _means(a, b)
        last = scale == len(_SCALE_WEIGHTS) - 1
        result *= (similarity if last else contrast).clamp(min=0) ** weight
    return result.mean(1)


def _means(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Means over positions of the similarity and of its contrast-structure part: two (B, C)."""
    height, width = a.shape[-2:]
    if min(height, width) < _WINDOW:
        raise ValueError(f"ssim needs sides of {_WINDOW} pixels or more, not {width}x{height}")
    similarity, contrast = a.new_zeros(a.shape[:2]), a.new_zeros(a.shape[:2])
    rows = height - _WINDOW + 1
    for top in range(0, rows, _ROWS_AT_ONCE):
        part = slice(top, min(top + _ROWS_AT_ONCE, rows) + _WINDOW - 1)
        x, y = a[..., part, :], b[..., part, :]
        mean_x, mean_y, xx, yy, xy = _filtered(torch.stack([x, y, x * x, y * y, x * y]))
        covariance = xy - mean_x * mean_y
        variances = (xx - mean_x**2) + (yy - mean_y**2)
        cs = (2 * covariance + _C2) / (variances + _C2)
        luminance = (2 * mean_x * mean_y + _C1) / (mean_x**2 + mean_y**2 + _C1)
        similarity += (luminance * cs).sum((-1, -2))
        contrast += cs.sum((-1, -2))
    count = rows * (width - _WINDOW + 1)
    return similarity / count, contrast / count


def _filtered(maps: Tensor) -> Tensor:
    """Gaussian means over every window that lies inside: (..., H, W) to (..., H - 10, W - 10)."""
    offset = torch.arange(_WINDOW, dtype=torch.float64) - _WINDOW // 2
    weights = torch.exp(-(offset**2) / (2 * _SIGMA**2))
    kernel: list[float] = (weights / weights.sum()).tolist()
    # Sums of slices: on the CPU several times as quick as a convolution in float64.
    for axis in (-2, -1):
        size = maps.shape[axis] - _WINDOW + 1
        taps = [maps.narrow(axis, i, size) for i in range(_WINDOW)]
        maps = taps[_WINDOW // 2] * kernel[_WINDOW // 2]
        for i in range(_WINDOW // 2):
            maps.add_(taps[i] + taps[-1 - i], alpha=kernel[i])
    return maps
