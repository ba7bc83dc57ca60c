"""Roles for the layers of a pretrained layered model: an embedding per slot beside frozen weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor, nn

from ..backbones.pretrained import load_transformer
from ..backbones.pretrained.qwen_image import PretrainedQwenImage

__all__ = ["PretrainedLayerStack"]


class PretrainedLayerStack(nn.Module):
    """Qwen-Image-Layered (arXiv 2512.15603) with the call of ``LayerStackDiT``, and roles for its layers.

    Its positions are that model's own: pictures are numbered 0 (composite), 1..N (layers), the picture to decompose
    is the last and has -1. Each slot's embedding, the layer semantic embedding of arXiv 2603.14925, is added to its
    tokens behind the input layer. They start at zero: then this is the pretrained model.

    Args:
        transformer: The adapted model.
        roles: Names of the layers, bottom to top; None for none.
    """

    def __init__(self, transformer: PretrainedQwenImage, roles: Sequence[str] | None = None) -> None:
        super().__init__()
        if not getattr(transformer.config, "use_layer3d_rope", False):
            raise ValueError(
                "the transformer numbers no layers (use_layer3d_rope); give Qwen-Image-Layered's"
            )
        self.transformer = transformer
        self.roles = tuple(roles) if roles is not None else None
        width = transformer.transformer.inner_dim
        self.role_embed = nn.Parameter(torch.zeros(len(roles) + 1, width)) if roles is not None else None

    @classmethod
    def from_folder(
        cls, source: str, roles: list[str] | None = None, dtype: str | None = None
    ) -> PretrainedLayerStack:
        """From the folder of the released pipeline, in diffusers format.

        Raises:
            PolyditError: it is not there, or is something else.
        """
        return cls(load_transformer(source, dtype=dtype), roles)

    @property
    def config(self) -> Any:
        """That of the diffusers model."""
        return self.transformer.config

    @property
    def prediction_channels(self) -> int:
        """Channels of a layer's latents."""
        return self.transformer.latent_channels

    def enable_gradient_checkpointing(self) -> None:
        """Recompute the blocks' activations in the backward pass."""
        self.transformer.enable_gradient_checkpointing()

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        condition: Tensor,
        slots: Sequence[int] | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
    ) -> Transformer2DModelOutput:
        """Predict composite and layers.

        Args:
            hidden_states: Noisy latents (B, C, 1 + N, H, W): the composite, then the layers from the bottom.
            timestep: (B,), 0 .. 1000.
            condition: Latents (B, C, H, W) of the picture.
            slots: The role of each of the 1 + N; None is in order. Places in the sequence, and with them the positions,
                are not moved.
            encoder_hidden_states: Text (B, tokens, width); None is a single token of zeros.
            encoder_attention_mask: (B, tokens).

        Returns:
            An object with ``.sample`` (B, C, 1 + N, H, W).
        """
        batch, _, count = hidden_states.shape[:3]
        if encoder_hidden_states is None:
            width = self.config.joint_attention_dim
            encoder_hidden_states = hidden_states.new_zeros(batch, 1, width)
        handle = None
        if self.role_embed is not None:
            chosen = list(slots) if slots is not None else list(range(count))
            if len(chosen) != count or not all(0 <= s < len(self.role_embed) for s in chosen):
                raise ValueError(f"slots {chosen} for {count} pictures and {len(self.role_embed)} roles")
            embedding = torch.cat([self.role_embed[chosen], torch.zeros_like(self.role_embed[:1])])

            def add_roles(module: nn.Module, args: Any, tokens: Tensor) -> Tensor:
                parts = tokens.unflatten(1, (count + 1, -1))
                return (parts + embedding[None, :, None].to(parts)).flatten(1, 2)

            handle = self.transformer.transformer.img_in.register_forward_hook(add_roles)
        try:
            pictures = torch.cat([hidden_states, condition[:, :, None]], dim=2)
            flag = torch.zeros(batch, dtype=torch.long, device=hidden_states.device)
            sample = self.transformer(
                pictures,
                timestep,
                encoder_hidden_states,
                encoder_attention_mask,
                additional_t_cond=flag if getattr(self.config, "use_additional_t_cond", False) else None,
            ).sample
        finally:
            if handle is not None:
                handle.remove()
        return Transformer2DModelOutput(sample=sample[:, :, :count])
