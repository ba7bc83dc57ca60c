"""The pipeline that a user calls: pictures to small files and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, ModelMixin
from diffusers.utils import BaseOutput
from numpy.typing import NDArray

from ...core.data.images import read_image, to_uint8
from ...core.errors import PolyditError
from .codec import quality_index
from .coding import THRIFT, decode_picture, encode_picture
from .enhance import Enhancer
from .weights import CodecWeights

__all__ = ["CompressionOutput", "CompressionPipeline"]

Picture = Any


class CompressionOutput(BaseOutput):
    """What the pipeline returns.

    Attributes:
        images: (H, W, 3) uint8 arrays, decoded from the data.
        data: coded data of each picture.
        bits_per_pixel: of the data.
    """

    images: list[NDArray[np.uint8]]
    data: list[bytes]
    bits_per_pixel: list[float]


class CompressionPipeline(DiffusionPipeline):
    """Code pictures and decode them.

    Args:
        codec: a frozen `PictureCodec`.
        enhancer: a ``DiT``, see `enhance`; or None.
    """

    _optional_components = ["enhancer"]

    def __init__(self, codec: ModelMixin, enhancer: ModelMixin | None = None) -> None:
        super().__init__()
        self.register_modules(codec=codec, enhancer=enhancer)
        self._weights: CodecWeights | None = None

    @property
    def weights(self) -> CodecWeights:
        """The codec, ready for coding."""
        if self._weights is None:
            self._weights = CodecWeights(self.codec.eval().requires_grad_(False), "this pipeline")
        return self._weights

    def step(self, fidelity: float) -> Enhancer | None:
        """What an enhancer does behind the codec; None for a fidelity of 1.

        Raises:
            PolyditError: there is no enhancer, or fidelity is out of range.
        """
        if fidelity == 1:
            return None
        if self.enhancer is None:
            raise PolyditError(
                f"--fidelity {fidelity:g}: these weights hold no enhancer; leave the option out"
            )
        return Enhancer(self.enhancer, fidelity)

    @torch.no_grad()
    def __call__(
        self,
        image: Picture | list[Picture],
        quality: float = 5.0,
        thrift: float = THRIFT,
        fidelity: float = 1.0,
    ) -> CompressionOutput:
        """Code and decode.

        Args:
            image: path of a file, or (H, W, 3) uint8 array; or a list of them.
            quality: 1 (smallest) to 9 (best).
            thrift: see `Rounding`.
            fidelity: 1 decodes as the codec does, below that an enhancer moves the picture, at 0 all the way.
        """
        step = self.step(fidelity)
        images, data, rates = [], [], []
        index = quality_index(quality)
        for one in image if isinstance(image, list) else [image]:
            pixels = to_uint8(read_image(one)[0]) if isinstance(one, str | Path) else np.asarray(one)
            tensor = (
                torch.from_numpy(pixels.copy()).to(self.codec.device).permute(2, 0, 1).float() / 127.5 - 1
            )
            stream = encode_picture(self.codec, self.weights.models, tensor, index, thrift)
            found = decode_picture(
                self.codec, self.weights.models, stream, index, pixels.shape[:2], enhancer=step
            )
            images.append(((found + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy())
            data.append(stream.data)
            rates.append(8 * len(stream.data) / (pixels.shape[0] * pixels.shape[1]))
        return CompressionOutput(images=images, data=data, bits_per_pixel=rates)
