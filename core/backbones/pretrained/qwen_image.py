"""Qwen-Image (arXiv 2508.02324) and its editing and layered relatives: packed latents, one shape per picture."""

from __future__ import annotations

import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor

from .adapter import PretrainedTransformer, TextInputs
from .hooks import answering
from .packing import pack, unpack

__all__ = ["PretrainedQwenImage"]


class PretrainedQwenImage(PretrainedTransformer):
    """``QwenImageTransformer2DModel``.

    Latents are packed 2x2, so 16 channels arrive as tokens of 64. A picture is (B, C, H, W). (B, C, T, H, W) is a
    sequence of T pictures that attend to each other, the rotary positions of each starting anew and numbered by the
    model: the layers and the condition of the layered model, the target and the references of the editing ones. The
    timestep 0 (data) .. 1000 (noise) is divided by 1000, which the model undoes. Padding tokens of the text are masked.
    """

    video = True
    hidden_output = 1
    self_attention = ("attn",)
    text_order = "before"
    takes_position_ids = True
    group_axis = True

    @property
    def patch(self) -> tuple[int, ...]:
        """The 2x2 packing; pictures of a sequence are not mixed."""
        return (1, 2, 2)

    @property
    def columns_per_channel(self) -> int:
        """The four latents of a token."""
        return 4

    @property
    def config_channels(self) -> int:
        """The four latents of a token."""
        return 4

    @property
    def latent_channels(self) -> int:
        """``out_channels`` counts latents, other than ``in_channels``."""
        return self.config.out_channels or self.in_channels

    @property
    def text_inputs(self) -> TextInputs:
        """Tokens of Qwen2.5-VL, as many as the prompt has, at most 1024."""
        return TextInputs(width=self.config.joint_attention_dim, masked=True)

    def rotary(self, position_ids: Tensor, height: int, width: int) -> Tensor:
        """Complex turns (tokens, half the head width) for ids (tokens, 4) of pictures of height x width tokens.

        Rows and columns are counted from the middle of the picture.
        """
        rope = self.transformer.pos_embed
        picture, row, column = position_ids[:, 0] + position_ids[:, 1], position_ids[:, 2], position_ids[:, 3]
        places = (picture, row - (height - height // 2), column - (width - width // 2))
        return torch.cat(
            [rope.rope_params(ids, dim, rope.theta) for ids, dim in zip(places, rope.axes_dim, strict=True)],
            dim=1,
        )

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor | None = None,
        additional_t_cond: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> Transformer2DModelOutput:
        """Denoise latents (B, C, H, W) or (B, C, T, H, W) at times (B,) in 0 .. 1000.

        Args:
            hidden_states: Noisy latents, H and W even.
            timestep: Times.
            encoder_hidden_states: Text embeddings (B, tokens, width).
            encoder_attention_mask: (B, tokens), 1 for a token.
            additional_t_cond: (B,) int64 of the layered model: 0.
            position_ids: (tokens, 4) group, picture, row and column, where tokens do not stand on their own grid; the
                number of a picture to the model is the sum of the first two.
        """
        x = self.enter(hidden_states)
        batch, _, pictures, height, width = x.shape
        answer = None
        if position_ids is not None:
            turns = self.rotary(position_ids.to(x.device), height // 2, width // 2)
            answer = lambda pair: (turns, pair[1])  # noqa: E731 - the second are the text's
        with answering(self.transformer.pos_embed, answer):
            tokens = self.transformer(
                hidden_states=pack(x, (1, 2, 2)),
                timestep=timestep / 1000,
                encoder_hidden_states=self.cast(encoder_hidden_states),
                encoder_hidden_states_mask=encoder_attention_mask,
                img_shapes=[[(1, height // 2, width // 2)] * pictures] * batch,
                additional_t_cond=additional_t_cond,
            ).sample
        return self.leave(unpack(tokens, (pictures, height, width), (1, 2, 2)), hidden_states)
