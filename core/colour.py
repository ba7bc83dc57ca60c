"""Colour fixes: give a restored picture the colours of the picture it was restored from.

Generative restorers drift in colour. Both fixes take the restored picture (*content*) and a reference of the
same size (*style*, for super-resolution the bicubic enlargement of the input) and work in any value range.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor

from .errors import PolyditError

__all__ = ["ColourFix", "adain", "colour_fix", "wavelet", "wavelet_low"]

ColourFix = Literal["none", "adain", "wavelet"]


def adain(content: Tensor, style: Tensor, eps: float = 1e-5) -> Tensor:
    """Move each channel's mean and standard deviation to those of the reference.

    Adaptive instance normalisation, "Arbitrary Style Transfer in Real-time with Adaptive Instance
    Normalization" (arXiv 1703.06868), with the unbiased variance plus ``eps``.

    Args:
        content: restored picture, (B, C, H, W), any range.
        style: reference, (B, C, h, w); its size may differ, only its statistics are used.
        eps: added to both variances.

    Returns:
        (B, C, H, W) in the dtype of ``content``; not clamped.
    """
    if content.shape[:2] != style.shape[:2]:
        shapes = f"{tuple(content.shape)} and {tuple(style.shape)}"
        raise ValueError(f"adain: content and style differ in batch or channels: {shapes}")
    content_mean, content_std = _statistics(content, eps)
    style_mean, style_std = _statistics(style, eps)
    return ((content.float() - content_mean) / content_std * style_std + style_mean).to(content.dtype)


def wavelet(content: Tensor, style: Tensor, levels: int = 5) -> Tensor:
    """Keep the detail of the content and take everything coarse from the reference.

    The a-trous wavelet transform with the kernel [1 2 1] x [1 2 1] / 16: ``high(content) + low(style)`` where
    ``low`` blurs ``levels`` times with dilations 1, 2, 4, ... and ``high`` is what those blurs took away.
    The blur is linear and ``high(x) = x - low(x)``, so this is ``content + low(style - content)``: one
    blur instead of two, and a picture that already has the colours of its reference returns unchanged.

    Args:
        content: restored picture, (B, C, H, W), any range.
        style: reference of the same shape.
        levels: number of dyadic levels; 5 takes colours at a scale of about 32 pixels and above.

    Returns:
        (B, C, H, W) in the dtype of ``content``; not clamped.
    """
    if content.shape != style.shape:
        shapes = f"{tuple(content.shape)} and {tuple(style.shape)}"
        raise ValueError(f"wavelet: content and style must be of one shape, not {shapes}")
    return (content.float() + wavelet_low(style.float() - content.float(), levels)).to(content.dtype)


def wavelet_low(image: Tensor, levels: int = 5) -> Tensor:
    """Return the coarse part of the a-trous transform: (B, C, H, W), borders replicated."""
    if levels < 1:
        raise ValueError(f"wavelet: levels must be 1 or more, not {levels}")
    low = image
    for level in range(levels):
        low = _blur_axis(_blur_axis(low, 2**level, axis=-1), 2**level, axis=-2)
    return low


def colour_fix(content: Tensor, style: Tensor, kind: ColourFix) -> Tensor:
    """Apply the fix called ``kind``: ``"none"``, ``"adain"`` or ``"wavelet"``."""
    if kind == "adain":
        return adain(content, style)
    if kind == "wavelet":
        return wavelet(content, style)
    if kind == "none":
        return content
    raise PolyditError(f"colour fix {kind!r} is not known: choose one of {', '.join(get_args(ColourFix))}")


def _statistics(image: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    flat = image.float().flatten(2)  # (B, C, H*W)
    # The unbiased variance of a single pixel is 0/0: such a picture has no contrast to transfer.
    variance = flat.var(dim=2, unbiased=flat.shape[2] > 1)
    return flat.mean(dim=2)[..., None, None], (variance + eps).sqrt()[..., None, None]


def _blur_axis(image: Tensor, dilation: int, axis: int) -> Tensor:
    """[1 2 1] / 4 along one axis: the 2-D kernel is separable, and slices are quicker than a convolution."""
    pad = [dilation, dilation, 0, 0] if axis == -1 else [0, 0, dilation, dilation]
    size = image.shape[axis]
    padded = F.pad(image, pad, mode="replicate")
    outer = padded.narrow(axis, 0, size) + padded.narrow(axis, 2 * dilation, size)
    return outer.mul_(0.25).add_(image, alpha=0.5)
