"""Photoshop files (.psd) of a stack of layers, written with psd-tools: ``pip install polydit[layers]``."""

from __future__ import annotations

from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from ..errors import PolyditError
from .layer_files import LayerStack

__all__ = ["write_photoshop"]

MODES = {
    "normal": "NORMAL",
    "multiply": "MULTIPLY",
    "screen": "SCREEN",
    "overlay": "OVERLAY",
    "darken": "DARKEN",
    "lighten": "LIGHTEN",
    "color-dodge": "COLOR_DODGE",
    "color-burn": "COLOR_BURN",
    "hard-light": "HARD_LIGHT",
    "soft-light": "SOFT_LIGHT",
    "difference": "DIFFERENCE",
    "exclusion": "EXCLUSION",
    "plus": "LINEAR_DODGE",
}
"""Our blend modes as psd-tools names Photoshop's."""

MAX_SIDE = 30_000  # of the format


def write_photoshop(file: BinaryIO, stack: LayerStack, crop: bool = True) -> None:
    """Write a stack as a PSD file.

    The format keeps opacity in 8 bits, so it is rounded to the nearest 1 / 255.

    Args:
        file: where to.
        stack: what to; its paper becomes a layer.
        crop: cut layers to what is visible of them; their place is kept.

    Raises:
        PolyditError: psd-tools is not installed, or the canvas is larger than the format allows.
    """
    try:
        from psd_tools import PSDImage
        from psd_tools.constants import BlendMode
    except ImportError as error:
        raise PolyditError(
            "--export psd: needs psd-tools; pip install polydit[layers], or choose ora, which every install can write"
        ) from error
    if max(stack.width, stack.height) > MAX_SIDE:
        raise PolyditError(
            f"--export psd: {stack.width}x{stack.height} is larger than the {MAX_SIDE} pixels of the format; choose ora"
        )
    stack = stack.with_paper()
    merged = stack.composite()
    if merged.shape[2] == 3:
        merged = np.concatenate([merged, np.full_like(merged[..., :1], 255)], axis=-1)
    # In a document with alpha the layers keep theirs as transparency; in another one psd-tools makes masks of it.
    document: Any = PSDImage.frompil(Image.fromarray(merged))
    for layer in stack.layers:
        part = layer.cropped() if crop else layer
        made = document.create_pixel_layer(
            Image.fromarray(part.pixels, "RGBA"),
            name=layer.name,
            top=part.y,
            left=part.x,
            opacity=round(255 * layer.opacity),
            blend_mode=getattr(BlendMode, MODES[layer.blend_mode]),
        )
        made.visible = layer.visible
    document.save(file)
