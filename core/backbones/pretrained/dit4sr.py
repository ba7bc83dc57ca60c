"""DiT4SR (ICCV 2025, arXiv 2503.23580): Stable Diffusion 3 with a low-resolution stream in every block."""

from __future__ import annotations

from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor

from .sd3 import PretrainedSD3

__all__ = ["PretrainedDiT4SR"]


class PretrainedDiT4SR(PretrainedSD3):
    """:class:`~polydit.core.backbones.dit4sr_sd3.DiT4SR`, as SD3 with one more input.

    The condition is what the autoencoder makes of the enlarged low-resolution picture, scaled like the latents.
    """

    self_attention = ()  # half of the tokens in it are the condition's

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        pooled_projections: Tensor,
        condition: Tensor | None = None,
    ) -> Transformer2DModelOutput:
        """Denoise latents (B, C, H, W) at times (B,) in 0 .. 1000.

        Args:
            hidden_states: Noisy latents.
            timestep: Times.
            encoder_hidden_states: Text embeddings (B, tokens, width).
            pooled_projections: Pooled text (B, pooled_width).
            condition: (B, C, H, W); without it this is plain SD3.
        """
        sample = self.transformer(
            hidden_states=self.enter(hidden_states),
            controlnet_image=self.cast(condition),
            timestep=timestep,
            encoder_hidden_states=self.cast(encoder_hidden_states),
            pooled_projections=self.cast(pooled_projections),
        ).sample
        return self.leave(sample, hidden_states)
