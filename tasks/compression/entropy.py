"""Residuals to bytes and back by range coding (constriction), with integer probability tables.

Within a pass of a context model, residuals are sorted by table, so that each table codes one run. What lies beyond a
table is an escape, followed at the end of the run by its magnitude in Elias' gamma code.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...core.errors import PolyditError
from .tables import COUNT_BITS, RADIUS, ProbabilityTables

__all__ = ["Decoding", "Encoding", "RangeModels"]

ESCAPE = 2 * RADIUS + 1
LONGEST = 24
"""Bits of the largest magnitude beyond a table."""


class RangeModels:
    """The tables as constriction's models.

    Args:
        tables: frozen.

    Raises:
        PolyditError: constriction is not installed.
    """

    def __init__(self, tables: ProbabilityTables) -> None:
        try:
            from constriction import stream
        except ImportError as error:
            raise PolyditError(
                "constriction, which writes and reads the bits, is missing; pip install 'polydit[compression]'"
            ) from error
        self.stream = stream
        weights = tables.counts.cpu().numpy().astype(np.float64) / 2**COUNT_BITS
        self.tables = [stream.model.Categorical(row, perfect=False) for row in weights]
        self.length = stream.model.Uniform(LONGEST)
        self.bit = stream.model.Uniform(2)


class Encoding:
    """A `context.Quantizer` that rounds and writes.

    Args:
        models: of the weights.

    Attributes:
        choose: gives whole residuals for (channels, mean, index): rounding, with whatever thrift. Set it before each
            context model.
        check: CRC-32 of all residuals so far.
    """

    choose: Callable[[slice, Tensor, Tensor], Tensor]

    def __init__(self, models: RangeModels) -> None:
        self.models = models
        self.coder = models.stream.queue.RangeEncoder()
        self.check = 0

    def __call__(self, channels: slice, mask: Tensor | None, mean: Tensor, index: Tensor) -> Tensor:
        """Round a group and write it."""
        residual = self.choose(channels, mean, index)
        if mask is not None:
            residual = residual * mask
        whole = residual.to(torch.int64).flatten().cpu().numpy()
        for table, places in _runs(mask, index, len(self.models.tables)):
            values = whole[places]
            symbols = np.where(np.abs(values) > RADIUS, ESCAPE, values + RADIUS).astype(np.int32)
            self.coder.encode(symbols, self.models.tables[table])
            for value in values[symbols == ESCAPE]:
                self._escape(int(value))
        self.check = zlib.crc32(whole.astype("<i4").tobytes(), self.check)
        return residual

    def _escape(self, value: int) -> None:
        beyond = abs(value) - RADIUS
        length = beyond.bit_length() - 1
        if length >= LONGEST:
            raise PolyditError("a coefficient is too large to be coded; the weights do not fit this quality")
        self.coder.encode(length, self.models.length)
        self.coder.encode(int(value < 0), self.models.bit)
        for place in range(length):
            self.coder.encode(beyond >> place & 1, self.models.bit)

    def bytes(self) -> bytes:
        """What was written; zero bytes at the end are left out."""
        return self.coder.get_compressed().astype("<u4").tobytes().rstrip(b"\0")


class Decoding:
    """A `context.Quantizer` that reads what `Encoding` wrote.

    Args:
        models: of the weights.
        data: the bytes.
        name: of the file, for complaints.

    Attributes:
        check: CRC-32 of all residuals so far.
    """

    def __init__(self, models: RangeModels, data: bytes, name: str | Path = "file") -> None:
        padded = data + bytes(-len(data) % 4)
        self.models, self.name = models, name
        self.coder = models.stream.queue.RangeDecoder(np.frombuffer(padded, "<u4").astype(np.uint32))
        self.check = 0

    def __call__(self, channels: slice, mask: Tensor | None, mean: Tensor, index: Tensor) -> Tensor:
        """Read a group.

        Raises:
            PolyditError: the data is none of these tables.
        """
        whole = np.zeros(index.numel(), np.int64)
        try:
            for table, places in _runs(mask, index, len(self.models.tables)):
                symbols = self.coder.decode(self.models.tables[table], len(places)).astype(np.int64)
                values = symbols - RADIUS
                for place in np.flatnonzero(symbols == ESCAPE):
                    values[place] = self._escape()
                whole[places] = values
        except AssertionError as error:  # constriction's word for bits that no encoder writes
            raise PolyditError(
                f"{self.name}: its data cannot be decoded with these weights; it is damaged"
            ) from error
        self.check = zlib.crc32(whole.astype("<i4").tobytes(), self.check)
        return torch.from_numpy(whole).view(index.shape).to(mean)

    def _escape(self) -> int:
        length = int(self.coder.decode(self.models.length))
        negative = int(self.coder.decode(self.models.bit))
        beyond = 1 << length
        for place in range(length):
            beyond |= int(self.coder.decode(self.models.bit)) << place
        return -(beyond + RADIUS) if negative else beyond + RADIUS


def _runs(mask: Tensor | None, index: Tensor, tables: int) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Each table that is used, and the places (in memory's order) of what it codes."""
    index = torch.floor(index + 0.5).to(torch.uint8)
    if mask is not None:
        index = torch.where(mask.bool(), index, tables)
    flat = index.flatten().cpu().numpy()
    order = np.argsort(flat, kind="stable")
    counts = np.bincount(flat, minlength=tables + 1)[:tables]
    ends = np.cumsum(counts)
    for table in np.flatnonzero(counts):
        yield int(table), order[ends[table] - counts[table] : ends[table]]
