"""Pictures that a caller has opened with Pillow, read as their files would be."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from .images import ImageInfo, read_image

__all__ = ["from_pillow"]

_PNG = ("1", "L", "LA", "I", "I;16", "P", "RGB", "RGBA")


def from_pillow(
    image: Image.Image, background: tuple[int, int, int] | None = (255, 255, 255)
) -> tuple[np.ndarray, ImageInfo]:
    """What :func:`~polydit.core.data.images.read_image` gives for a PNG file with this picture.

    Args:
        image: of any mode; what is transparent is shown over the background, as in a file.
        background: see ``read_image``.

    Returns:
        (H, W, 3) uint8 or uint16, and what else is known.

    Raises:
        PolyditError: it is too large.
    """
    with io.BytesIO() as file:
        shown = image if image.mode in _PNG else image.convert("RGBA" if "a" in image.mode.lower() else "RGB")
        shown.save(file, "PNG", compress_level=0)
        return read_image("the picture", background=background, data=file.getvalue())
