"""DiT (arXiv 2212.09748): class labels, noise prediction, and a variance in the second half of the channels."""

from __future__ import annotations

from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor

from .adapter import DDPM, PretrainedTransformer

__all__ = ["PretrainedDiT"]


class PretrainedDiT(PretrainedTransformer):
    """``DiTTransformer2DModel``.

    Latents go in as they are, the timestep is an index 0 .. 999, the condition is a class. diffusers' model is square:
    other shapes need the native DiT (``polydit.core.backbones.diffusers_dit.dit_from_diffusers``). In train mode it
    drops a tenth of the labels by itself.
    """

    parameterization_config = DDPM
    text_inputs = None

    @property
    def latent_channels(self) -> int:
        """Every published DiT learns a variance: half of the output channels are its."""
        return self.transformer.out_channels // 2

    @property
    def null_class(self) -> int:
        """The label that stands for no class."""
        return self.config.num_embeds_ada_norm

    def forward(
        self, hidden_states: Tensor, timestep: Tensor, class_labels: Tensor, keep_variance: bool = False
    ) -> Transformer2DModelOutput:
        """Denoise latents (B, C, H, H) at indices (B,) for classes (B,).

        Args:
            hidden_states: Noisy latents.
            timestep: Indices 0 .. 999.
            class_labels: int64; :attr:`null_class` for none.
            keep_variance: Return 2C channels, for a loss on the variance.
        """
        x = self.enter(hidden_states)
        if x.shape[-1] != x.shape[-2]:
            raise ValueError(
                f"diffusers' DiT takes square latents, not {list(x.shape[-2:])}; use the native DiT"
            )
        sample = self.transformer(x, timestep=timestep, class_labels=class_labels).sample
        return self.leave(sample if keep_variance else sample[:, : self.latent_channels], hidden_states)
