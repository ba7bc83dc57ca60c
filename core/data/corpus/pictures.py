"""Judging, fingerprinting and storing the pictures of the corpus. Needs Pillow and NumPy only."""

from __future__ import annotations

import io
import math
import re
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

__all__ = [
    "Picture",
    "encode_photo",
    "group_of",
    "look",
    "near_duplicate",
    "opaque",
    "read_picture",
    "usable_cutout",
]

# A photograph needs this much detail (mean absolute Laplacian, 8-bit levels, at 1024 pixels on the long side) and
# at most this share of flat 8x8 blocks (standard deviation below one level); smooth gradients have neither.
MIN_DETAIL = 1.3
MAX_FLAT = 0.82
# Pictures from packages that the catalogue does not describe count as photographs below this share of flat blocks.
PHOTO_FLAT = 0.35
# Strongly compressed photographs are reduced until they hold this many bits per pixel, at most by half: their finest
# scale is compression artefacts, which nothing should learn to draw.
BITS_PER_PIXEL = 1.5
_MAX_PIXELS = 120_000_000
_SIZE_WORDS = re.compile(
    r"(\d{3,5}\s*x\s*\d{3,5})|(?<![a-z])(dark|light|portrait|landscape|d|l)(?![a-z])", re.IGNORECASE
)


@dataclass(frozen=True)
class Picture:
    """An opened picture and what was measured on it.

    Attributes:
        image: RGB or RGBA, upright.
        detail: mean absolute Laplacian of the luma at 1024 pixels on the long side.
        flat: share of 8x8 blocks with a standard deviation below one level.
        fingerprint: 256-bit difference hash, as 64 hex digits.
        lossy: whether the file it came from was JPEG or lossy WebP.
        plain: whether the file may be kept byte for byte (a JPEG in RGB without rotation).
    """

    image: Image.Image
    detail: float
    flat: float
    fingerprint: str
    lossy: bool
    plain: bool


def read_picture(data: bytes) -> Image.Image | None:
    """Open a picture as RGB or RGBA, upright; None if it cannot be read or is larger than 120 megapixels.

    The attributes ``lossy`` and ``plain`` are left in ``image.info``.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image: Image.Image = Image.open(io.BytesIO(data))
            if image.width * image.height > _MAX_PIXELS:
                return None
            kind = image.format
            lossy = kind == "JPEG" or (kind == "WEBP" and b"VP8L" not in data[:64])
            plain = kind == "JPEG" and image.mode == "RGB" and image.getexif().get(0x0112, 1) == 1
            alpha = "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "La", "RGBa")
            image = ImageOps.exif_transpose(image).convert("RGBA" if alpha else "RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, EOFError):
        return None
    image.info = {"lossy": lossy, "plain": plain}
    return image


def opaque(image: Image.Image) -> Image.Image | None:
    """The picture as RGB, or None if more than 0.1 % of it shows what is behind."""
    if image.mode == "RGB":
        return image
    alpha = np.asarray(image.getchannel("A"))
    return None if (alpha < 250).mean() > 1e-3 else image.convert("RGB")


def usable_cutout(image: Image.Image, min_side: int) -> bool:
    """Whether the alpha channel is a mask: some of the picture is there and some is not, and it is large enough."""
    if image.mode != "RGBA" or min(image.size) < min_side:
        return False
    alpha = np.asarray(image.getchannel("A"))
    return bool((alpha < 16).mean() > 0.02 and (alpha > 240).mean() > 0.05)


def look(image: Image.Image) -> Picture:
    """Measure a picture (RGBA is measured over grey)."""
    info = image.info
    flat_image = image
    if image.mode == "RGBA":
        grey = Image.new("RGBA", image.size, (128, 128, 128, 255))
        flat_image = Image.alpha_composite(grey, image)
    luma = flat_image.convert("L")
    if max(luma.size) > 1024:
        scale = 1024 / max(luma.size)
        size = (max(1, round(luma.width * scale)), max(1, round(luma.height * scale)))
        luma = luma.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)
    pixels = np.asarray(luma, dtype=np.float32)
    detail, flat = 0.0, 1.0
    if min(pixels.shape) >= 8:
        c = pixels[1:-1, 1:-1]
        laplacian = 4 * c - pixels[:-2, 1:-1] - pixels[2:, 1:-1] - pixels[1:-1, :-2] - pixels[1:-1, 2:]
        detail = float(np.abs(laplacian).mean())
        h, w = pixels.shape[0] // 8 * 8, pixels.shape[1] // 8 * 8
        flat = float((pixels[:h, :w].reshape(h // 8, 8, w // 8, 8).std(axis=(1, 3)) < 1).mean())
    thumb = np.asarray(luma.resize((17, 16), Image.Resampling.BOX), dtype=np.int16)
    fingerprint = np.packbits(thumb[:, 1:] > thumb[:, :-1]).tobytes().hex()
    return Picture(image, detail, flat, fingerprint, bool(info.get("lossy")), bool(info.get("plain")))


def near_duplicate(fingerprint: str, others: list[str], bits: int) -> int | None:
    """Index of the first of `others` that differs in at most `bits` of 256 bits, or None."""
    mine = int(fingerprint, 16)
    return next((i for i, other in enumerate(others) if (mine ^ int(other, 16)).bit_count() <= bits), None)


def encode_photo(picture: Picture, data: bytes, max_side: int) -> tuple[bytes, str, tuple[int, int]]:
    """Store a photograph for quick decoding.

    JPEG in full chroma at quality 98, reduced by a Lanczos filter if it is longer than `max_side` or strongly
    compressed; a JPEG that needs neither is kept byte for byte.

    Returns:
        the file's bytes, its suffix, and (width, height).
    """
    image = picture.image.convert("RGB")
    scale = min(1.0, max_side / max(image.size))
    if picture.lossy:
        bits = 8 * len(data) / (image.width * image.height)
        scale = min(scale, max(0.5, math.sqrt(min(1.0, bits / BITS_PER_PIXEL))))
    if scale == 1.0 and picture.plain:
        return data, ".jpg", image.size
    if scale < 1.0:
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=98, subsampling=0, optimize=True)
    return buffer.getvalue(), ".jpg", image.size


def group_of(path: str) -> str:
    """What variants of one picture have in common: the path without sizes and the words dark, light, portrait.

    ``Elephants_3840x2160.jpg`` and ``Elephants.jpg`` are one group; so are the sizes of a wallpaper that lie in one
    folder and are named by their size only.
    """
    folder, _, name = path.rpartition("/")
    stem = _SIZE_WORDS.sub("", name.rpartition(".")[0].replace("_", " ").replace("-", " ")).strip()
    folder = re.sub(r"images_dark$", "images", folder)
    return f"{folder}/{' '.join(stem.split())}".lower()
