"""Pictures of any kind to ``.pdc`` files and back: what belongs to a picture beside its colours."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from ...core.data.images import read_image, to_uint8
from ...core.errors import PolyditError
from .codec import LAST_QUALITY
from .coding import THRIFT, Stream, decode_picture, encode_picture
from .container import ALPHA, EXIF, ICC, Container, write_container
from .weights import CodecWeights

if TYPE_CHECKING:
    from .enhance import Enhancer

__all__ = [
    "Still",
    "decode_still",
    "encode_still",
    "pack",
    "read_still",
    "to_pillow",
    "to_tensor",
    "unpack",
]

GREY = 1
"""Flag: the picture has no colours."""
ORIENTATION = 0x0112


@dataclass
class Still:
    """A picture and what belongs to it.

    Attributes:
        pixels: (H, W, 3) uint8.
        alpha: (H, W) uint8, or None.
        grey: whether it was without colours.
        icc: profile that the pixels are in; None is sRGB.
        exif: as in the file.
        notes: what was changed in reading, for the user.
    """

    pixels: NDArray[np.uint8]
    alpha: NDArray[np.uint8] | None = None
    grey: bool = False
    icc: bytes | None = None
    exif: bytes | None = None
    notes: list[str] = field(default_factory=list)


def read_still(path: Path, metadata: bool = False) -> Still:
    """Read any picture for coding; 16 bits become 8, other colours sRGB.

    Args:
        path: the file.
        metadata: keep EXIF, and the colour profile together with the colours as they are in the file.

    Raises:
        PolyditError: it cannot be read, or is an animation.
    """
    pixels, info = read_image(path, background=None)
    if info.frames > 1:
        raise PolyditError(
            f"{path}: holds {info.frames} pictures, and a .pdc of a picture one; extract the one you want, "
            "or convert the animation to a video"
        )
    still = Still(to_uint8(pixels), grey=info.mode in ("1", "L", "LA", "La", "I", "I;16", "I;16B", "F"))
    if info.bits == 16:
        still.notes.append("16 bits a channel became 8")
    if info.mode == "CMYK":
        still.notes.append("CMYK became RGB")
    if info.alpha is not None and (info.alpha != np.iinfo(info.alpha.dtype).max).any():
        still.alpha = to_uint8(info.alpha)
        _fill_hidden(still)
    if metadata:
        _read_metadata(path, still)
    return still


def _fill_hidden(still: Still) -> None:
    """Give pixels that nobody sees the mean colour of the others: it costs no bits."""
    assert still.alpha is not None
    hidden = still.alpha == 0
    seen = still.pixels[~hidden]
    still.pixels = still.pixels.copy()
    still.pixels[hidden] = seen.mean(0).round().astype(np.uint8) if len(seen) else 0


def _read_metadata(path: Path, still: Still) -> None:
    try:
        with Image.open(path) as image:
            exif = image.getexif()
            profile = image.info.get("icc_profile")
            if profile and image.mode in ("RGB", "RGBA"):
                upright = ImageOps.exif_transpose(image)
                pixels = np.asarray(upright.convert("RGB"))
                if still.alpha is not None:
                    pixels = np.where((still.alpha == 0)[..., None], still.pixels, pixels)
                still.pixels, still.icc = pixels, profile
            exif.pop(ORIENTATION, None)  # the pixels are upright
            still.exif = exif.tobytes() if len(exif) else None
    except (OSError, ValueError, SyntaxError):
        still.notes.append("its metadata cannot be read and is left out")


def encode_still(weights: CodecWeights, still: Still, index: int, thrift: float = THRIFT) -> bytes:
    """The bytes of a ``.pdc`` file.

    Args:
        weights: what codes.
        still: the picture.
        index: quality 0..240.
        thrift: see `Rounding`.
    """
    stream = encode_picture(
        weights.codec, weights.models, to_tensor(still, weights.codec.colour.device), index, thrift
    )
    return pack(still, stream, 0, index, weights.identity)


def to_tensor(still: Still, device: torch.device | str = "cpu") -> Tensor:
    """The pixels as (3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.array(still.pixels)).to(device).permute(2, 0, 1).float() / 127.5 - 1


def pack(still: Still, stream: Stream, codec: int, quality: int, identity: bytes) -> bytes:
    """The bytes of a ``.pdc`` file: a coded picture with what belongs to it.

    Args:
        still: the picture.
        stream: its coded pixels.
        codec: number of what coded them, see `container.CODECS`.
        quality: in the codec's unit.
        identity: of its weights.
    """
    height, width = still.pixels.shape[:2]
    sections = {kind: content for kind, content in ((ICC, still.icc), (EXIF, still.exif)) if content}
    if still.alpha is not None:
        sections[ALPHA] = _png(still.alpha)
    content = Container(
        codec=codec,
        quality=quality,
        weights=identity[:4],
        width=width,
        height=height,
        data=stream.data,
        symbols=stream.symbols,
        flags=GREY if still.grey else 0,
        sections=sections,
    )
    return write_container(content)


def decode_still(
    weights: CodecWeights, content: Container, name: str | Path, enhancer: Enhancer | None = None
) -> Still:
    """The picture of a file; an enhancer takes its step behind the codec.

    Raises:
        PolyditError: it was coded with other weights, or is damaged.
    """
    weights.check(content.weights, name)
    if content.quality > LAST_QUALITY:
        raise PolyditError(
            f"{name}: its header says quality {content.quality} of {LAST_QUALITY}; it is damaged"
        )
    size = (content.height, content.width)
    stream = Stream(content.data, content.symbols)
    return unpack(
        content,
        lambda: decode_picture(weights.codec, weights.models, stream, content.quality, size, name, enhancer),
        name,
    )


def unpack(content: Container, decode: Callable[[], Tensor], name: str | Path) -> Still:
    """The picture of a file with what belongs to it.

    Args:
        content: of the file.
        decode: gives the pixels (3, H, W) in [-1, 1].
        name: of the file, for complaints.

    Raises:
        PolyditError: the alpha channel is damaged.
    """
    size = (content.height, content.width)
    alpha = _read_alpha(content.sections[ALPHA], size, name) if ALPHA in content.sections else None
    pixels = decode().add_(1).mul_(127.5).round_().byte().permute(1, 2, 0).cpu().contiguous().numpy()
    return Still(
        pixels, alpha, bool(content.flags & GREY), content.sections.get(ICC), content.sections.get(EXIF)
    )


def to_pillow(still: Still) -> Image.Image:
    """As a Pillow picture: L, LA, RGB or RGBA, with profile and EXIF in its ``info``."""
    pixels = still.pixels
    if still.grey:
        pixels = pixels.mean(2, keepdims=True).round().astype(np.uint8)
    if still.alpha is not None:
        pixels = np.concatenate([pixels, still.alpha[..., None]], 2)
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    extras: dict[str, Any] = {"icc_profile": still.icc, "exif": still.exif}
    image.info |= {name: value for name, value in extras.items() if value}
    return image


def _png(alpha: NDArray[np.uint8]) -> bytes:
    content = io.BytesIO()
    Image.fromarray(alpha).save(content, "PNG", optimize=True)
    return content.getvalue()


def _read_alpha(content: bytes, size: tuple[int, int], name: str | Path) -> NDArray[np.uint8]:
    try:
        image = Image.open(io.BytesIO(content), formats=["PNG"])
        if (image.height, image.width) == size and image.mode == "L":
            return np.array(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        pass
    raise PolyditError(f"{name}: its alpha channel cannot be read; it is damaged")
