"""Pictures with 16 bits: what Pillow would cut to 8, or does not know."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import PolyditError

__all__ = ["one_line", "oriented", "read_deep", "tiff_size"]


def tiff_size(path: Path) -> tuple[int, int] | None:
    """Size of a TIFF that Pillow does not know (16-bit RGB), or None."""
    if path.suffix.lower() not in (".tif", ".tiff"):
        return None
    import tifffile

    try:
        with tifffile.TiffFile(path) as tiff:
            page = tiff.pages[0]
            return int(page.imagewidth), int(page.imagelength)  # type: ignore[union-attr]
    except (OSError, ValueError, IndexError, struct.error, tifffile.TiffFileError):
        return None


def read_deep(path: Path, data: bytes, image: Image.Image | None) -> np.ndarray | None:
    """(H, W, C) uint16 of a 16-bit file, C in 1..4, or None for one that Pillow reads well with 8 bits."""
    if image is None or image.format == "TIFF":
        import tifffile

        try:
            with tifffile.TiffFile(io.BytesIO(data)) as tiff:
                page = tiff.pages[0]
                kind = page.dtype
                if kind is None or kind.kind == "f":
                    raise PolyditError(
                        f"{path}: TIFF of type {kind} is not supported; save it with 8 or 16 bits"
                    )
                if kind != np.uint16:
                    return None
                array = page.asarray()
                if array.ndim == 3 and page.axes.startswith("S"):
                    array = np.moveaxis(array, 0, -1)
        except (ValueError, tifffile.TiffFileError, KeyError) as error:
            if image is not None and image.mode != "I;16":
                return None  # eight bits: Pillow reads more kinds of TIFF
            raise PolyditError(
                f"{path}: 16-bit TIFF cannot be decoded ({one_line(error)}); save it with Deflate compression"
            ) from error
        return array[..., None] if array.ndim == 2 else array[..., :4]
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        image.load()
        return np.asarray(image).astype(np.uint16)[..., None]
    if image.mode == "F" or image.mode == "I":
        raise PolyditError(
            f"{path}: pictures of mode {image.mode} are not supported; save it with 8 or 16 bits"
        )
    return None


def oriented(deep: np.ndarray, orientation: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Undo an EXIF orientation; return (H, W, 3) colours and (H, W) alpha or None."""
    turns = {
        2: (0, True),
        3: (2, False),
        4: (2, True),
        5: (3, True),
        6: (3, False),
        7: (1, True),
        8: (1, False),
    }
    quarter, mirror = turns.get(orientation, (0, False))
    deep = np.rot90(deep, quarter)
    if mirror:
        deep = deep[:, ::-1]
    channels = deep.shape[2]
    alpha = deep[..., -1] if channels in (2, 4) else None
    colour = deep[..., :3] if channels >= 3 else np.repeat(deep[..., :1], 3, axis=2)
    return colour, alpha


def one_line(error: BaseException) -> str:
    """What a library said, short and on one line."""
    return " ".join(str(error).split())[:120] or type(error).__name__
