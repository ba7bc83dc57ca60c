"""What the metrics take: pictures as 8-bit levels in double precision."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Channels", "Picture", "levels", "luma"]

Picture = Tensor | NDArray[Any]
Channels = Literal["rgb", "y"]


def levels(picture: Picture) -> Tensor:
    """Return (B, C, H, W) float64 levels in 0..255, rounded as the picture would be saved.

    Args:
        picture: a float tensor in [-1, 1], (C, H, W) or (B, C, H, W); a uint8 tensor of the same layouts; or
            a uint8 array, (H, W), (H, W, C) or (B, H, W, C).

    Raises:
        ValueError: another type or layout.
    """
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim not in (2, 3, 4):
            raise ValueError(f"metrics: arrays must be 8-bit pictures, not {picture.dtype} {picture.shape}")
        picture = picture[..., None] if picture.ndim == 2 else picture
        picture = torch.from_numpy(np.ascontiguousarray(np.moveaxis(picture, -1, -3)))
    if picture.ndim == 3:
        picture = picture[None]
    if picture.ndim != 4 or not (picture.is_floating_point() or picture.dtype == torch.uint8):
        given = f"{picture.dtype} {tuple(picture.shape)}"
        raise ValueError(f"metrics: tensors must be (B, C, H, W), floats or uint8, not {given}")
    picture = picture.detach()
    if picture.device.type == "mps":  # no float64 there
        picture = picture.cpu()
    if picture.dtype == torch.uint8:
        return picture.double()
    # In float32, as pictures are saved: in double a value between two levels could round the other way.
    return picture.float().add(1).mul(127.5).round().clamp(0, 255).double()


def luma(rgb: Tensor) -> Tensor:
    """Return studio-range BT.601 luma, 16..235, of levels (B, 3, H, W): (B, 1, H, W), not rounded.

    The convention of the super-resolution literature (MATLAB's ``rgb2ycbcr``). A grey picture counts as RGB.
    """
    if rgb.shape[1] not in (1, 3):
        raise ValueError(f"luma needs 1 or 3 channels, not {rgb.shape[1]}")
    weights = rgb.new_tensor([65.481, 128.553, 24.966]) / 255
    return 16 + (rgb * weights[:, None, None]).sum(1, keepdim=True)


def compared(prediction: Picture, target: Picture, channels: Channels, crop: int) -> tuple[Tensor, Tensor]:
    """Return both as levels, (B, C, H, W) float64, on the asked channels and without ``crop`` borders."""
    a, b = levels(prediction), levels(target)
    if a.shape != b.shape:
        raise ValueError(f"metrics: shapes differ: {tuple(a.shape)} and {tuple(b.shape)}")
    if crop < 0 or min(a.shape[-2:]) <= 2 * crop:
        raise ValueError(f"metrics: a border of {crop} leaves nothing of {a.shape[-1]}x{a.shape[-2]}")
    if channels not in ("rgb", "y"):
        raise ValueError(f"metrics: channels must be 'rgb' or 'y', not {channels!r}")
    inside = (..., slice(crop, a.shape[-2] - crop), slice(crop, a.shape[-1] - crop))
    a, b = a[inside], b[inside].to(a.device)
    return (luma(a), luma(b)) if channels == "y" else (a, b)
