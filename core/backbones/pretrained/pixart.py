"""PixArt-Sigma (arXiv 2403.04692) and PixArt-alpha (arXiv 2310.00426): cross-attention to masked T5 tokens."""

from __future__ import annotations

import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor

from .adapter import DDPM, PretrainedTransformer, TextInputs

__all__ = ["PretrainedPixArt"]

PIXELS_PER_LATENT = 8


class PretrainedPixArt(PretrainedTransformer):
    """``PixArtTransformer2DModel``.

    Latents go in as they are; positions are scaled to the size the model was built for. The timestep is an index
    0 .. 999. Padding tokens of the text are masked. alpha at 1024 pixels also reads the picture's size in pixels and
    its aspect ratio (height over width), Sigma does not. The second half of the output channels is a variance.
    """

    parameterization_config = DDPM

    @property
    def latent_channels(self) -> int:
        """Every published PixArt learns a variance: half of the output channels are its."""
        return self.transformer.out_channels // 2

    @property
    def text_inputs(self) -> TextInputs:
        """T5 tokens: 300 in Sigma, 120 in alpha."""
        length = 120 if self.transformer.use_additional_conditions else 300
        return TextInputs(width=self.config.caption_channels, length=length, masked=True)

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor | None = None,
        keep_variance: bool = False,
    ) -> Transformer2DModelOutput:
        """Denoise latents (B, C, H, W) at indices (B,).

        Args:
            hidden_states: Noisy latents.
            timestep: Indices 0 .. 999.
            encoder_hidden_states: T5 embeddings (B, tokens, width).
            encoder_attention_mask: (B, tokens), 1 for a token.
            keep_variance: Return 2C channels, for a loss on the variance.
        """
        x = self.enter(hidden_states)
        size: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
        if self.transformer.use_additional_conditions:
            batch, _, height, width = x.shape
            pixels = torch.tensor([height, width], dtype=x.dtype, device=x.device) * PIXELS_PER_LATENT
            ratio = torch.tensor([height / width], dtype=x.dtype, device=x.device)
            size = {"resolution": pixels.expand(batch, 2), "aspect_ratio": ratio.expand(batch, 1)}
        sample = self.transformer(
            x,
            encoder_hidden_states=self.cast(encoder_hidden_states),
            encoder_attention_mask=encoder_attention_mask,
            timestep=timestep,
            added_cond_kwargs=size,
        ).sample
        return self.leave(sample if keep_variance else sample[:, : self.latent_channels], hidden_states)
