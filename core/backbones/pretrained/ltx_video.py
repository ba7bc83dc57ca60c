"""LTX-Video (arXiv 2501.00103): packed video latents, positions in seconds and pixels."""

from __future__ import annotations

import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor

from .adapter import PretrainedTransformer, TextInputs
from .packing import pack, unpack

__all__ = ["PretrainedLTXVideo"]


class PretrainedLTXVideo(PretrainedTransformer):
    """``LTXVideoTransformer3DModel``.

    Latents (B, C, T, H, W) are packed, one token per latent in the published model. Rotary positions are counted in
    seconds and pixels: a latent spans 8 frames and 32 x 32 pixels, so the frame rate belongs to the input. The
    timestep is 0 (data) .. 1000 (noise). Padding tokens of the text are masked.

    Attributes:
        spatial_factor: Pixels per latent of the autoencoder.
        temporal_factor: Frames per latent of the autoencoder.
    """

    video = True
    takes_position_ids = True
    timestep_per_token = True
    spatial_factor = 32
    temporal_factor = 8

    @property
    def patch(self) -> tuple[int, ...]:
        """Latents per token along time, height, width."""
        return (self.config.patch_size_t, self.config.patch_size, self.config.patch_size)

    @property
    def columns_per_channel(self) -> int:
        """The latents of a token."""
        pt, ph, pw = self.patch
        return pt * ph * pw

    config_channels = columns_per_channel

    @property
    def text_inputs(self) -> TextInputs:
        """128 T5 tokens."""
        return TextInputs(width=self.config.caption_channels, length=128, masked=True)

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor | None = None,
        frame_rate: float = 25.0,
        position_ids: Tensor | None = None,
    ) -> Transformer2DModelOutput:
        """Denoise latents (B, C, T, H, W), or (B, C, H, W) as one frame, at times (B,) in 0 .. 1000.

        Args:
            hidden_states: Noisy latents.
            timestep: Times; (B, tokens) gives each token its own.
            encoder_hidden_states: T5 embeddings (B, tokens, width).
            encoder_attention_mask: (B, tokens), 1 for a token.
            frame_rate: Frames per second of the video.
            position_ids: (tokens, 4) group (not used), frame, row and column, where tokens do not stand on their own
                grid; counted in tokens.
        """
        x = self.enter(hidden_states)
        t, h, w = x.shape[2:]
        pt, ph, pw = self.patch
        scale = (
            self.temporal_factor / frame_rate,
            self.spatial_factor,
            self.spatial_factor,
        )  # seconds, pixels
        coordinates = None
        if position_ids is not None:
            unit = x.new_tensor([p * s for p, s in zip(self.patch, scale, strict=True)], dtype=torch.float32)
            coordinates = (position_ids[:, 1:].to(x.device) * unit).T.expand(len(x), -1, -1)  # (B, 3, tokens)
        tokens = self.transformer(
            hidden_states=pack(x, (pt, ph, pw)),
            encoder_hidden_states=self.cast(encoder_hidden_states),
            timestep=timestep,
            encoder_attention_mask=encoder_attention_mask,
            num_frames=t // pt,
            height=h // ph,
            width=w // pw,
            rope_interpolation_scale=scale,
            video_coords=coordinates,
        ).sample
        return self.leave(unpack(tokens, (t, h, w), (pt, ph, pw)), hidden_states)
