"""A picture to the coded data of a file, and back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ...core.devices import free_memory
from ...core.errors import PolyditError
from .codec import MULTIPLE, LatentCodec, step_of
from .context import MEAN_UNIT
from .entropy import Decoding, Encoding, RangeModels
from .rounding import Rounding
from .uncertainty import Uncertainty

if TYPE_CHECKING:
    from .enhance import Enhancer

__all__ = ["THRIFT", "Stream", "decode_picture", "decode_symbols", "encode_picture", "padded_size"]

THRIFT = 0.1
"""Squared error, in steps, that the encoder gives for a bit."""


BYTES_PER_PIXEL = 330
"""Memory that coding and decoding take at most, beside what the program itself does: measured on 2048 x 2048."""


@dataclass
class Stream:
    """A coded picture.

    Attributes:
        data: its bits.
        symbols: CRC-32 of the residuals.
    """

    data: bytes
    symbols: int


def padded_size(height: int, width: int) -> tuple[int, int]:
    """The sides of a picture when it is coded: multiples of 64."""
    return -(-height // MULTIPLE) * MULTIPLE, -(-width // MULTIPLE) * MULTIPLE


def check_memory(codec: LatentCodec, size: tuple[int, int], name: str | Path) -> None:
    """Refuse a picture that does not fit in memory, whoever wrote its size into a header.

    Raises:
        PolyditError: with what it needs.
    """
    tall, wide = padded_size(*size)
    needed, free = tall * wide * BYTES_PER_PIXEL, free_memory(codec.colour.device)
    if needed > free:
        raise PolyditError(
            f"{name}: {size[1]}x{size[0]} pixels need {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are "
            "free; use a machine with more, or smaller pictures"
        )


@torch.no_grad()
def encode_picture(
    codec: LatentCodec, models: RangeModels, picture: Tensor, index: int, thrift: float = THRIFT
) -> Stream:
    """Code a picture.

    Args:
        codec: frozen.
        models: of its tables.
        picture: (3, H, W) in [-1, 1], of any size.
        index: quality 0..240.
        thrift: see `Rounding`.

    Raises:
        PolyditError: the picture does not fit in memory.
    """
    check_memory(codec, (picture.shape[-2], picture.shape[-1]), "picture")
    height, width = picture.shape[-2:]
    tall, wide = padded_size(height, width)
    whole = F.pad(picture[None], (0, wide - width, 0, tall - height), mode="replicate")
    quality = torch.tensor([index], device=picture.device)
    levels = codec.analyse(whole, quality)
    encoding = Encoding(models)
    quantizers = [_Choosing(encoding, Rounding(values, codec.tables, thrift)) for values in levels]
    codec.code(quality, (levels[0].shape[-2], levels[0].shape[-1]), *quantizers)
    return Stream(encoding.bytes(), encoding.check)


class _Choosing:
    """One writer for both levels, each with its own values."""

    def __init__(self, encoding: Encoding, rounding: Rounding) -> None:
        self.encoding, self.rounding = encoding, rounding

    def __call__(self, channels: slice, mask: Tensor | None, mean: Tensor, index: Tensor) -> Tensor:
        self.encoding.choose = self.rounding.choose
        return self.encoding(channels, mask, mean, index)


@torch.no_grad()
def decode_symbols(
    codec: LatentCodec,
    models: RangeModels,
    data: bytes,
    index: int,
    size: tuple[int, int],
    name: str | Path = "file",
    unsure: Uncertainty | None = None,
) -> tuple[Tensor, Tensor, int]:
    """Coefficients of a coded picture.

    Args:
        codec: frozen, with the weights that coded it.
        models: of its tables.
        data: see `Stream`.
        index: quality.
        size: height and width of the picture.
        name: of the file, for complaints.
        unsure: listens to the finer level.

    Returns:
        Ordered coefficients of both levels in 1/16 of a step, and the CRC-32 of the residuals.

    Raises:
        PolyditError: the data cannot be read, or the picture does not fit in memory.
    """
    check_memory(codec, size, name)
    tall, wide = padded_size(*size)
    quality = torch.tensor([index], device=codec.colour.device)
    decoding = Decoding(models, data, name)
    fine = decoding if unsure is None else unsure.of(decoding)
    coarse16, fine16 = codec.code(quality, (tall // MULTIPLE, wide // MULTIPLE), decoding, fine)
    return coarse16, fine16, decoding.check


@torch.no_grad()
def decode_picture(
    codec: LatentCodec,
    models: RangeModels,
    stream: Stream,
    index: int,
    size: tuple[int, int],
    name: str | Path = "file",
    enhancer: Enhancer | None = None,
) -> Tensor:
    """The picture (3, H, W) in [-1, 1] of a stream; see `decode_symbols`. An enhancer takes its step behind that.

    Raises:
        PolyditError: the data cannot be read, or gives other residuals than were coded.
    """
    unsure = None if enhancer is None else Uncertainty()
    coarse16, fine16, check = decode_symbols(codec, models, stream.data, index, size, name, unsure)
    if check & 0xFFFF != stream.symbols & 0xFFFF:
        raise PolyditError(
            f"{name}: decodes to other numbers than were coded; it is damaged, or this machine computes wrongly"
        )
    quality = torch.tensor([index], device=coarse16.device)
    lower = codec.compute_dtype != torch.float32
    with torch.autocast(
        coarse16.device.type, codec.compute_dtype if lower else torch.bfloat16, enabled=lower
    ):
        picture = codec.synthesise(coarse16 / MEAN_UNIT, fine16 / MEAN_UNIT, quality)
    if enhancer is not None and unsure is not None:
        picture = enhancer(picture.float(), unsure.deviation(step_of(quality)), quality)
    return picture[0, :, : size[0], : size[1]].clamp(-1, 1)
