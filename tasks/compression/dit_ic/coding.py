"""Latents of DiT-IC to the coded data of a file, and back to the same numbers on every machine."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor

from ....core.backbones.dit_ic import RADIUS, DiTICLatentCodec
from ....core.entropy import SCALES, UNIT, make_exact, scale_boundaries, scale_tables, squeeze, unsqueeze
from ....core.entropy.fixed_point import LARGEST
from ....core.errors import PolyditError
from ..coding import Stream
from ..entropy import Decoding, Encoding, RangeModels

__all__ = ["LatentCoder"]

WHOLE = slice(None)


@dataclass
class CodedLatents:
    """What a decoder finds.

    Attributes:
        y_hat: latents (1, C, h, w), float32.
        scales: that they were coded with, the same shape.
        symbols: CRC-32 of all residuals.
    """

    y_hat: Tensor
    scales: Tensor
    symbols: int


class LatentCoder:
    """The entropy model of a codec in exact arithmetic on the CPU, with its tables.

    Side information and latents go through one range coder: first the offsets of z from the medians, then the
    residuals of the four passes, each squeezed to a quarter of the channels.

    Args:
        codec: trained; its entropy networks in the precision that they were saved in.

    Raises:
        PolyditError: the codec has no counts, or the range coder is not installed.
    """

    def __init__(self, codec: DiTICLatentCodec) -> None:
        if not bool(codec.counts.any()):
            raise PolyditError(
                "codec: the counts of its side information are missing; save it again through its pipeline"
            )
        self.h_s, self.context = make_exact(codec.h_s).cpu(), make_exact(codec.context).cpu()
        counts = torch.cat([scale_tables(RADIUS), codec.counts.cpu().long()])
        self.models = RangeModels(SimpleNamespace(counts=counts))
        medians = codec.entropy_bottleneck.medians.detach().cpu().double()
        self.medians = torch.floor(medians * UNIT + 0.5).view(1, -1, 1, 1)
        self.boundaries = scale_boundaries(UNIT)
        digest = hashlib.sha256(counts.numpy().astype("<i4").tobytes())
        digest.update(self.medians.numpy().astype("<i8").tobytes())
        for part in (self.h_s, self.context):
            for name, value in part.named_buffers():
                digest.update(name.encode() + value.numpy().astype("<i8").tobytes())
        self.identity: bytes = digest.digest()[:4]
        """Of all that decoding to symbols depends on."""

    @torch.no_grad()
    def encode(self, y: Tensor, z: Tensor) -> Stream:
        """Code latents.

        Args:
            y: (1, C, h, w).
            z: their side information, (1, C / 2, h / 4, w / 4).
        """
        y, z = y.detach().cpu().double() * UNIT, z.detach().cpu().double() * UNIT
        writing = Encoding(self.models)

        def write(values: Tensor, mean: Tensor, table: Tensor) -> Tensor:
            writing.choose = lambda *_: torch.round((values - mean) / UNIT).clamp(-1023, 1023)
            return writing(WHOLE, None, mean, table)

        symbols = write(z, self.medians.expand_as(z), self._tables_of_z(z))

        def quantizer(mean: Tensor, scale: Tensor, mask: Tensor) -> Tensor:
            small = (squeeze(values, mask) for values in (y, mean, scale))
            latents, centre, deviation = small
            return self._values(write(latents, centre, self._tables_of_y(deviation)), mean, mask)

        self.context(self._base(symbols), quantizer)
        return Stream(writing.bytes(), writing.check)

    @torch.no_grad()
    def decode(self, data: bytes, size: tuple[int, int], name: str | Path = "file") -> CodedLatents:
        """Find latents.

        Args:
            data: as :meth:`encode` gave it.
            size: height and width of the side information.
            name: of the file, for complaints.

        Raises:
            PolyditError: the data cannot be read.
        """
        reading = Decoding(self.models, data, name)
        z = torch.zeros(1, self.medians.shape[1], *size, dtype=torch.float64)
        symbols = reading(WHOLE, None, z, self._tables_of_z(z))

        def quantizer(mean: Tensor, scale: Tensor, mask: Tensor) -> Tensor:
            deviation = squeeze(scale, mask)
            found = reading(WHOLE, None, deviation, self._tables_of_y(deviation))
            return self._values(found, mean, mask)

        y_hat, scales = self.context(self._base(symbols), quantizer)
        return CodedLatents((y_hat / UNIT).float(), (scales / UNIT).float(), reading.check)

    def _base(self, symbols: Tensor) -> Tensor:
        return self.h_s((symbols * UNIT + self.medians).clamp(-LARGEST, LARGEST))

    def _values(self, symbols: Tensor, mean: Tensor, mask: Tensor) -> Tensor:
        return (unsqueeze(symbols, mask) * UNIT + mean).clamp(-LARGEST, LARGEST)

    def _tables_of_y(self, scale: Tensor) -> Tensor:
        return torch.bucketize(scale.long(), self.boundaries)

    def _tables_of_z(self, z: Tensor) -> Tensor:
        return SCALES + torch.arange(z.shape[1]).view(1, -1, 1, 1).expand_as(z)
