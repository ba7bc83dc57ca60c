"""Wan 2.1 and 2.2 (arXiv 2503.20314): video latents, rotary positions, text padded with zeros."""

from __future__ import annotations

import torch
from diffusers.models.embeddings import get_1d_rotary_pos_embed
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor, nn

from .adapter import PretrainedTransformer, TextInputs
from .hooks import answering

__all__ = ["PretrainedWan"]

THETA = 10000.0  # of the rotary frequencies; in no configuration


class PretrainedWan(PretrainedTransformer):
    """``WanTransformer3DModel``; each of Wan 2.2's two experts is one.

    Latents (B, C, T, H, W) go in as they are. The timestep is 0 (data) .. 1000 (noise). The model attends to all text
    tokens, and was trained with zeros after the last word: that is what the mask does here. Image-to-video models take
    the picture as further channels, and Wan 2.1's also as CLIP tokens.
    """

    video = True
    takes_position_ids = True
    timestep_per_token = True

    @property
    def blocks(self) -> list[nn.Module]:
        """The transformer's blocks in the order they run."""
        return list(self.transformer.blocks)

    @property
    def patch(self) -> tuple[int, ...]:
        """Latents per token along time, height, width."""
        return tuple(self.config.patch_size)

    @property
    def text_inputs(self) -> TextInputs:
        """512 UMT5 tokens."""
        return TextInputs(width=self.config.text_dim, length=512, masked=True)

    def rotary(self, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines (1, tokens, 1, head width) for ids (tokens, 4); the group's has no part in them."""
        rope = self.transformer.rope
        kind = torch.float32 if position_ids.device.type == "mps" else torch.float64  # as diffusers has it
        parts = [
            get_1d_rotary_pos_embed(
                dim, ids, THETA, use_real=True, repeat_interleave_real=True, freqs_dtype=kind
            )
            for dim, ids in zip(
                (rope.t_dim, rope.h_dim, rope.w_dim), position_ids[:, 1:].unbind(1), strict=True
            )
        ]
        cosines, sines = (torch.cat(values, dim=1)[None, :, None] for values in zip(*parts, strict=True))
        return cosines, sines

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor | None = None,
        encoder_hidden_states_image: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> Transformer2DModelOutput:
        """Denoise latents (B, C, T, H, W), or (B, C, H, W) as one frame, at times (B,) in 0 .. 1000.

        Args:
            hidden_states: Noisy latents.
            timestep: Times; (B, tokens) gives each token its own, as Wan 2.2's 5B model wants.
            encoder_hidden_states: UMT5 embeddings (B, tokens, width).
            encoder_attention_mask: (B, tokens), 1 for a token; embeddings of the others are set to zero.
            encoder_hidden_states_image: CLIP embeddings of a picture (B, tokens, ``image_dim``).
            position_ids: (tokens, 4) group (not used), frame, row and column, where tokens do not stand on their own
                grid.
        """
        text = self.cast(encoder_hidden_states)
        if encoder_attention_mask is not None:
            text = text * encoder_attention_mask[..., None].to(text.dtype)
        x = self.enter(hidden_states)
        rope = None if position_ids is None else self.rotary(position_ids.to(x.device))
        with answering(self.transformer.rope, None if rope is None else lambda _: rope):
            sample = self.transformer(
                hidden_states=x,
                timestep=timestep,
                encoder_hidden_states=text,
                encoder_hidden_states_image=self.cast(encoder_hidden_states_image),
            ).sample
        return self.leave(sample, hidden_states)
