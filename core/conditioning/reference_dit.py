"""A DiT that is shown references, such as pictures with masks, through a :class:`KeyValueBank`."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from ..backbones.dit import DiT
from ..backbones.embedding import PatchEmbed, widened
from ..backbones.variant import extends

__all__ = ["ReferenceDiT"]


class ReferenceDiT(DiT):
    """DiT with a second patch embedding, for references; all else is shared (DiffewS' design on a transformer).

    An input with ``reference_channels`` channels is a reference, such as a picture and its mask. The new embedding
    starts as copies of the input's divided by their number. References get a learned offset, zero at the start: they
    have the places of the input's tokens, and without it tokens of the same place would be drawn to each other.

    Args:
        reference_channels: channels of a reference; another number than ``in_channels``.
        **kwargs: of :class:`DiT`.

    Raises:
        ValueError: the two numbers of channels are the same, or one is no multiple of the other.
    """

    @extends(DiT)
    @register_to_config
    def __init__(self, reference_channels: int = 8, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if reference_channels == self.config.in_channels:
            raise ValueError(f"reference_channels {reference_channels}: must differ from in_channels")
        self.reference_embed = PatchEmbed(reference_channels, self.config.hidden_size, self.patch_size)
        self.reference_offset = nn.Parameter(torch.zeros(self.config.hidden_size))
        with torch.no_grad():
            own, reference = self.patch_embed.proj, self.reference_embed.proj
            reference.weight.copy_(widened(own.weight, reference_channels))
            reference.bias.copy_(own.bias)

    def embed_tokens(self, hidden_states: Tensor) -> Tensor:
        """(B, C, *spatial) -> (B, N, D): an input, or by its channels a reference."""
        if hidden_states.shape[1] != self.config.reference_channels:
            return super().embed_tokens(hidden_states)
        tokens = self.reference_embed(hidden_states)
        tokens = tokens + self.reference_offset.to(tokens.dtype)
        if self.pos_embed is not None:
            tokens = tokens + self.position_table(self.grid_of(hidden_states), tokens.device).to(tokens.dtype)
        return tokens
