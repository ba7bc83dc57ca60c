"""Stable Diffusion 3 and 3.5 (arXiv 2403.03206): joint attention with text, pooled text beside the timestep."""

from __future__ import annotations

from typing import Any, ClassVar

from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor

from .adapter import PretrainedTransformer, TextInputs

__all__ = ["PretrainedSD3"]


class PretrainedSD3(PretrainedTransformer):
    """``SD3Transformer2DModel``.

    Latents go in as they are, up to ``pos_embed_max_size`` patches a side; positions are cut from the middle of one
    table. The timestep is 0 (data) .. 1000 (noise). The text is CLIP's 77 tokens, padded in width, followed by T5's;
    nothing is masked.
    """

    hidden_output = 1
    self_attention: ClassVar[tuple[str, ...]] = ("attn", "attn2")
    text_order = "after"

    def shallow_config(self, depth: int) -> dict[str, Any]:
        """One block more, because the last one of a model is built without the text's part."""
        if depth == self.config.num_layers:
            return dict(self.config)
        dual = [index for index in self.config.dual_attention_layers if index <= depth]
        return {**self.config, "num_layers": depth + 1, "dual_attention_layers": dual}

    @property
    def text_inputs(self) -> TextInputs:
        """77 tokens of both CLIPs and 256 of T5."""
        return TextInputs(
            width=self.config.joint_attention_dim, pooled_width=self.config.pooled_projection_dim, length=333
        )

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        pooled_projections: Tensor,
    ) -> Transformer2DModelOutput:
        """Denoise latents (B, C, H, W) at times (B,) in 0 .. 1000.

        Args:
            hidden_states: Noisy latents.
            timestep: Times.
            encoder_hidden_states: Text embeddings (B, tokens, width).
            pooled_projections: Pooled text (B, pooled_width).
        """
        sample = self.transformer(
            hidden_states=self.enter(hidden_states),
            timestep=timestep,
            encoder_hidden_states=self.cast(encoder_hidden_states),
            pooled_projections=self.cast(pooled_projections),
        ).sample
        return self.leave(sample, hidden_states)
