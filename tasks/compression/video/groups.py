"""A group of frames to bytes and back. Groups know nothing of each other, so each can be decoded alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ....core.errors import PolyditError
from ..coding import THRIFT
from ..entropy import Decoding, Encoding, RangeModels
from ..rounding import Rounding
from ..tables import RADIUS, TABLES, ProbabilityTables
from .latent_video import CodedFrame, LatentVideoCodec, State, padded
from .motion import BLOCK, LEVEL, search

__all__ = ["Coder", "Group"]

Pixels = NDArray[np.uint8]
CLASSES = 3
"""Kinds of places among the vectors, by how restless the row above is; each has its own table."""


class Group:
    """A coded group.

    Args:
        data: its bits.
        symbols: CRC-32 of its symbols.
    """

    def __init__(self, data: bytes, symbols: int) -> None:
        self.data, self.symbols = data, symbols


class Coder:
    """Codes and decodes groups.

    Args:
        codec: frozen.
        thrift: see `Rounding`.
    """

    def __init__(self, codec: LatentVideoCodec, thrift: float = THRIFT) -> None:
        self.codec, self.thrift = codec, thrift
        self.first_models, self.next_models = RangeModels(codec.intra.tables), RangeModels(codec.inter.tables)

    @torch.no_grad()
    def encode(self, frames: Iterable[Pixels], index: int) -> Group:
        """Code frames (H, W, 3) uint8 at a quality index 0..240."""
        encoding = Encoding(self.first_models)
        state: State | None = None
        for pixels in frames:
            frame = padded(torch.from_numpy(pixels.transpose(2, 0, 1).copy()).float())
            state = self._encode_frame(encoding, frame, state, index).state
        return Group(encoding.bytes(), encoding.check)

    def _encode_frame(self, encoding: Encoding, frame: Tensor, state: State | None, index: int) -> CodedFrame:
        codec = self.codec
        alone = codec.roundings(frame - 128, index, codec.intra.tables, self.thrift)
        if state is not None:
            lower = codec.index_of_predicted(index)
            price = 0.4 * float(codec.synthesis.factor(lower)[1]) / 4096  # a step is 16 of these, in levels
            vectors = search(state.reference, frame, state.vectors, price)
            known = codec.known(state, vectors)
            left = frame - known.prediction[0].float() / LEVEL
            roundings = codec.roundings(left, lower, codec.inter.tables, self.thrift)
            # One bit says which of the two it is.
            predicted = _size(roundings) < _size(alone)
            encoding.coder.encode(int(predicted), self.next_models.bit)
            if predicted:
                self._write_vectors(encoding, vectors)
                encoding.models = self.next_models
                return codec.next(known, vectors, lower, tuple(_Choosing(encoding, r) for r in roundings))
        encoding.models = self.first_models
        size = (frame.shape[-2], frame.shape[-1])
        return codec.first(index, size, tuple(_Choosing(encoding, r) for r in alone))

    @torch.no_grad()
    def decode(
        self, group: Group, count: int, size: tuple[int, int], index: int, name: str | Path = "file"
    ) -> Iterator[Pixels]:
        """The frames (H, W, 3) uint8 of a group, one after the other.

        Args:
            group: see `Group`; of its symbols' check the low half is compared.
            count: of frames.
            size: (H, W).
            index: quality.
            name: of the file, for complaints.

        Raises:
            PolyditError: the data cannot be read, or gives other symbols than were coded.
        """
        codec, height, width = self.codec, *size
        decoding = Decoding(self.first_models, group.data, name)
        whole = (-(-height // 64) * 64, -(-width // 64) * 64)
        state: State | None = None
        for number in range(count):
            predicted = state is not None and bool(_read_bit(decoding, name))
            if predicted and state is not None:
                grid = (-(-whole[0] // BLOCK), -(-whole[1] // BLOCK))
                vectors = self._read_vectors(decoding, grid)
                decoding.models = self.next_models
                lower = codec.index_of_predicted(index)
                known = codec.known(state, vectors)
                coded = codec.next(known, vectors, lower, (decoding, decoding))
            else:
                decoding.models = self.first_models
                coded = codec.first(index, whole, (decoding, decoding))
            state = coded.state
            if number + 1 == count and decoding.check & 0xFFFF != group.symbols & 0xFFFF:
                raise PolyditError(
                    f"{name}: decodes to other numbers than were coded; it is damaged, or this machine computes wrongly"
                )
            levels = (coded.pixels[:, :height, :width] + LEVEL // 2) // LEVEL
            yield levels.to(torch.uint8).permute(1, 2, 0).numpy()

    # -- vectors -------------------------------------------------------------------------------------------

    def _write_vectors(self, encoding: Encoding, vectors: Tensor) -> None:
        """Differences to the left neighbour, row by row, with a table for each kind of place."""
        differences = _to_left(vectors)
        kinds = _kinds(differences)
        tables = _best_tables(differences, kinds, self.codec.inter.tables)
        encoding.models = self.next_models
        for table in tables:
            encoding.coder.encode(table, self._choice)
        for row, kind in zip(differences, kinds, strict=True):
            values = row.T[None, :, None].float()
            index = torch.tensor(tables)[kind].float().expand(1, 2, 1, -1)
            encoding.choose = lambda channels, mean, index, values=values: values
            encoding(slice(0, 2), None, torch.zeros_like(values), index.contiguous())

    def _read_vectors(self, decoding: Decoding, grid: tuple[int, int]) -> Tensor:
        decoding.models = self.next_models
        tables = [int(decoding.coder.decode(self._choice)) for _ in range(CLASSES)]
        differences = torch.zeros(*grid, 2, dtype=torch.int32)
        for row in range(grid[0]):
            kind = _kind_of_row(differences, row)
            index = torch.tensor(tables)[kind].float().expand(1, 2, 1, -1).contiguous()
            values = decoding(slice(0, 2), None, torch.zeros_like(index), index)
            differences[row] = values[0, :, 0].T.to(torch.int32)
        return _from_left(differences)

    @property
    def _choice(self) -> object:
        return self.next_models.stream.model.Uniform(TABLES)


class _Choosing:
    """One writer for both levels, each with its own values."""

    def __init__(self, encoding: Encoding, rounding: Rounding) -> None:
        self.encoding, self.rounding = encoding, rounding

    def __call__(self, channels: slice, mask: Tensor | None, mean: Tensor, index: Tensor) -> Tensor:
        self.encoding.choose = self.rounding.choose
        return self.encoding(channels, mask, mean, index)


def _size(roundings: tuple[Rounding, Rounding]) -> float:
    """About how much coefficients have to say."""
    return sum(float(torch.log2(1 + one.values.abs()).sum()) for one in roundings)


def _to_left(vectors: Tensor) -> Tensor:
    """Differences of vectors to their left neighbour; of the first of a row to the one above."""
    result = vectors.clone()
    result[:, 1:] -= vectors[:, :-1]
    result[1:, 0] -= vectors[:-1, 0]
    return result


def _from_left(differences: Tensor) -> Tensor:
    result = differences.clone()
    result[:, 0] = result[:, 0].cumsum(0)
    return result.cumsum(1).to(torch.int32)


def _kind_of_row(differences: Tensor, row: int) -> Tensor:
    """0 calm, 1 middling, 2 restless: by the three differences above each place."""
    if row == 0:
        return torch.ones(differences.shape[1], dtype=torch.long)
    above = differences[row - 1].abs().sum(-1)
    around = torch.cat([above[:1], above, above[-1:]])
    total = around[:-2] + around[1:-1] + around[2:]
    return (total > 0).long() + (total > 8).long()


def _kinds(differences: Tensor) -> list[Tensor]:
    return [_kind_of_row(differences, row) for row in range(len(differences))]


def _best_tables(differences: Tensor, kinds: list[Tensor], tables: ProbabilityTables) -> list[int]:
    """The table of each kind that its differences cost least with."""
    bits = tables.bits()
    kind = torch.stack(kinds)
    best = []
    for number in range(CLASSES):
        values = differences[kind == number].flatten()
        if not len(values):
            best.append(0)
            continue
        beyond = values.abs() > RADIUS
        symbols = torch.where(beyond, 2 * RADIUS + 1, values + RADIUS).long()
        best.append(int(bits[:, symbols].sum(1).argmin()))
    return best


def _read_bit(decoding: Decoding, name: str | Path) -> int:
    try:
        return int(decoding.coder.decode(decoding.models.bit))
    except AssertionError as error:
        raise PolyditError(f"{name}: its data cannot be decoded with these weights; it is damaged") from error
