"""CogVideoX with a second stream of frames: what is to be put into the video, as tokens behind the video's own.

"GenCompositor: Generative Video Compositing with Diffusion Transformer", arXiv 2509.02460. Every block attends over all
tokens together; only the first stream is decoded.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import CogVideoXTransformer3DModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import CogVideoXPatchEmbed
from torch import Tensor, nn

__all__ = ["CompositingTransformer", "TwoStreamPatchEmbed"]


class TwoStreamPatchEmbed(CogVideoXPatchEmbed):
    """Embeds frames (B, 2 T, C, H, W): the first half as they are, of the second half the last channels.

    Args:
        foreground_channels: of the second half.
        **kwargs: of diffusers' class.
    """

    def __init__(self, foreground_channels: int, **kwargs: Any) -> None:
        self.foreground_channels = foreground_channels
        super().__init__(**kwargs)
        if kwargs.get("patch_size_t") is not None:
            raise ValueError("patches of several frames (CogVideoX 1.5) do not take a second stream")
        p = self.patch_size
        self.fg_proj = nn.Conv2d(
            foreground_channels, self.embed_dim, p, stride=p, bias=self.proj.bias is not None
        )

    def _get_positional_embeddings(self, *size: Any, **kwargs: Any) -> Tensor:
        table = super()._get_positional_embeddings(*size, **kwargs)  # (1, text + T H W, D)
        return torch.cat([table, table[:, self.max_text_seq_length :]], 1)

    def forward(self, text_embeds: Tensor, image_embeds: Tensor) -> Tensor:
        """Tokens (B, text + 2 T h w, D)."""
        frames, height, width = image_embeds.shape[1] // 2, *image_embeds.shape[3:]
        first, second = image_embeds[:, :frames], image_embeds[:, frames:, -self.foreground_channels :]
        parts = [self.text_proj(text_embeds)]
        for layer, stream in ((self.proj, first), (self.fg_proj, second)):
            tokens = layer(stream.flatten(0, 1)).unflatten(0, (-1, frames))
            parts.append(tokens.flatten(3).transpose(2, 3).flatten(1, 2))
        tokens = torch.cat(parts, 1).contiguous()
        if not (self.use_positional_embeddings or self.use_learned_positional_embeddings):
            return tokens
        table = self.pos_embedding
        if table.shape[1] != tokens.shape[1] or (height, width) != (self.sample_height, self.sample_width):
            if self.use_learned_positional_embeddings:
                raise ValueError(
                    f"this model learned places for frames of {self.sample_height}x{self.sample_width} latents only"
                )
            pixels = (frames - 1) * self.temporal_compression_ratio + 1
            table = self._get_positional_embeddings(height, width, pixels, device=tokens.device)
        return tokens + table.to(tokens.dtype)


class CompositingTransformer(CogVideoXTransformer3DModel):
    """``CogVideoXTransformer3DModel`` over two streams; keys as in the released weights.

    Args:
        foreground_channels: latents of what is put in.
        **kwargs: of diffusers' class; ``in_channels`` counts noisy and known latents, 32.
    """

    @register_to_config
    def __init__(
        self,
        num_attention_heads: int = 48,
        attention_head_dim: int = 64,
        in_channels: int = 32,
        out_channels: int | None = 16,
        flip_sin_to_cos: bool = True,
        freq_shift: int = 0,
        time_embed_dim: int = 512,
        ofs_embed_dim: int | None = None,
        text_embed_dim: int = 4096,
        num_layers: int = 42,
        dropout: float = 0.0,
        attention_bias: bool = True,
        sample_width: int = 90,
        sample_height: int = 60,
        sample_frames: int = 49,
        patch_size: int = 2,
        patch_size_t: int | None = None,
        temporal_compression_ratio: int = 4,
        max_text_seq_length: int = 226,
        activation_fn: str = "gelu-approximate",
        timestep_activation_fn: str = "silu",
        norm_elementwise_affine: bool = True,
        norm_eps: float = 1e-5,
        spatial_interpolation_scale: float = 1.875,
        temporal_interpolation_scale: float = 1.0,
        use_rotary_positional_embeddings: bool = True,
        use_learned_positional_embeddings: bool = False,
        patch_bias: bool = True,
        foreground_channels: int = 16,
    ) -> None:
        options = {
            name: value
            for name, value in locals().items()
            if name not in ("self", "foreground_channels", "__class__")
        }
        super().__init__(**options)
        self.patch_embed = TwoStreamPatchEmbed(
            foreground_channels=foreground_channels,
            patch_size=patch_size,
            patch_size_t=patch_size_t,
            in_channels=in_channels,
            embed_dim=num_attention_heads * attention_head_dim,
            text_embed_dim=text_embed_dim,
            bias=patch_bias,
            sample_width=sample_width,
            sample_height=sample_height,
            sample_frames=sample_frames,
            temporal_compression_ratio=temporal_compression_ratio,
            max_text_seq_length=max_text_seq_length,
            spatial_interpolation_scale=spatial_interpolation_scale,
            temporal_interpolation_scale=temporal_interpolation_scale,
            use_positional_embeddings=not use_rotary_positional_embeddings,
            use_learned_positional_embeddings=use_learned_positional_embeddings,
        )

    @classmethod
    def from_base(
        cls, base: CogVideoXTransformer3DModel, foreground_channels: int = 16
    ) -> CompositingTransformer:
        """Start from a CogVideoX image-to-video model, as GenCompositor does.

        The second stream's embedding begins as the columns of the noisy latents, its places as those of the first.
        """
        known = {name: value for name, value in base.config.items() if not name.startswith("_")}
        with torch.device(base.device):
            made = cls(**{**known, "foreground_channels": foreground_channels})
        state = dict(base.state_dict())
        state["patch_embed.fg_proj.weight"] = state["patch_embed.proj.weight"][:, :foreground_channels]
        if "patch_embed.proj.bias" in state:
            state["patch_embed.fg_proj.bias"] = state["patch_embed.proj.bias"]
        if "patch_embed.pos_embedding" in state:
            table, text = state["patch_embed.pos_embedding"], base.config.max_text_seq_length
            state["patch_embed.pos_embedding"] = torch.cat([table, table[:, text:]], 1)
        made.load_state_dict(state)
        nn.Module.to(made, base.dtype)  # diffusers' own warns, about nothing
        return made
