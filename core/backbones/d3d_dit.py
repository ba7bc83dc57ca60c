"""The diffusion transformer of Direct3D on triplane latents (D3D-DiT, arXiv 2405.14832)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor, nn

from ..attention.attention import KeyValueHook
from .dit import DiT, DiTBlock, modulate
from .embedding import sinusoid, unpatchify
from .parallel import register_block
from .variant import extends

__all__ = ["D3DDiT"]


@register_block
class D3DBlock(DiTBlock):
    """A block whose self-attention also sees the picture's tokens: same for all blocks, without norm or modulation."""

    def forward(
        self,
        hidden_states: Tensor,
        conditioning: Tensor,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        rope: tuple[Tensor, Tensor] | None = None,
        attention_mask: Tensor | None = None,
        grids: Sequence[Sequence[int] | None] = (),
        token_group: Tensor | None = None,
        key_value_hook: KeyValueHook | None = None,
        pixel_tokens: Tensor | None = None,
    ) -> Tensor:
        """One block: as :class:`DiTBlock`, and ``pixel_tokens`` (B, M, D) in front of the tokens that attend."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation_vectors(conditioning, token_group)
        tokens = hidden_states.shape[1]
        own = modulate(self.norm1(hidden_states), shift1, scale1)
        seen = own if pixel_tokens is None else torch.cat([pixel_tokens.to(own.dtype), own], dim=1)
        attended = self.attn(seen, rope=rope, mask=attention_mask, key_value_hook=key_value_hook)[:, -tokens:]
        hidden_states = torch.addcmul(hidden_states, gate1, attended)
        if self.cross_attn is not None and encoder_hidden_states is not None:
            hidden_states = hidden_states + self.cross_attn(
                hidden_states, encoder_hidden_states, encoder_attention_mask
            )
        mixed = self.mlp(modulate(self.norm2(hidden_states), shift2, scale2), grids)
        return torch.addcmul(hidden_states, gate2, mixed)


class TableHead(nn.Module):
    """Norm, a table and the raw time embedding as its modulation, and the map from tokens to patches."""

    def __init__(self, hidden_size: int, patch_volume: int, out_channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=1e-6)
        self.table = nn.Parameter(torch.zeros(2, hidden_size))
        self.linear = nn.Linear(hidden_size, patch_volume * out_channels)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden_states: Tensor, conditioning: Tensor) -> Tensor:
        """(B, N, D), (B, D) -> (B, N, prod(patch) * C)."""
        shift, scale = (self.table[None] + conditioning[:, None]).chunk(2, dim=1)
        return self.linear(modulate(self.norm(hidden_states), shift, scale))


class D3DDiT(DiT):
    """D3D-DiT, "Direct3D: Scalable Image-to-3D Generation via 3D Latent Diffusion Transformer" (arXiv 2405.14832).

    The three planes lie side by side, so that a token's place says which plane it is of and where. A picture enters
    twice: its semantic tokens by cross-attention, the first of them also with the time; its pixel-level tokens in front
    of the latent's in every self-attention.

    Args:
        resolution: pixels along the side of a latent plane.
        patch_size: of a token.
        in_channels: of a latent plane.
        hidden_size: width D.
        num_heads: attention heads.
        depth: blocks.
        semantic_channels: width of the semantic tokens (CLIP ViT-L/14: 1024).
        pixel_channels: width of the pixel-level tokens (DINOv2-L: 1024).
        num_classes: categories for use without a picture, or None as published; ``class_dropout_prob`` must then be
            above 0, as label ``num_classes`` says that there is none.
        **kwargs: of :class:`DiT`.
    """

    _no_split_modules = ["D3DBlock"]
    _repeated_blocks = ["D3DBlock"]

    @extends(DiT)
    @register_to_config
    def __init__(
        self,
        resolution: int = 32,
        patch_size: int = 2,
        in_channels: int = 16,
        hidden_size: int = 1152,
        num_heads: int = 16,
        depth: int = 28,
        semantic_channels: int = 1024,
        pixel_channels: int = 1024,
        num_classes: int | None = None,
        **kwargs: Any,
    ) -> None:
        for fixed in ("input_size", "modulation", "context_dim", "window_size"):
            kwargs.pop(fixed, None)  # a saved configuration holds the parent's too
        if num_classes and not kwargs.get("class_dropout_prob", 0.1):
            raise ValueError(
                "class_dropout_prob 0: a D3DDiT with categories needs the empty one; leave it out"
            )
        super().__init__(
            input_size=[resolution, 3 * resolution],
            patch_size=patch_size,
            in_channels=in_channels,
            hidden_size=hidden_size,
            num_heads=num_heads,
            depth=depth,
            context_dim=semantic_channels,
            num_classes=num_classes,
            modulation="adaln_single",
            **kwargs,
        )
        # Pixel-level tokens through the same two layers as the semantic ones.
        self.pixel_embed = nn.Sequential(
            nn.Linear(pixel_channels, hidden_size),
            nn.GELU(approximate="tanh"),
            nn.Linear(hidden_size, hidden_size),
        )
        self.semantic_time = nn.Linear(semantic_channels, self.time_embed.frequency_dim, bias=False)
        patch = self.patch_size[0] * self.patch_size[1]
        self.final_layer = TableHead(hidden_size, patch, self.out_channels)  # type: ignore[assignment]
        nn.init.zeros_(self.semantic_time.weight)

    def build_block(self, hidden_size: int, num_heads: int, **options: Any) -> DiTBlock:
        """A block that sees pixel-level tokens."""
        return D3DBlock(hidden_size, num_heads, **options)

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        class_labels: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        pixel_hidden_states: Tensor | None = None,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """Predict.

        Args:
            hidden_states: latents (B, C, r, 3 r), noisy.
            timestep: (B,).
            class_labels: (B,), for weights with categories; ``num_classes`` is none.
            encoder_hidden_states: semantic tokens (B, M, semantic_channels), the first one the picture's summary.
            pixel_hidden_states: pixel-level tokens (B, P, pixel_channels).
            return_dict: False returns a plain tuple.

        Returns:
            An object with ``.sample`` like ``hidden_states``.
        """
        grid = self.grid_of(hidden_states)
        x = self.embed_tokens(hidden_states)
        c = self.embed_picture(timestep, class_labels, encoder_hidden_states)
        context = self.context_embed(encoder_hidden_states) if encoder_hidden_states is not None else None
        pixels = self.pixel_embed(pixel_hidden_states) if pixel_hidden_states is not None else None
        x = self.run_blocks(x, self.block_conditioning(c), context, pixel_tokens=pixels, grids=(grid,))
        sample = unpatchify(self.final_layer(x, c), grid, self.patch_size)
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)

    def embed_picture(self, timestep: Tensor, class_labels: Tensor | None, semantic: Tensor | None) -> Tensor:
        """Time, the picture's first semantic token and the category as one vector (B, D)."""
        first, act, second = self.time_embed.mlp
        waves = sinusoid(timestep, self.time_embed.frequency_dim).to(first.weight.dtype)
        if semantic is not None:
            waves = waves + self.semantic_time(semantic[:, 0])
        c = second(act(first(waves)))
        if self.label_embed is not None:
            if class_labels is None:
                raise ValueError("this D3DDiT has categories: pass class_labels (num_classes is none)")
            c = c + self.label_embed(class_labels)
        return c
