"""Decoded pictures kept in memory up to a limit: decoding is far slower than cropping."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["HeldPictures"]


class HeldPictures:
    """Reads files with a function and keeps the arrays used last.

    Args:
        read: file to array.
        megabytes: kept at most; the last one is kept whatever its size.
    """

    def __init__(self, read: Callable[[Path], NDArray[np.uint8]], megabytes: int) -> None:
        self.read, self.bytes = read, megabytes * 2**20
        self._held: OrderedDict[Path, NDArray[np.uint8]] = OrderedDict()
        self._total = 0

    def __call__(self, path: Path) -> NDArray[np.uint8]:
        """The array of `path`; not to be written to."""
        if path in self._held:
            self._held.move_to_end(path)
            return self._held[path]
        picture = self._held[path] = self.read(path)
        self._total += picture.nbytes
        while self._total > self.bytes and len(self._held) > 1:
            self._total -= self._held.popitem(last=False)[1].nbytes
        return picture

    def __getstate__(self) -> dict[str, Any]:
        # Decoded pictures do not travel to spawned workers.
        return {**self.__dict__, "_held": OrderedDict(), "_total": 0}
