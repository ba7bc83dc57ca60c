"""What tells the frozen video transformer what was decoded: features of the codec, added behind chosen blocks.

The paper leaves the layers and their width open; this is the light variant, a linear layer per chosen block over the
patchified features, zero at the start. The heavy one, copied blocks as in VACE (arXiv 2503.07598), is diffusers'
``WanVACETransformer3DModel``, which `refinement.denoiser` drives with the same features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

__all__ = ["ContextAdapter"]


class ContextAdapter(ModelMixin, ConfigMixin):
    """Features (B, width, T, h, w) to what is added behind each block of a transformer.

    Args:
        feature_channels: of the codec's features.
        hidden_size: of the transformer's tokens.
        depth: number of its blocks.
        layers: which blocks; None is every other one, beginning with the first.
        patch_size: of the transformer.
        width: of the patchified features.
        prompt_tokens: of the fixed prompt embedding; 0 if the transformer reads no text.
        prompt_width: its width.

    Attributes:
        prompt: (1, prompt_tokens, prompt_width), what every clip is refined with: an empty prompt's embedding.
    """

    @register_to_config
    def __init__(
        self,
        feature_channels: int = 256,
        hidden_size: int = 1536,
        depth: int = 30,
        layers: Sequence[int] | None = None,
        patch_size: Sequence[int] = (1, 2, 2),
        width: int = 256,
        prompt_tokens: int = 0,
        prompt_width: int = 4096,
    ) -> None:
        super().__init__()
        self.layers = list(range(0, depth, 2)) if layers is None else list(layers)
        if any(not 0 <= layer < depth for layer in self.layers) or not self.layers:
            raise ValueError(f"layers {self.layers} are not blocks of a transformer of {depth}")
        self.depth = depth
        self.patch = nn.Conv3d(feature_channels, width, tuple(patch_size), tuple(patch_size))
        self.outputs = nn.ModuleList(nn.Linear(width, hidden_size) for _ in self.layers)
        for layer in self.outputs:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.register_buffer("prompt", torch.zeros(1, prompt_tokens, prompt_width) if prompt_tokens else None)

    def forward(self, features: Tensor) -> list[Tensor | None]:
        """For each block (B, tokens, hidden_size), or None."""
        tokens = (
            nn.functional.silu(self.patch(features.to(self.patch.weight.dtype))).flatten(2).transpose(1, 2)
        )
        hints: list[Tensor | None] = [None] * self.depth
        for layer, output in zip(self.layers, self.outputs, strict=True):
            hints[layer] = output(tokens)
        return hints
