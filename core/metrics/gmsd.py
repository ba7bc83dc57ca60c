"""Gradient magnitude similarity deviation: a perceptual measure that needs no weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .pictures import Picture, compared

__all__ = ["gmsd"]

_CONTRAST = 170.0
_GREY = (0.299, 0.587, 0.114)


def gmsd(prediction: Picture, target: Picture, *, crop: int = 0) -> Tensor:
    """Return the gradient magnitude similarity deviation of each picture: (B,) float64, 0 for equal pictures.

    "Gradient Magnitude Similarity Deviation: A Highly Efficient Perceptual Image Quality Index"
    (arXiv 1308.3052). On grey levels 0..255 after a 2x2 mean and every second pixel: Prewitt gradients (a
    third of the sum), similarity (2 g h + 170) / (g^2 + h^2 + 170), its standard deviation (n - 1) over the
    picture, zeros assumed outside. Lower is better; it does not see a shift of brightness.

    Args:
        prediction: see `levels` for the types taken; at least 4 pixels a side after the crop.
        target: of the same shape.
        crop: pixels left out along each border.

    Raises:
        ValueError: the shapes differ, or the pictures are too small.
    """
    a, b = compared(prediction, target, "rgb", crop)
    if min(a.shape[-2:]) < 4:
        raise ValueError(f"gmsd needs sides of 4 pixels or more, not {a.shape[-1]}x{a.shape[-2]}")
    g, h = _gradient_magnitude(a), _gradient_magnitude(b)
    similarity = (2 * g * h + _CONTRAST) / (g**2 + h**2 + _CONTRAST)
    return similarity.flatten(1).std(1)


def _gradient_magnitude(picture: Tensor) -> Tensor:
    if picture.shape[1] == 3:
        picture = (picture * picture.new_tensor(_GREY)[:, None, None]).sum(1, keepdim=True)
    # MATLAB's conv2(..., 'same') with a 2x2 kernel looks to the right and below.
    smooth = F.avg_pool2d(F.pad(picture, (0, 1, 0, 1)), 2, stride=1)[..., ::2, ::2]
    across = picture.new_tensor([[1.0, 0.0, -1.0]] * 3) / 3
    kernels = torch.stack([across, across.T])[:, None]
    return F.conv2d(smooth, kernels, padding=1).square().sum(1, keepdim=True).sqrt()
