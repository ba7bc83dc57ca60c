"""The pipeline of GNVC-VD: groups of frames to bytes, and back through the refinement."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import ModelMixin
from numpy.typing import NDArray
from torch import Tensor

from .....core.backbones.pretrained import PretrainedTransformer
from .....core.errors import PolyditError
from .....core.pipeline import TaskPipeline
from ..groups import Group
from ..pipeline import VideoCompressionOutput
from .coding import ContextualCoder
from .contextual import QUALITIES
from .refinement import START, STEPS, backbone_of, denoiser, fixed_noise, refine_latents

__all__ = ["GNVCPipeline"]

FURTHER = 8
"""The side information is so many times smaller than the autoencoder's latents."""


class GNVCPipeline(TaskPipeline):
    """Code groups of frames as latents, and refine what was decoded.

    Args:
        transformer: a video transformer: a native `DiT`, a ``WanTransformer3DModel``, or a
            ``WanVACETransformer3DModel``.
        codec: a `ContextualCodec` with counts.
        adapter: a `ContextAdapter`, or None with VACE.
        vae: an ``AutoencoderKLWan`` or another video autoencoder.
        start: noise level of the refinement in project time: 0.3, the paper's 0.7.
        steps: Euler steps.
    """

    model_cpu_offload_seq = "vae->codec->adapter->transformer"
    _optional_components = ["adapter"]

    def __init__(
        self,
        transformer: ModelMixin,
        codec: ModelMixin,
        vae: ModelMixin,
        adapter: ModelMixin | None = None,
        start: float = START,
        steps: int = STEPS,
    ) -> None:
        super().__init__()
        if isinstance(transformer, PretrainedTransformer):  # saved is what it adapts
            transformer = transformer.transformer
        self.register_modules(transformer=transformer, codec=codec, vae=vae, adapter=adapter)
        self.register_to_config(start=start, steps=steps)
        self._coder: ContextualCoder | None = None

    @property
    def coder(self) -> ContextualCoder:
        """The codec in exact arithmetic."""
        if self._coder is None:
            self._coder = ContextualCoder(self.codec)
        return self._coder

    @property
    def identity(self) -> bytes:
        """Of the weights that a file's symbols depend on."""
        return self.coder.identity

    def padded(self, size: tuple[int, int]) -> tuple[int, int]:
        """The sides of frames when they are coded."""
        multiple = self.space.spatial_factor * FURTHER
        return -(-size[0] // multiple) * multiple, -(-size[1] // multiple) * multiple

    def latent_frames(self, frames: int) -> int:
        """How many latent frames so many frames become."""
        return 1 + -(-(frames - 1) // self.space.temporal_factor)

    @torch.no_grad()
    def encode(self, frames: NDArray[np.uint8], quality: int) -> Group:
        """Code a group (T, H, W, 3) uint8 at a quality index 0..63.

        Raises:
            PolyditError: the quality is another.
        """
        if not 0 <= quality < QUALITIES:
            raise PolyditError(f"quality index {quality}: goes from 0 to {QUALITIES - 1}")
        clip = torch.from_numpy(frames.copy()).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
        tall, wide = self.padded((clip.shape[-2], clip.shape[-1]))
        count = 1 + self.space.temporal_factor * (self.latent_frames(clip.shape[2]) - 1)
        missing = (0, wide - clip.shape[-1], 0, tall - clip.shape[-2], 0, count - clip.shape[2])
        clip = F.pad(clip, missing, mode="replicate")
        latents = self.space.encode(clip.to(self.device))
        return self.coder.encode(latents.float(), quality)[0]

    @torch.no_grad()
    def decode(
        self,
        group: Group,
        frames: int,
        size: tuple[int, int],
        quality: int,
        fidelity: float = 0.0,
        seed: int = 0,
        name: str = "file",
    ) -> NDArray[np.uint8]:
        """The frames (T, H, W, 3) uint8 of a group.

        Args:
            group: as `encode` gave it.
            frames: how many.
            size: (H, W).
            quality: index.
            fidelity: 1 leaves the refinement out, 0 takes all of it; in between latents are mixed.
            seed: of the noise; it belongs to the file.
            name: of the file, for complaints.

        Raises:
            PolyditError: the data cannot be read.
        """
        tall, wide = self.padded(size)
        factor = self.space.spatial_factor
        coded, features = self.coder.decode(
            group, self.latent_frames(frames), (tall // factor, wide // factor), quality, name
        )
        latents = self.refine(coded.to(self.device), features.to(self.device), fidelity, seed)
        pixels = self.space.decode(latents.float())[0, :, :frames, : size[0], : size[1]]
        levels = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().byte()
        return levels.permute(1, 2, 3, 0).cpu().numpy()

    @torch.no_grad()
    def refine(self, coded: Tensor, features: Tensor, fidelity: float = 0.0, seed: int = 0) -> Tensor:
        """Refined latents."""
        if not 0 <= fidelity <= 1:
            raise PolyditError(f"--fidelity {fidelity:g}: give a number from 0 (generative) to 1 (plain)")
        if fidelity == 1:
            return coded
        noise = fixed_noise(tuple(coded.shape), seed).to(coded)
        denoise = denoiser(backbone_of(self.transformer), self.adapter, features)
        refined = refine_latents(denoise, coded, noise, self.config.start, self.config.steps)
        return torch.lerp(refined, coded, fidelity)

    def __call__(
        self, frames: NDArray[np.uint8], quality: int = 32, group: int = 25, fidelity: float = 0.0
    ) -> VideoCompressionOutput:
        """Code and decode (T, H, W, 3) uint8; see `encode` and `decode`."""
        clip = np.asarray(frames)
        groups, found = [], []
        for number, first in enumerate(range(0, len(clip), group)):
            part = clip[first : first + group]
            groups.append(self.encode(part, quality))
            size = (part.shape[1], part.shape[2])
            found.append(self.decode(groups[-1], len(part), size, quality, fidelity, number))
        bits = 8 * sum(len(one.data) for one in groups) / clip[..., 0].size
        return VideoCompressionOutput(frames=np.concatenate(found), groups=groups, bits_per_pixel=bits)
