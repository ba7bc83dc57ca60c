"""Reading pictures: every common format into one array layout, and one clear line for every file that is not fine."""

from __future__ import annotations

import glob
import io
import struct
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps

from ..errors import PolyditError
from .sixteen_bit import one_line, oriented, read_deep, tiff_size

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "ImageInfo",
    "image_size",
    "list_images",
    "read_image",
    "read_images",
    "to_float",
    "to_uint8",
]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".avif", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm")
# 200 megapixels are 600 MB as 8-bit RGB; whatever is larger is refused by its header, before a byte is decoded.
MAX_PIXELS = 200_000_000

_ORIENTATION = 0x0112
_LOCK = threading.Lock()


@dataclass
class ImageInfo:
    """What a picture file was, beside its colours.

    Attributes:
        path: the file.
        width, height: in pixels, after the EXIF orientation was applied.
        mode: Pillow's mode of the file, such as ``RGB``, ``CMYK``, ``P``, ``I;16``.
        bits: 8 or 16, of the returned array.
        alpha: (H, W) of the array's type, or None if the file has no transparency.
        orientation: EXIF orientation that was undone, 1 if none.
        frames: pictures in the file; only the first one is read.
        icc: whether colours were converted to sRGB from an embedded profile.
    """

    path: Path
    width: int
    height: int
    mode: str
    bits: int = 8
    alpha: np.ndarray | None = field(default=None, repr=False)
    orientation: int = 1
    frames: int = 1
    icc: bool = False


def read_image(
    path: str | Path,
    *,
    max_pixels: int = MAX_PIXELS,
    background: tuple[int, int, int] | None = (255, 255, 255),
    data: bytes | None = None,
) -> tuple[np.ndarray, ImageInfo]:
    """Read a picture as RGB, upright and in sRGB.

    Args:
        path: png, jpg, webp, avif, tiff (8 and 16 bit), bmp, gif or ppm; grey, palette, RGBA and CMYK become RGB.
            16-bit RGB is kept for TIFF, 16-bit grey also for PNG; 16-bit RGB PNG comes as 8 bit.
        max_pixels: larger pictures are refused before they are decoded.
        background: colour (0..255) under transparent pixels; None keeps the colours as stored. The alpha channel is in
            the info either way.
        data: content of the file where it was read from somewhere else; ``path`` then only names it.

    Returns:
        (H, W, 3) uint8 or uint16, contiguous, and what else is known.

    Raises:
        PolyditError: missing, not a picture, empty, cut short, or too large (the size is named).
    """
    path = Path(path)
    data = _bytes(path) if data is None else data
    image, (width, height) = _open(path, data, max_pixels)
    info = ImageInfo(path, width, height, "RGB;16" if image is None else image.mode)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if image is not None:
                info.frames = getattr(image, "n_frames", 1)
                info.orientation = image.getexif().get(_ORIENTATION, 1)
            deep = read_deep(path, data, image)
            if deep is not None:
                pixels, alpha = oriented(deep, info.orientation)
                info.bits = 16
            else:
                assert image is not None  # Pillow knows every file that is not a 16-bit TIFF
                image.load()
                pixels, alpha = _eight_bit(ImageOps.exif_transpose(image), info)
    except PolyditError:
        raise
    except (
        OSError,
        ValueError,
        SyntaxError,
        EOFError,
        IndexError,
        struct.error,
        Image.DecompressionBombError,
    ) as error:
        raise PolyditError(f"{path}: cut short or damaged ({one_line(error)}); replace the file") from error
    except MemoryError as error:
        raise PolyditError(f"{path}: {width}x{height} does not fit in memory; reduce it first") from error
    info.height, info.width = pixels.shape[:2]
    info.alpha = alpha
    if alpha is not None and background is not None:
        pixels = _over(pixels, alpha, background)
    return np.ascontiguousarray(pixels), info


def image_size(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Width and height of a picture, upright, from its header only.

    Raises:
        PolyditError: as `read_image`, as far as the header shows it.
    """
    path = Path(path)
    try:
        if path.stat().st_size == 0:
            raise PolyditError(f"{path}: is empty (0 bytes); replace the file")
    except OSError as error:
        raise _unreadable(path, error) from error
    image, size = _open(path, path, max_pixels)
    if image is None:
        return size
    with image:
        try:
            turned = image.getexif().get(_ORIENTATION, 1) >= 5
        except (OSError, ValueError, SyntaxError, struct.error):
            turned = False
    return (size[1], size[0]) if turned else size


def list_images(path: str | Path, *, recursive: bool = True) -> list[Path]:
    """Expand a file, a folder or a pattern to picture files, sorted.

    Raises:
        PolyditError: nothing is there, or nothing of it is a picture (says how many files were passed over).
    """
    text = str(path)
    path = Path(path).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        found = [p for p in (path.rglob("*") if recursive else path.glob("*")) if p.is_file()]
        where = f"{text}: no pictures in this folder"
    elif glob.has_magic(text):
        found = [Path(p) for p in glob.glob(str(path), recursive=True) if Path(p).is_file()]
        where = f"{text}: no pictures match this pattern"
    else:
        raise PolyditError(f"{text}: no such file or folder; check the path")
    pictures = sorted(p for p in found if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))
    if not pictures:
        others = f" ({len(found)} files of other kinds)" if found else ""
        raise PolyditError(f"{where}{others}; give png, jpg, webp, avif or tiff files")
    return pictures


def read_images(
    paths: Iterable[str | Path],
    *,
    strict: bool = False,
    max_pixels: int = MAX_PIXELS,
    report: Callable[[str], None] = warnings.warn,
) -> Iterator[tuple[Path, np.ndarray, ImageInfo]]:
    """Read pictures one after the other; a bad file is named, skipped, and counted at the end.

    Args:
        paths: the files.
        strict: raise at the first bad file instead.
        max_pixels: see `read_image`.
        report: receives one line for each bad file, and one with the count at the end.

    Yields:
        path, (H, W, 3) array, info.
    """
    total = bad = 0
    for path in paths:
        total += 1
        try:
            pixels, info = read_image(path, max_pixels=max_pixels)
        except PolyditError as error:
            if strict:
                raise
            bad += 1
            report(f"skipped: {error}")
            continue
        yield Path(path), pixels, info
    if bad:
        report(f"{bad} of {total} pictures could not be read and were skipped")


def to_float(pixels: np.ndarray) -> np.ndarray:
    """uint8 or uint16 of any shape to float32 in [0, 1]."""
    return pixels.astype(np.float32) / np.float32(np.iinfo(pixels.dtype).max)


def to_uint8(pixels: np.ndarray) -> np.ndarray:
    """uint16 (rounded), or float in [0, 1] (clipped, rounded) to uint8; uint8 is returned as it is."""
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == np.uint16:
        return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return (np.clip(pixels, 0, 1) * 255 + 0.5).astype(np.uint8)


def _bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error
    if not data:
        raise PolyditError(f"{path}: is empty (0 bytes); replace the file")
    return data


def _unreadable(path: Path, error: OSError) -> PolyditError:
    if isinstance(error, FileNotFoundError):
        return PolyditError(f"{path}: no such file; check the path")
    if isinstance(error, IsADirectoryError):
        return PolyditError(f"{path}: is a folder; give a picture file")
    return PolyditError(f"{path}: cannot be read ({error.strerror or error}); check its permissions")


def _open(path: Path, source: bytes | Path, max_pixels: int) -> tuple[Image.Image | None, tuple[int, int]]:
    """Open by the header; no image, only the size, for a TIFF that Pillow does not know."""
    image = None
    # Pillow's own limit is a module-wide number, lower than ours; ours is checked right below.
    with _LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
            size = image.size
        except (OSError, ValueError, SyntaxError, EOFError, struct.error) as error:
            deep = tiff_size(path)
            if deep is None:
                raise PolyditError(
                    f"{path}: not a picture that can be read, or cut short; replace or remove it"
                ) from error
            size = deep
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    if size[0] * size[1] > max_pixels:
        raise PolyditError(
            f"{path}: {size[0]}x{size[1]} is {size[0] * size[1] / 1e6:.0f} megapixels, "
            f"over the limit of {max_pixels / 1e6:.0f}; reduce it first"
        )
    return image, size


def _eight_bit(image: Image.Image, info: ImageInfo) -> tuple[np.ndarray, np.ndarray | None]:
    has_alpha = "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "La", "RGBa")
    profile = image.info.get("icc_profile")
    if profile and image.mode in ("RGB", "RGBA", "CMYK"):
        image, info.icc = _to_srgb(image, profile)
    if not has_alpha:
        return np.asarray(image.convert("RGB")), None
    rgba = np.asarray(image.convert("RGBA"))
    return rgba[..., :3], rgba[..., 3]


def _to_srgb(image: Image.Image, profile: bytes) -> tuple[Image.Image, bool]:
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "srgb" in ImageCms.getProfileDescription(source).lower():
            return image, False
        target = ImageCms.createProfile("sRGB")
        mode = "RGBA" if image.mode == "RGBA" else "RGB"
        converted = ImageCms.profileToProfile(image, source, target, outputMode=mode)
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image, False  # a damaged profile: the plain numbers are the best guess
    return (converted, True) if converted is not None else (image, False)


def _over(pixels: np.ndarray, alpha: np.ndarray, background: tuple[int, int, int]) -> np.ndarray:
    top = np.iinfo(pixels.dtype).max
    behind = np.asarray(background, dtype=np.float32) * (top / 255)
    share = alpha[..., None].astype(np.float32) / top
    return (pixels * share + behind * (1 - share) + 0.5).astype(pixels.dtype)
