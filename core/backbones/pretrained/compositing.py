"""GenCompositor's transformer (arXiv 2509.02460): CogVideoX over a video and what is put into it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor

from .cogvideox import OFFSET, PretrainedCogVideoX

__all__ = ["LAYOUTS", "PretrainedCompositing", "stream_labels"]

LAYOUTS = ("paper", "released")


def stream_labels(grid: tuple[int, int, int], layout: str) -> Tensor:
    """Places (2 t h w, 3) of the tokens of both streams: frame, row and column; no two are the same.

    Args:
        grid: (t, h, w) tokens of a stream.
        layout: ``paper``: the second stream stands below the first, at rows from h on, at the same times.
            ``released``: what the released weights were trained with: the places of a (t, 2 h, w) grid, frame by frame,
            dealt out to the first stream and then to the second, so that frame n of the first stands at time n // 2.

    Raises:
        ValueError: the layout is unknown.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout {layout!r}: choose {' or '.join(LAYOUTS)}")
    t, h, w = grid
    whole = torch.cartesian_prod(torch.arange(t), torch.arange(2 * h), torch.arange(w))
    if layout == "released":
        return whole
    upper = whole[:, 1] < h
    return torch.cat([whole[upper], whole[~upper]])


class PretrainedCompositing(PretrainedCogVideoX):
    """``CompositingTransformer``: latents and known latents as channels, and the latents of what is put in.

    Attributes:
        layout: of the rotary positions, see :func:`stream_labels`; set it to ``released`` for the released weights.
    """

    layout = "paper"

    def __call__(
        self,
        *args: Any,
        block_controlnet_hidden_states: Sequence[Tensor | None] | None = None,
        **kwargs: Any,
    ) -> Transformer2DModelOutput:
        """Run; what is added behind blocks reaches the first stream only."""
        hints = block_controlnet_hidden_states
        if hints is not None:
            hints = [None if hint is None else F.pad(hint, (0, 0, 0, hint.shape[1])) for hint in hints]
        return super().__call__(*args, block_controlnet_hidden_states=hints, **kwargs)

    def joint_rotary(self, grid: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor] | None:
        """Cosines and sines of both streams' tokens, as of one grid of twice the height; None for 2B."""
        if not self.config.use_rotary_positional_embeddings:
            return None
        t, h, w = grid
        height, width = self.trained_grid
        labels = stream_labels((t, h, w), self.layout).to(device).float()
        return self._rotary_at(labels, (t, 2 * h, w), (2 * height, width))

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        foreground: Tensor,
    ) -> Transformer2DModelOutput:
        """Denoise.

        Args:
            hidden_states: (B, 32, T, H, W), noisy latents and those of the known background.
            timestep: Indices 0 .. 999.
            encoder_hidden_states: T5 embeddings (B, tokens, width).
            foreground: (B, 16, T, H, W), clean latents of what is put in.
        """
        x = self.enter(hidden_states)
        other = F.pad(foreground.to(x.dtype), (0, 0, 0, 0, 0, 0, x.shape[1] - foreground.shape[1], 0))
        both = torch.cat([x, other], 2)
        sample = self.transformer(
            hidden_states=both.transpose(1, 2),
            encoder_hidden_states=self.cast(encoder_hidden_states),
            timestep=timestep,
            ofs=x.new_full((1,), OFFSET) if self.transformer.ofs_embedding is not None else None,
            image_rotary_emb=self.joint_rotary(self.grid_of(x), x.device),
        ).sample
        return self.leave(sample[:, : x.shape[2]].transpose(1, 2), hidden_states)
