"""The pipeline of the small video codec."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from diffusers import DiffusionPipeline, ModelMixin
from diffusers.utils import BaseOutput
from numpy.typing import NDArray

from ..codec import quality_index
from .groups import Coder, Group

__all__ = ["VideoCompressionOutput", "VideoCompressionPipeline"]


class VideoCompressionOutput(BaseOutput):
    """What the pipeline returns.

    Attributes:
        frames: (T, H, W, 3) uint8, decoded from the groups.
        groups: coded data.
        bits_per_pixel: of the data, over all pixels of all frames.
    """

    frames: NDArray[np.uint8]
    groups: list[Group]
    bits_per_pixel: float


class VideoCompressionPipeline(DiffusionPipeline):
    """Code clips and decode them.

    Args:
        codec: a frozen `VideoCodec`.
    """

    def __init__(self, codec: ModelMixin) -> None:
        super().__init__()
        self.register_modules(codec=codec)

    def __call__(
        self, frames: NDArray[np.uint8] | Sequence[NDArray[np.uint8]], quality: float = 5.0, group: int = 25
    ) -> VideoCompressionOutput:
        """Code and decode.

        Args:
            frames: (T, H, W, 3) uint8.
            quality: 1 (smallest) to 9 (best).
            group: frames that are coded together.
        """
        coder, index = Coder(self.codec.eval()), quality_index(quality)
        clip = np.asarray(frames)
        groups, found = [], []
        for first in range(0, len(clip), group):
            part = clip[first : first + group]
            groups.append(coder.encode(part, index))
            found += list(coder.decode(groups[-1], len(part), part.shape[1:3], index))
        bits = 8 * sum(len(one.data) for one in groups) / clip[..., 0].size
        return VideoCompressionOutput(frames=np.stack(found), groups=groups, bits_per_pixel=bits)
