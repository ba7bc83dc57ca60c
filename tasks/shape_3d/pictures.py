"""What an image-to-3D network looks at: the object of a picture, cut out, centred, on white."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ...core.errors import PolyditError

__all__ = ["object_mask", "prepare_picture"]

MARGIN = 0.04


def object_mask(pixels: NDArray[Any], name: str = "image") -> NDArray[Any]:
    """Where the object is: the alpha channel of (H, W, 4) uint8, or what differs from a plain background of (H, W, 3).

    Raises:
        PolyditError: there is none, or the background is not plain.
    """
    if pixels.shape[2] == 4 and (pixels[..., 3] < 250).any():
        mask = pixels[..., 3].astype(np.float32) / 255
    else:
        colours = pixels[..., :3].astype(np.float32)
        border = np.concatenate([colours[0], colours[-1], colours[:, 0], colours[:, -1]])
        ground = np.median(border, axis=0)
        if np.quantile(np.linalg.norm(border - ground, axis=1), 0.75) > 40:
            raise PolyditError(
                f"{name}: its background is not plain, so that the object is not told from it; cut it out first "
                "(`polydit segmentation predict`) and give the picture with alpha"
            )
        mask = (np.linalg.norm(colours - ground, axis=2) > 24).astype(np.float32)
    if (mask > 0.5).mean() < 0.002:
        raise PolyditError(
            f"{name}: shows no object; give a picture of one, on a plain background or cut out"
        )
    return mask


def prepare_picture(picture: Image.Image | NDArray[np.uint8], size: int, name: str = "image") -> Tensor:
    """The object, padded to a square with a margin of 4 %, on white.

    Returns:
        (4, size, size): RGB in [-1, 1], and alpha in [0, 1].

    Raises:
        PolyditError: no object was found.
    """
    pixels = np.asarray(picture.convert("RGBA") if isinstance(picture, Image.Image) else picture)
    mask = object_mask(pixels, name)
    rows, columns = np.nonzero((mask > 0.5).any(1))[0], np.nonzero((mask > 0.5).any(0))[0]
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    cut = np.concatenate([pixels[top:bottom, left:right, :3], (mask[top:bottom, left:right, None] * 255)], -1)
    side = max(bottom - top, right - left)
    pad = round(side * MARGIN)
    square = np.full((side + 2 * pad, side + 2 * pad, 4), (255, 255, 255, 0), np.float32)
    y, x = (len(square) - (bottom - top)) // 2, (len(square) - (right - left)) // 2
    square[y : y + bottom - top, x : x + right - left] = cut
    alpha = square[..., 3:] / 255
    on_white = np.concatenate([square[..., :3] * alpha + 255 * (1 - alpha), square[..., 3:]], -1)
    small = Image.fromarray(np.rint(on_white).astype(np.uint8), "RGBA")
    # Colours are on white already: channels are resized on their own.
    parts = [
        np.asarray(
            part.resize((size, size), Image.Resampling.BOX if side > size else Image.Resampling.BILINEAR)
        )
        for part in small.split()
    ]
    tensor = torch.from_numpy(np.stack(parts)).float() / 255
    return torch.cat([tensor[:3] * 2 - 1, tensor[3:]])
