"""From a soft mask to pictures: the cut-out with clean rims, and the overlay."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from ...core.alpha import pad_rgb

__all__ = ["cut_out", "on_background", "overlay", "piece_at"]

SURE = 0.98
"""Pixels with less alpha than this show some of the background, which must not come along."""


FAINT = 0.1
"""What has more alpha than this holds a piece together."""


def cut_out(picture: NDArray[np.uint8], alpha: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The object with straight alpha.

    Where the mask is soft the colour is taken from the opaque pixels nearby: the picture's own is mixed with the old
    background there, which would show as a rim on a new one.

    Args:
        picture: (H, W, 3).
        alpha: (H, W) in [0, 1].

    Returns:
        (H, W, 4) uint8.
    """
    alpha = alpha.clip(0, 1)
    sure = alpha >= SURE
    colour = picture
    if sure.any():
        rows, columns = _box(alpha > 0)  # all else is invisible
        part = torch.from_numpy(picture[rows, columns].copy()).permute(2, 0, 1)[None].float() / 255
        known = torch.from_numpy(sure[rows, columns])[None, None].float()
        filled = (pad_rgb(part, known, factor=2.0)[0].permute(1, 2, 0).numpy() * 255).round()
        colour = np.zeros_like(picture)
        colour[rows, columns] = filled.clip(0, 255).astype(np.uint8)
        colour[sure] = picture[sure]
    return np.dstack([colour, np.rint(alpha * 255).astype(np.uint8)])


def on_background(cutout: NDArray[np.uint8], background: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A cut-out (H, W, 4) over (H, W, 3), or over one colour (3,)."""
    alpha = cutout[..., 3:].astype(np.float32) / 255
    mixed = cutout[..., :3] * alpha + background * (1 - alpha)
    return np.rint(mixed).astype(np.uint8)


def overlay(
    picture: NDArray[np.uint8], alpha: NDArray[np.float32], colour: tuple[int, int, int] = (255, 40, 90)
) -> NDArray[np.uint8]:
    """The picture darkened outside of the object, and the object tinted; (H, W, 3)."""
    soft = alpha.clip(0, 1)[..., None].astype(np.float32)
    tinted = 0.65 * picture + 0.35 * np.array(colour, np.float32)
    return np.rint(soft * tinted + (1 - soft) * 0.55 * picture).astype(np.uint8)


def piece_at(alpha: NDArray[np.float32], x: int, y: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """The connected piece of a mask (H, W) at a pixel, or the one nearest to it.

    Returns:
        Where it is, and what is nearer to it than to another piece; of a mask in one piece or none, everything.
    """
    from scipy import ndimage

    pieces, count = ndimage.label(alpha > FAINT, structure=np.ones((3, 3)))
    if count < 2:
        everything = np.ones(alpha.shape, bool)
        return everything, everything
    row, column = min(max(y, 0), alpha.shape[0] - 1), min(max(x, 0), alpha.shape[1] - 1)
    rows, columns = ndimage.distance_transform_edt(pieces == 0, return_distances=False, return_indices=True)
    nearest = pieces[rows, columns]
    return pieces == nearest[row, column], nearest == nearest[row, column]


def _box(mask: NDArray[np.bool_]) -> tuple[slice, slice]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
