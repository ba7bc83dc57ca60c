"""The pipeline of DiT-IC: pictures to coded data, and back through the plain or the generative decoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import ModelMixin
from torch import Tensor

from ....core.backbones.dit_ic import FLOW_SIGMA, TIMESTEP, Decoded, DiTIC
from ....core.data.images import read_image, to_uint8
from ....core.errors import PolyditError
from ....core.pipeline import TaskPipeline
from ..coding import Stream
from ..pipeline import CompressionOutput
from .coding import LatentCoder

__all__ = ["MULTIPLE", "DiTICPipeline", "pad", "padded_size"]

MULTIPLE = 256
"""Sides of pictures are padded to multiples of this: the side information has one place for so many pixels."""
FURTHER = 8
"""The side information is so many times smaller than the autoencoder's latents."""


def padded_size(height: int, width: int, multiple: int = MULTIPLE) -> tuple[int, int]:
    """The sides of a picture when it is coded."""
    return -(-height // multiple) * multiple, -(-width // multiple) * multiple


def pad(pictures: Tensor, multiple: int = MULTIPLE) -> Tensor:
    """Reflect (B, C, H, W) at the right and the lower border, as often as it takes."""
    for axis, side in zip((-2, -1), padded_size(*pictures.shape[-2:], multiple), strict=True):
        length = pictures.shape[axis]
        period = max(1, 2 * (length - 1))
        place = torch.arange(side, device=pictures.device) % period
        pictures = pictures.index_select(axis, torch.minimum(place, period - place))
    return pictures


class DiTICPipeline(TaskPipeline):
    """Code pictures as latents and decode them in one step.

    Args:
        transformer: a ``SanaTransformer2DModel``, adapted.
        codec: a `DiTICLatentCodec`.
        prompter: a `LatentPrompter`.
        vae: an ``AutoencoderDC``, its decoder adapted.
        features: an `ElicAnalysis`, for encoding.
        start: noise level of the one step.
        timestep: that the transformer is told.
    """

    model_cpu_offload_seq = "features->vae->codec->prompter->transformer"

    def __init__(
        self,
        transformer: ModelMixin,
        codec: ModelMixin,
        prompter: ModelMixin,
        vae: ModelMixin,
        features: ModelMixin,
        start: float = FLOW_SIGMA,
        timestep: int = TIMESTEP,
    ) -> None:
        super().__init__()
        self.register_modules(
            transformer=transformer, codec=codec, prompter=prompter, vae=vae, features=features
        )
        self.register_to_config(start=start, timestep=timestep)
        self._coder: LatentCoder | None = None

    @property
    def coder(self) -> LatentCoder:
        """The entropy model in exact arithmetic."""
        if self._coder is None:
            self._coder = LatentCoder(self.codec)
        return self._coder

    @property
    def identity(self) -> bytes:
        """Of the weights that a file's symbols depend on."""
        return self.coder.identity

    @property
    def multiple(self) -> int:
        """What the sides of pictures are padded to multiples of."""
        return self.space.spatial_factor * FURTHER

    @torch.no_grad()
    def encode(self, picture: Tensor) -> Stream:
        """Code a picture (3, H, W) in [-1, 1], of any size."""
        whole = pad(picture[None].to(self.device), self.multiple)
        dtype = next(self.features.parameters()).dtype
        latents = self.space.encode(whole)
        return self.coder.encode(*self.codec.analyse(latents, self.features(whole.to(dtype)).float()))

    @torch.no_grad()
    def decode(
        self, stream: Stream, size: tuple[int, int], fidelity: float = 0.0, name: str | Path = "file"
    ) -> Tensor:
        """The picture (3, H, W) in [-1, 1] of a stream.

        Args:
            stream: as :meth:`encode` gave it.
            size: height and width of the picture.
            fidelity: 0 is the generative decoder, 1 the plain one, which is nearer to the pixels that were coded; in
                between the latents of both are mixed. The file is the same.
            name: of the file, for complaints.

        Raises:
            PolyditError: the data cannot be read or gives other symbols than were coded, or fidelity is out of range.
        """
        if not 0 <= fidelity <= 1:
            raise PolyditError(f"--fidelity {fidelity:g}: give a number from 0 (generative) to 1 (plain)")
        sides = padded_size(*size, self.multiple)
        found = self.coder.decode(stream.data, (sides[0] // self.multiple, sides[1] // self.multiple), name)
        if found.symbols & 0xFFFF != stream.symbols & 0xFFFF:
            raise PolyditError(
                f"{name}: decodes to other numbers than were coded; it is damaged, or this machine computes wrongly"
            )
        decoded = self.codec.decode(found.y_hat.to(self.device), found.scales.to(self.device))
        latents = self.latents(decoded, fidelity)
        return self.space.decode(latents.float())[0, :, : size[0], : size[1]].clamp(-1, 1)

    def latents(self, decoded: Decoded, fidelity: float) -> Tensor:
        """The autoencoder's latents; the transformer runs only where it is needed."""
        if fidelity == 1:
            return decoded.mean
        model = DiTIC(self.codec, self.prompter, self.transformer, self.config.start, self.config.timestep)
        enhanced = model.enhance(decoded)[0]
        return enhanced if fidelity == 0 else torch.lerp(enhanced, decoded.mean, fidelity)

    @torch.no_grad()
    def __call__(self, image: Any, fidelity: float = 0.0) -> CompressionOutput:
        """Code and decode.

        Args:
            image: path of a file, or (H, W, 3) uint8 array; or a list of them.
            fidelity: see :meth:`decode`.
        """
        images, data, rates = [], [], []
        for one in image if isinstance(image, list) else [image]:
            pixels = to_uint8(read_image(one)[0]) if isinstance(one, str | Path) else np.asarray(one)
            stream = self.encode(torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 127.5 - 1)
            found = self.decode(stream, pixels.shape[:2], fidelity)
            images.append(((found + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy())
            data.append(stream.data)
            rates.append(8 * len(stream.data) / (pixels.shape[0] * pixels.shape[1]))
        return CompressionOutput(images=images, data=data, bits_per_pixel=rates)
