"""PNG files written row by row, so that a picture larger than memory can be saved.

The rows are filtered with PNG's average filter and coded with zlib's run-length strategy (Huffman codes, no
search for repetitions). On photographs this is several times as quick as Pillow's default and the file is
no larger, because after filtering there is little left to repeat.
"""

from __future__ import annotations

import struct
import zlib
from types import TracebackType
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

__all__ = ["PngStream"]

_COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # channels -> grey, grey + alpha, RGB, RGBA
_AVERAGE_FILTER = 3
_BLOCK_BYTES = 4 << 20  # filtered at once: bounds the temporary arrays, whatever a strip's size
_LARGEST_SIDE = 2**31 - 1  # of the format


class PngStream:
    """An 8-bit PNG that is written from top to bottom to an open file.

    Use as a context manager; leaving it finishes the file and checks that all rows came.

    Example:
        >>> with open("large.png", "wb") as file, PngStream(file, height=2, width=3, channels=3) as png:
        ...     png.write(np.zeros((1, 3, 3), np.uint8))
        ...     png.write(np.ones((1, 3, 3), np.uint8))
    """

    def __init__(self, file: BinaryIO, height: int, width: int, channels: int = 3) -> None:
        """Write the header.

        Args:
            file: binary file, open for writing; it is not closed here.
            height: rows of the picture.
            width: columns of the picture.
            channels: 1 grey, 2 grey and alpha, 3 RGB, 4 RGBA.

        Raises:
            ValueError: the size or the number of channels cannot be written as PNG.
        """
        if channels not in _COLOUR_TYPES:
            raise ValueError(f"PNG has 1 to 4 channels, not {channels}")
        if not (1 <= height <= _LARGEST_SIDE and 1 <= width <= _LARGEST_SIDE):
            raise ValueError(f"PNG sides are 1 to {_LARGEST_SIDE}, not {width}x{height}")
        self.height, self.width, self.channels = height, width, channels
        self.rows_written = 0
        self._file = file
        self._above = np.zeros(width * channels, np.uint8)
        self._zlib = zlib.compressobj(6, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_RLE)
        file.write(b"\x89PNG\r\n\x1a\n")
        self._chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, _COLOUR_TYPES[channels], 0, 0, 0))

    def write(self, rows: NDArray[np.uint8]) -> None:
        """Append rows: 8-bit (n, width, channels), or (n, width) when there is one channel."""
        if rows.ndim == 2:
            rows = rows[..., None]
        if rows.dtype != np.uint8 or rows.shape[1:] != (self.width, self.channels):
            expected = f"8-bit (n, {self.width}, {self.channels})"
            raise ValueError(f"PNG rows must be {expected}, not {rows.dtype} {rows.shape}")
        if self.rows_written + len(rows) > self.height:
            raise ValueError(f"PNG of {self.height} rows was given {self.rows_written + len(rows)}")
        step = max(1, _BLOCK_BYTES // (self.width * self.channels))
        for first in range(0, len(rows), step):
            block = np.ascontiguousarray(rows[first : first + step]).reshape(-1, self.width * self.channels)
            self._data(self._zlib.compress(self._filter(block).data))
            self._above = block[-1].copy()
        self.rows_written += len(rows)

    def close(self) -> None:
        """Finish the file; raises ValueError if rows are missing."""
        if self.rows_written != self.height:
            raise ValueError(f"PNG of {self.height} rows was closed after {self.rows_written}")
        self._data(self._zlib.flush())
        self._chunk(b"IEND", b"")

    def __enter__(self) -> PngStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()

    def _filter(self, block: NDArray[np.uint8]) -> NDArray[np.uint8]:
        above = np.concatenate([self._above[None], block[:-1]])
        left = np.zeros_like(block)
        left[:, self.channels :] = block[:, : -self.channels]
        # floor((left + above) / 2) without leaving 8 bits
        average = (left & above) + ((left ^ above) >> 1)
        out = np.empty((block.shape[0], block.shape[1] + 1), np.uint8)
        out[:, 0] = _AVERAGE_FILTER
        np.subtract(block, average, out=out[:, 1:])
        return out

    def _data(self, compressed: bytes) -> None:
        if compressed:
            self._chunk(b"IDAT", compressed)

    def _chunk(self, kind: bytes, content: bytes) -> None:
        self._file.write(struct.pack(">I", len(content)) + kind)
        self._file.write(content)
        self._file.write(struct.pack(">I", zlib.crc32(content, zlib.crc32(kind))))
