"""The classics to compare with, through Pillow: JPEG, WebP, AVIF at several qualities."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...core.errors import PolyditError

__all__ = ["PEERS", "CodedPicture", "Peer", "peer_within"]


@dataclass
class CodedPicture:
    """What a codec made of a picture.

    Attributes:
        size: bytes of the file.
        pixels: decoded, (H, W, 3) uint8.
        encode_seconds: of wall clock.
        decode_seconds: of wall clock.
        file: the bytes.
    """

    size: int
    pixels: NDArray[np.uint8]
    encode_seconds: float
    decode_seconds: float
    file: bytes = b""


@dataclass(frozen=True)
class Peer:
    """A codec of Pillow.

    Attributes:
        name: Pillow's name of the format.
        title: with its settings, for tables.
        qualities: where its curve is measured.
        settings: how it is asked for small files.
    """

    name: str
    title: str
    qualities: tuple[int, ...]
    settings: tuple[tuple[str, Any], ...]

    def __call__(self, pixels: NDArray[np.uint8], quality: int) -> CodedPicture:
        """Code and decode (H, W, 3) uint8."""
        image = Image.fromarray(pixels)
        content = io.BytesIO()
        begin = time.perf_counter()
        try:
            image.save(content, self.name, quality=quality, **dict(self.settings))
        except (KeyError, OSError) as error:
            raise PolyditError(
                f"--peers {self.name}: this Pillow cannot write it ({error}); leave it out"
            ) from error
        middle = time.perf_counter()
        found = np.array(Image.open(io.BytesIO(content.getvalue())).convert("RGB"))
        end = time.perf_counter()
        return CodedPicture(
            content.getbuffer().nbytes, found, middle - begin, end - middle, content.getvalue()
        )


PEERS: dict[str, Peer] = {
    "JPEG": Peer(
        "JPEG",
        "JPEG 4:2:0, progressive, optimised",
        (4, 8, 12, 18, 26, 36, 48, 60, 72, 84),
        (("subsampling", "4:2:0"), ("optimize", True), ("progressive", True)),
    ),
    "WEBP": Peer("WEBP", "WebP, method 6", (1, 5, 12, 22, 35, 50, 65, 78, 88), (("method", 6),)),
    "AVIF": Peer("AVIF", "AVIF 4:2:0, speed 6", (8, 16, 25, 35, 45, 55, 65, 75), (("speed", 6),)),
}
"""By the word on the command line. JPEG is what the others are compared with."""


def peer_within(peer: Peer, pixels: NDArray[np.uint8], limit: int) -> tuple[int, CodedPicture]:
    """The best quality whose file has at most so many bytes, or the lowest one; and what it gives."""
    return search(lambda quality: peer(pixels, quality), limit, 0 if peer.name == "WEBP" else 1, 95)


def search(
    code: Callable[[int], CodedPicture], limit: int, first: int, last: int
) -> tuple[int, CodedPicture]:
    """Bisection over the quality."""
    best = first, code(first)
    low, high = first, last + 1
    while high - low > 1:
        middle = (low + high) // 2
        coded = code(middle)
        if coded.size <= limit:
            low, best = middle, (middle, coded)
        else:
            high = middle
    return best
