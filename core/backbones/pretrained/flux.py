"""FLUX.1 (dev, schnell, Fill, and Control by widened inputs): packed latents, three-axis position ids."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor, nn

from .adapter import PretrainedTransformer, TextInputs
from .packing import pack, unpack

__all__ = ["PretrainedFlux"]


def grid_ids(height: int, width: int) -> Tensor:
    """(height * width, 3): a group (0), the row and the column of each token."""
    ids = torch.zeros(height, width, 3)
    ids[..., 1] = torch.arange(height)[:, None]
    ids[..., 2] = torch.arange(width)
    return ids.flatten(0, 1)


class PretrainedFlux(PretrainedTransformer):
    """``FluxTransformer2DModel``.

    Latents are packed 2x2, so 16 channels arrive as tokens of 64. The timestep 0 (data) .. 1000 (noise) is divided by
    1000, which the model undoes. Text tokens all sit at position (0, 0, 0) and are not masked. The distilled ``dev``
    also reads a guidance scale; ``schnell`` has none, and what is passed is not used.
    """

    hidden_output = 1
    self_attention = ("attn",)
    text_order = "before"
    takes_position_ids = True
    group_axis = True

    @property
    def patch(self) -> tuple[int, ...]:
        """The 2x2 packing."""
        return (2, 2)

    @property
    def columns_per_channel(self) -> int:
        """The four latents of a token."""
        return 4

    config_channels = columns_per_channel

    @property
    def blocks(self) -> list[nn.Module]:
        """The double blocks, then the single ones."""
        return [*self.transformer.transformer_blocks, *self.transformer.single_transformer_blocks]

    def shallow_config(self, depth: int) -> dict[str, Any]:
        """Double blocks first, as in the whole model."""
        double = min(depth, self.config.num_layers)
        return {**self.config, "num_layers": double, "num_single_layers": depth - double}

    @property
    def text_inputs(self) -> TextInputs:
        """512 T5 tokens, and CLIP's pooled text."""
        return TextInputs(
            width=self.config.joint_attention_dim, pooled_width=self.config.pooled_projection_dim, length=512
        )

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        pooled_projections: Tensor,
        guidance_scale: float | Tensor = 3.5,
        position_ids: Tensor | None = None,
    ) -> Transformer2DModelOutput:
        """Denoise latents (B, C, H, W) at times (B,) in 0 .. 1000.

        Args:
            hidden_states: Noisy latents, H and W even.
            timestep: Times.
            encoder_hidden_states: T5 embeddings (B, tokens, width).
            pooled_projections: Pooled text (B, pooled_width).
            guidance_scale: A number or (B,), for a guidance-distilled model.
            position_ids: (tokens, 3) group, row and column, where tokens do not stand on their own grid.
        """
        x = self.enter(hidden_states)
        height, width = x.shape[-2:]
        if position_ids is None:
            position_ids = grid_ids(height // 2, width // 2)
        tokens = self.transformer(
            hidden_states=pack(x.unsqueeze(2), (1, 2, 2)),
            timestep=timestep / 1000,
            guidance=self.guidance(guidance_scale, x),
            pooled_projections=self.cast(pooled_projections),
            encoder_hidden_states=self.cast(encoder_hidden_states),
            txt_ids=x.new_zeros(encoder_hidden_states.shape[1], 3),
            img_ids=position_ids.to(x),
        ).sample
        return self.leave(unpack(tokens, (1, height, width), (1, 2, 2)).squeeze(2), hidden_states)
