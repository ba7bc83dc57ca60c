"""Between the floats of core and the bytes of a picture file."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["from_uint8", "to_uint8"]


def to_uint8(image: Tensor) -> NDArray[np.uint8]:
    """Turn (C, H, W) or (1, C, H, W) in [-1, 1] into 8-bit (H, W, C); values outside are clipped.

    Rounds to the nearest level (halves to the even one), so `from_uint8` followed by this changes nothing.
    """
    if image.ndim == 4 and image.shape[0] == 1:
        image = image[0]
    if image.ndim != 3:
        raise ValueError(f"to_uint8 takes one picture (C, H, W), not {tuple(image.shape)}")
    levels = image.detach().float().add(1).mul_(127.5).round_().clamp_(0, 255)
    # Channels last only after the cast: moving bytes costs a quarter of moving floats.
    return levels.to(torch.uint8).cpu().permute(1, 2, 0).contiguous().numpy()


def from_uint8(image: NDArray[np.uint8]) -> Tensor:
    """Turn an 8-bit (H, W, C) or (H, W) array into float32 (C, H, W) in [-1, 1]."""
    if image.dtype != np.uint8 or image.ndim not in (2, 3):
        raise ValueError(f"from_uint8 takes 8-bit (H, W) or (H, W, C), not {image.dtype} {image.shape}")
    planes = image[None] if image.ndim == 2 else image.transpose(2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(planes)).float().div_(127.5).sub_(1)
