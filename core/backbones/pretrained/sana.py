"""SANA (arXiv 2410.10629), SANA-1.5 and SANA-Sprint: linear attention on the latents of a deep autoencoder."""

from __future__ import annotations

from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor

from .adapter import PretrainedTransformer, TextInputs

__all__ = ["PretrainedSana"]


class PretrainedSana(PretrainedTransformer):
    """``SanaTransformer2DModel``.

    Latents go in as they are, one token each. The timestep 0 (data) .. 1000 (noise) is multiplied by the
    configuration's ``timestep_scale`` (0.001 in Sprint). Padding tokens of the text are masked. Sprint reads a
    guidance scale, times ``guidance_embeds_scale``; the others have none, and what is passed is not used.
    """

    self_attention = ()  # linear: what it sums over tokens is not keys and values

    @property
    def text_inputs(self) -> TextInputs:
        """300 tokens of a language model."""
        return TextInputs(width=self.config.caption_channels, length=300, masked=True)

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor | None = None,
        guidance_scale: float | Tensor = 4.5,
    ) -> Transformer2DModelOutput:
        """Denoise latents (B, C, H, W) at times (B,) in 0 .. 1000.

        Args:
            hidden_states: Noisy latents.
            timestep: Times.
            encoder_hidden_states: Text embeddings (B, tokens, width).
            encoder_attention_mask: (B, tokens), 1 for a token.
            guidance_scale: A number or (B,), for a guidance-distilled model.
        """
        x = self.enter(hidden_states)
        guidance = self.guidance(guidance_scale, x)
        if guidance is not None:
            guidance = self.cast(guidance) * self.config.guidance_embeds_scale
        sample = self.transformer(
            x,
            encoder_hidden_states=self.cast(encoder_hidden_states),
            encoder_attention_mask=encoder_attention_mask,
            guidance=guidance,
            timestep=timestep * self.config.timestep_scale,
        ).sample
        return self.leave(sample, hidden_states)
