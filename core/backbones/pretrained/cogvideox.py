"""CogVideoX 2B, 5B and 1.5 (arXiv 2408.06072): frames before channels, rotary positions cut to the trained size."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.embeddings import get_1d_rotary_pos_embed, get_3d_rotary_pos_embed
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor

from .adapter import PretrainedTransformer, TextInputs

__all__ = ["PretrainedCogVideoX"]

OFFSET = 2.0  # what the image-to-video pipeline of 1.5 always passes as ``ofs``


class PretrainedCogVideoX(PretrainedTransformer):
    """``CogVideoXTransformer3DModel``.

    Latents (B, C, T, H, W) go in as (B, T, C, H, W). 2B has a table of positions; 5B and 1.5 have rotary ones, which 5B
    stretches so that any size covers the height and width of its training and 1.5 counts from 0. 1.5 takes two frames
    into a token, so T must be even. The timestep is an index 0 .. 999, the answer is v. Padding of the text is not
    masked.

    Attributes:
        base_grid: (rows, columns) of tokens that the rotary positions of 5B are stretched to; None is that of the
            configuration.
    """

    base_grid: tuple[int, int] | None = None
    video = True
    hidden_output = 0
    text_order = "before"

    @property
    def parameterization_config(self) -> dict[str, Any]:  # type: ignore[override]
        """The answer is v, along a cosine-like table that ends in pure noise; 2B's is shifted towards noise."""
        return {
            "path": {
                "name": "discrete",
                "schedule": "scaled_linear",
                "beta_start": 0.00085,
                "beta_end": 0.012,
                "steps": 1000,
                "snr_shift": 1.0 if self.config.use_rotary_positional_embeddings else 3.0,
                "ends_in_noise": True,
            },
            "prediction": "v",
            "time": {"scale": 1000.0, "flip": False, "discrete": True},
        }

    @property
    def patch(self) -> tuple[int, ...]:
        """Latents per token along time, height, width."""
        return (self.config.patch_size_t or 1, self.config.patch_size, self.config.patch_size)

    @property
    def columns_per_channel(self) -> int:
        """1.5 reads its patches through a linear layer, the others through a convolution."""
        pt, ph, pw = self.patch
        return 1 if self.config.patch_size_t is None else pt * ph * pw

    @property
    def takes_position_ids(self) -> bool:  # type: ignore[override]
        """2B's table knows its own grid only."""
        return self.config.use_rotary_positional_embeddings

    @property
    def text_inputs(self) -> TextInputs:
        """T5 tokens: 226, or 224 in 1.5. Where there is a table of positions, it counts them."""
        length = self.config.max_text_seq_length
        table = self.transformer.patch_embed.use_positional_embeddings
        learned = self.transformer.patch_embed.use_learned_positional_embeddings
        return TextInputs(width=self.config.text_embed_dim, length=length, exact_length=table or learned)

    @property
    def trained_grid(self) -> tuple[int, int]:
        """Tokens along height and width that the positions are counted on."""
        config = self.config
        own = (config.sample_height // config.patch_size, config.sample_width // config.patch_size)
        return self.base_grid or own

    def rotary(
        self, grid: tuple[int, ...], position_ids: Tensor | None, device: torch.device
    ) -> tuple[Tensor, Tensor] | None:
        """Cosines and sines (tokens, head width) of a grid (t, h, w), or of ids on its scale; None for 2B."""
        config = self.config
        if not config.use_rotary_positional_embeddings:
            return None
        trained = self.trained_grid
        if position_ids is not None:
            return self._rotary_at(position_ids[:, 1:].to(device), grid, trained)
        if config.patch_size_t is not None:
            return get_3d_rotary_pos_embed(
                config.attention_head_dim,
                None,
                grid[1:],
                grid[0],
                grid_type="slice",
                max_size=trained,
                device=device,
            )
        return get_3d_rotary_pos_embed(
            config.attention_head_dim, _fit(grid[1:], trained), grid[1:], grid[0], device=device
        )

    def _rotary_at(
        self, ids: Tensor, grid: tuple[int, ...], trained: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        frame, *places = ids.unbind(1)
        if self.config.patch_size_t is None:
            start, stop = _fit(grid[1:], trained)
            for axis, n in enumerate(grid[1:]):  # diffusers' linspace from start to stop (n - 1) / n
                step = (stop[axis] * (n - 1) / n - start[axis]) / max(n - 1, 1)
                places[axis] = start[axis] + places[axis] * step
        width = self.config.attention_head_dim
        dims = (width // 4, width // 8 * 3, width // 8 * 3)
        parts = [
            get_1d_rotary_pos_embed(d, p, use_real=True) for d, p in zip(dims, (frame, *places), strict=True)
        ]
        cosines, sines = (torch.cat(values, dim=1) for values in zip(*parts, strict=True))
        return cosines, sines

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        position_ids: Tensor | None = None,
    ) -> Transformer2DModelOutput:
        """Denoise latents (B, C, T, H, W), or (B, C, H, W) as one frame, at indices (B,).

        Args:
            hidden_states: Noisy latents.
            timestep: Indices 0 .. 999.
            encoder_hidden_states: T5 embeddings (B, tokens, width).
            position_ids: (tokens, 4) group (not used), frame, row and column, where tokens do not stand on their own
                grid; not for 2B.
        """
        x = self.enter(hidden_states)
        sample = self.transformer(
            hidden_states=x.transpose(1, 2),
            encoder_hidden_states=self.cast(encoder_hidden_states),
            timestep=timestep,
            ofs=x.new_full((1,), OFFSET) if self.transformer.ofs_embedding is not None else None,
            image_rotary_emb=self.rotary(self.grid_of(x), position_ids, x.device),
        ).sample
        return self.leave(sample.transpose(1, 2), hidden_states)


def _fit(grid: tuple[int, ...], trained: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """The largest box of the grid's shape inside the trained one, in its middle: (top, left), (bottom, right)."""
    (h, w), (height, width) = grid, trained
    tall = h * width > height * w
    size = (height, round(height / h * w)) if tall else (round(width / w * h), width)
    top, left = round((height - size[0]) / 2.0), round((width - size[1]) / 2.0)
    return (top, left), (top + size[0], left + size[1])
