"""Raw videos with their size in their name, as UVG has them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ....core.data.video import Frame
from ....core.errors import PolyditError

__all__ = ["RawReader"]


class RawReader:
    """Frames of a raw 4:2:0 file that has its size and rate in its name, as UVG's; a `FrameSource`.

    ``Beauty_1920x1080_120fps_420_8bit_YUV.yuv``; 8 or 10 bits, BT.709, levels 16..235.

    Raises:
        PolyditError: the name has no size, or the file is no whole number of frames.
    """

    has_audio = False
    full_range = False

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        size = re.search(r"(\d+)x(\d+)", self.path.name)
        rate = re.search(r"(\d+)fps", self.path.name)
        if size is None:
            raise PolyditError(f"{path}: a raw video needs its size in its name, such as 1920x1080")
        self.width, self.height = int(size[1]), int(size[2])
        self.rate = Fraction(int(rate[1]) if rate else 25)
        self.bits = 10 if "10bit" in self.path.name else 8
        self.bytes = self.width * self.height * 3 // 2 * (2 if self.bits > 8 else 1)
        self.frames, rest = divmod(self.path.stat().st_size, self.bytes)
        if rest or not self.frames or self.width % 2 or self.height % 2:
            raise PolyditError(
                f"{path}: is no whole number of {self.width}x{self.height} frames of {self.bits} bits in 4:2:0; "
                "check the size in its name"
            )

    def __enter__(self) -> RawReader:
        return self

    def __exit__(self, *failure: object) -> None:
        pass

    def __iter__(self) -> Iterator[Frame]:
        """The frames, in order."""
        with self.path.open("rb") as file:
            for number in range(self.frames):
                yield Frame(self._pixels(file.read(self.bytes)), number / self.rate)

    def notes(self) -> list[str]:
        """What the user should know."""
        return [] if self.bits == 8 else [f"{self.bits}-bit levels were rounded to 8 bits"]

    def _pixels(self, data: bytes) -> NDArray[np.uint8]:
        planes = np.frombuffer(data, "<u2" if self.bits > 8 else np.uint8).astype(np.float32)
        planes /= 2 ** (self.bits - 8)
        count = self.width * self.height
        luma = (planes[:count].reshape(self.height, self.width) - 16) / 219
        blue, red = (
            (plane.reshape(self.height // 2, self.width // 2).repeat(2, 0).repeat(2, 1) - 128) / 224
            for plane in (planes[count : count * 5 // 4], planes[count * 5 // 4 :])
        )
        colours = [luma + 1.5748 * red, luma - 0.1873 * blue - 0.4681 * red, luma + 1.8556 * blue]
        return np.rint(np.stack(colours, -1) * 255).clip(0, 255).astype(np.uint8)
