"""Showing transparency."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from ..alpha import over
from .pixels import to_uint8

__all__ = ["checkerboard", "on_checkerboard"]

_LIGHT, _DARK = 255, 204


def checkerboard(height: int, width: int, cell: int = 8) -> NDArray[np.uint8]:
    """Return the usual grey and white squares behind transparent pictures: 8-bit (height, width)."""
    rows, columns = np.arange(height) // cell, np.arange(width) // cell
    odd = (rows[:, None] + columns[None]) % 2
    return np.where(odd == 1, _DARK, _LIGHT).astype(np.uint8)


def on_checkerboard(rgba: NDArray[np.uint8], cell: int = 8) -> NDArray[np.uint8]:
    """Composite an 8-bit (H, W, 4) picture with straight alpha over a checkerboard: 8-bit (H, W, 3)."""
    if rgba.dtype != np.uint8 or rgba.ndim != 3 or rgba.shape[2] != 4:
        raise ValueError(f"on_checkerboard takes 8-bit (H, W, 4), not {rgba.dtype} {rgba.shape}")
    layer = torch.from_numpy(rgba.transpose(2, 0, 1).copy()).float() / 255
    back = torch.from_numpy(checkerboard(rgba.shape[0], rgba.shape[1], cell)).float().expand(3, -1, -1) / 255
    return to_uint8(over(layer, back) * 2 - 1)
