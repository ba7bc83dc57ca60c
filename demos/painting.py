"""Masks from what was painted on a picture in the page's editor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from polydit.core.data.images import read_image, to_uint8

__all__ = ["BRUSH", "as_layer", "painted"]

BRUSH = "#d55e00"


def painted(layers: Sequence[Path], size: tuple[int, int]) -> NDArray[np.uint8]:
    """What was painted on any layer, (H, W), 0 or 255.

    Args:
        layers: transparent pictures from the editor.
        size: (width, height) of the picture below.
    """
    mask = np.zeros((size[1], size[0]), bool)
    for file in layers:
        pixels, info = read_image(file, background=None)
        opaque = info.alpha if info.alpha is not None else pixels.max(-1)
        picture = Image.fromarray(to_uint8(opaque)).resize(size, Image.Resampling.NEAREST)
        mask |= np.asarray(picture) > 127
    return (mask * 255).astype(np.uint8)


def as_layer(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A mask (H, W) as a layer of the editor, (H, W, 4), in the colour of the brush."""
    layer = np.zeros((*mask.shape, 4), np.uint8)
    layer[mask > 127] = (*bytes.fromhex(BRUSH[1:]), 255)
    return layer
