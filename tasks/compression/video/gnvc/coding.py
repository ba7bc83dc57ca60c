"""Latent frames of a group to bytes and back to the same numbers on every machine."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from .....core.entropy import SCALES, UNIT, scale_boundaries, scale_tables, squeeze, unsqueeze
from .....core.entropy.fixed_point import LARGEST
from .....core.errors import PolyditError
from ...entropy import Decoding, Encoding, RangeModels
from ..groups import Group
from .contextual import RADIUS, ContextualCodec, FrameCodec, Loop

__all__ = ["ContextualCoder"]

WHOLE = slice(None)


class ContextualCoder:
    """A `ContextualCodec` in exact arithmetic on the CPU.

    Everything that the next frame's probabilities depend on runs in whole numbers: context, priors, and the decoder
    whose features and latents the next frame is coded with. So encoder and decoder cannot drift apart.

    Args:
        codec: trained, with counts.

    Attributes:
        identity: SHA-256 of all that decoding to symbols depends on, 4 bytes.

    Raises:
        PolyditError: the codec has no counts, or the range coder is not installed.
    """

    def __init__(self, codec: ContextualCodec) -> None:
        if not bool(codec.counts.any()):
            raise PolyditError(
                "codec: the counts of its side information are missing; save it again through its pipeline"
            )
        self.codec = codec
        self.loops = [part.loop.exact_copy().cpu() for part in (codec.first, codec.next)]
        self.boundaries = scale_boundaries(UNIT)
        # Now: whoever runs the transformer in a lower precision casts the codec, too.
        self.medians = [
            [torch.floor(prior.medians.detach().cpu().double() * UNIT + 0.5) for prior in part.priors]
            for part in (codec.first, codec.next)
        ]
        digest = hashlib.sha256(codec.counts.cpu().numpy().astype("<i4").tobytes())
        for loop in self.loops:
            for name, value in sorted(loop.named_buffers()):
                digest.update(name.encode() + value.numpy().astype("<i8").tobytes())
            for name, value in sorted(loop.gains.items()):
                digest.update(name.encode() + value.cpu().numpy().astype("<i8").tobytes())
        self.identity: bytes = digest.digest()[:4]
        self.models = cache(self._models)

    def _models(self, number: int, index: int) -> RangeModels:
        tables: Any = SimpleNamespace(
            counts=torch.cat([scale_tables(RADIUS), self.codec.counts[number, index].cpu().long()])
        )
        return RangeModels(tables)

    @torch.no_grad()
    def encode(self, latents: Tensor, quality: int) -> tuple[Group, Tensor, Tensor]:
        """Code a group.

        Args:
            latents: (1, C, T, h, w); h and w are multiples of 8.
            quality: index 0..63.

        Returns:
            Its bytes, and what a decoder finds: latents (1, C, T, h, w) and features (1, width, T, h, w), float32.
        """
        writing = Encoding(self.models(0, quality))

        def frame(number: int, part: FrameCodec, loop: Loop, index: int, far: Tensor | None) -> Any:
            device = part.enter.weight.device
            given = latents[:, :, number].to(device, part.enter.weight.dtype)
            context = None if far is None else (far / UNIT).to(given)
            values, side = (x.double().cpu() * UNIT for x in part.analyse(given, context, index))
            medians = self._medians(number, index)

            def write(wanted: Tensor, mean: Tensor, table: Tensor) -> Tensor:
                writing.choose = lambda *_: torch.round((wanted - mean) / UNIT).clamp(-1023, 1023)
                return writing(WHOLE, None, mean, table)

            symbols = write(side, medians.expand_as(side), self._tables_of_side(side))

            def quantizer(step: Tensor) -> Any:
                scaled = torch.round(values * UNIT / step)

                def take(mean: Tensor, scale: Tensor, mask: Tensor) -> Tensor:
                    wanted, centre, deviation = (squeeze(v, mask, 2) for v in (scaled, mean, scale))
                    found = write(wanted, centre, self._tables_of_values(deviation))
                    return (unsqueeze(found, mask, 2) * UNIT + mean).clamp(-LARGEST, LARGEST)

                return take

            return symbols * UNIT + medians, quantizer

        decoded, features = self._run(latents.shape[2], quality, frame, writing)
        return Group(writing.bytes(), writing.check), decoded, features

    @torch.no_grad()
    def decode(
        self, group: Group, frames: int, size: tuple[int, int], quality: int, name: str | Path = "file"
    ) -> tuple[Tensor, Tensor]:
        """Latents and features of a group; see `encode`.

        Args:
            group: its bytes.
            frames: latent frames.
            size: (h, w) of the latents.
            quality: index.
            name: of the file, for complaints.

        Raises:
            PolyditError: the data cannot be read, or gives other symbols than were coded.
        """
        reading = Decoding(self.models(0, quality), group.data, name)

        def frame(number: int, part: FrameCodec, loop: Loop, index: int, far: Tensor | None) -> Any:
            medians = self._medians(number, index)
            side = torch.zeros(1, medians.shape[1], size[0] // 8, size[1] // 8, dtype=torch.float64)
            symbols = reading(WHOLE, None, side, self._tables_of_side(side))

            def quantizer(step: Tensor) -> Any:
                def take(mean: Tensor, scale: Tensor, mask: Tensor) -> Tensor:
                    deviation = squeeze(scale, mask, 2)
                    found = reading(WHOLE, None, deviation, self._tables_of_values(deviation))
                    return (unsqueeze(found, mask, 2) * UNIT + mean).clamp(-LARGEST, LARGEST)

                return take

            return symbols * UNIT + medians, quantizer

        decoded, features = self._run(frames, quality, frame, reading)
        if reading.check & 0xFFFF != group.symbols & 0xFFFF:
            raise PolyditError(
                f"{name}: decodes to other numbers than were coded; it is damaged, or this machine computes wrongly"
            )
        return decoded, features

    def _run(self, frames: int, quality: int, frame: Any, coder: Any) -> tuple[Tensor, Tensor]:
        """The loop over latent frames, the same for both directions but for where symbols come from."""
        before: Tensor | None = None
        latents, features = [], []
        for number in range(frames):
            part, index = self.codec.part_of(number, quality)
            loop = self.loops[min(number, 1)]
            near = far = None
            if before is not None:
                near, far = loop.context(before, number == 1, index)
            coder.models = self.models(min(number, 1), index)
            side, quantizer = frame(number, part, loop, index, far)
            told = loop.prior(side.clamp(-LARGEST, LARGEST), near)
            values, _ = loop.passes(told, quantizer(loop.steps(told.chunk(3, 1)[0])))
            feature = loop.features(values, far, index)
            latent = loop.latents(feature, index)
            before = latent if number == 0 else feature
            latents.append((latent / UNIT).float())
            features.append((feature / UNIT).float())
        return torch.stack(latents, 2), torch.stack(features, 2)

    def _tables_of_values(self, scale: Tensor) -> Tensor:
        return torch.bucketize(scale.long(), self.boundaries)

    def _tables_of_side(self, side: Tensor) -> Tensor:
        return SCALES + torch.arange(side.shape[1]).view(1, -1, 1, 1).expand_as(side)

    def _medians(self, number: int, index: int) -> Tensor:
        return self.medians[min(number, 1)][index].view(1, -1, 1, 1)
