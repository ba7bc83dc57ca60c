"""What DiffDIS adds to a diffusion transformer, as parts that fit the native DiT and every pretrained one.

"High-Precision Dichotomous Image Segmentation via Probing Diffusion Capacity" (DiffDIS, ICLR 2025). The batch holds
the mask half of every picture first and then the edge half: (2B, ...).

- batch-discriminative embedding (BDE): which half a row belongs to, added to the timestep embedding;
- detail-balancing interactive attention (DBIA): the tokens of the mask half look at those of the edge half and back,
  in the block in the middle;
- scale-wise conditional injection (SWCI): the picture at 1/2, 1/4 and 1/8, as a scale and a shift of the tokens
  behind blocks n/4, n/2 and 3n/4. It starts at nothing.

The paper's backbone is a U-Net, where SWCI sits on the skip connections and DBIA is a copy of the block's own
self-attention; what is said here of a DiT is the same idea on tokens. DBIA starts at random behind a closed gate, also
beside a pretrained transformer: its self-attention was trained on modulated tokens, mostly with rotary positions and
with text in the sequence, none of which is there behind a block, so a copy would not compute what the original does.
The U-Net of :mod:`polydit.core.backbones.diffdis_unet` has the published copy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.attention import Attention
from ...core.conditioning.key_value_bank import swap_halves

__all__ = ["DichotomyParts", "InteractiveAttention", "ScaleInjection", "halves"]

EDGE, MASK = (1.0, 0.0), (0.0, 1.0)


def halves(batch: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Tensor:
    """The labels of mask and edge half for (2B, ...): ``[sin(label), cos(label)]``, (2B, 4).

    A mask row is (0, 0.8415, 1, 0.5403), an edge row (0.8415, 0, 0.5403, 1).
    """
    labels = torch.tensor([MASK, EDGE], device=device, dtype=torch.float32).repeat_interleave(batch, dim=0)
    return torch.cat([labels.sin(), labels.cos()], dim=1).to(dtype or torch.float32)


class InteractiveAttention(nn.Module):
    """DBIA: ``h + gate * proj(attention(queries of one half, keys and values of the other))``, one set of weights.

    Args:
        hidden_size: of the tokens.
        num_heads: heads.
        qk_norm: see :class:`~polydit.core.attention.Attention`.
        gate_init: 0 leaves the tokens as they are at the start; 1 is for weights that are copied from a trained
            self-attention, as in the paper, which the caller does.
    """

    def __init__(
        self, hidden_size: int, num_heads: int, qk_norm: str | None = None, gate_init: float = 0.0
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size, eps=1e-6)
        self.attn = Attention(hidden_size, num_heads, qk_norm)
        self.gate = nn.Parameter(torch.full((hidden_size,), float(gate_init)))

    def forward(self, tokens: Tensor) -> Tensor:
        """(2B, N, D) -> (2B, N, D)."""
        return tokens + self.gate * self.attn(self.norm(tokens), key_value_hook=swap_halves)


class ScaleInjection(nn.Module):
    """SWCI: ``tokens * (1 + gamma) + beta``, both from the picture at one scale; at the start exactly ``tokens``.

    Args:
        channels: of the latents of the picture.
        hidden_size: of the tokens.
    """

    def __init__(self, channels: int, hidden_size: int) -> None:
        super().__init__()
        self.read = nn.Conv2d(channels, hidden_size, 3, padding=1)
        self.norm = nn.GroupNorm(
            1, hidden_size
        )  # the published BatchNorm would tie the pictures of a batch together
        self.scale, self.shift = (nn.Conv2d(hidden_size, hidden_size, 3, padding=1) for _ in range(2))
        for layer in (self.scale, self.shift):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, tokens: Tensor, latents: Tensor, grid: Sequence[int]) -> Tensor:
        """Tokens (B, N, D) of ``grid`` and latents (B, C, h, w) of any size."""
        read = F.gelu(self.norm(self.read(latents.to(self.read.weight.dtype))))
        # torch has no bfloat16 kernel for this
        read = F.interpolate(read.float(), tuple(grid), mode="bilinear", align_corners=False, antialias=True)
        scale, shift = (
            layer(read).flatten(2).transpose(1, 2).to(tokens.dtype) for layer in (self.scale, self.shift)
        )
        return tokens * (1 + scale) + shift


class DichotomyParts(nn.Module):
    """All three for one transformer, by the numbers of its blocks.

    Args:
        hidden_size: width of its tokens.
        num_heads: its heads.
        depth: its blocks.
        channels: of the latents of the picture.
        qk_norm: of DBIA's attention.
        embed: BDE; without it the two halves cannot tell themselves apart.
        interact: DBIA.
        scales: how many scales SWCI injects, 0 to 3.
        interact_gate: see :class:`InteractiveAttention`.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        depth: int,
        channels: int,
        qk_norm: str | None = None,
        embed: bool = True,
        interact: bool = True,
        scales: int = 3,
        interact_gate: float = 0.0,
    ) -> None:
        super().__init__()
        self.embedding = (
            nn.Sequential(nn.Linear(4, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size))
            if embed
            else None
        )
        if self.embedding is not None:
            for parameter in self.embedding.parameters():
                parameter.lr_scale = 10.0  # type: ignore[attr-defined] # as published
        self.interaction = (
            InteractiveAttention(hidden_size, num_heads, qk_norm, interact_gate) if interact else None
        )
        self.injections = nn.ModuleList(ScaleInjection(channels, hidden_size) for _ in range(scales))
        self.middle = (depth - 1) // 2
        self.places = [max(0, depth * (i + 1) // 4 - 1) for i in range(scales)]

    def embed(self, labels: Tensor) -> Tensor:
        """BDE of :func:`halves`, (2B, D)."""
        if self.embedding is None:
            raise ValueError("these parts have no embedding of the halves")
        return self.embedding(labels.to(self.embedding[0].weight.dtype))

    def behind(
        self, block: int, tokens: Tensor, grid: Sequence[int], scales: Sequence[Tensor] | None = None
    ) -> Tensor:
        """What the tokens (2B, N, D) become behind a block.

        Args:
            block: its number.
            tokens: its output.
            grid: of the tokens.
            scales: the picture's latents at 1/2, 1/4, 1/8, each (2B, C, h, w); None injects nothing.
        """
        if self.interaction is not None and block == self.middle:
            tokens = self.interaction(tokens)
        if scales is not None:
            for place, injection, latents in zip(self.places, self.injections, scales, strict=False):
                if place == block:
                    tokens = injection(tokens, latents, grid)
        return tokens

    def hooks(
        self,
        stack: ExitStack,
        blocks: Sequence[nn.Module],
        grid: Sequence[int],
        scales: Sequence[Tensor] | None,
        output: int | None,
        offset: Tensor | None = None,
    ) -> None:
        """Put :meth:`behind` behind the blocks of a transformer that is used as it is, until the stack closes.

        Args:
            stack: removes the hooks.
            blocks: of the transformer.
            grid: of its tokens.
            scales: see :meth:`behind`.
            output: which of a block's outputs are the tokens; None for its only one.
            offset: (2B, D) to add to the tokens behind the first block: BDE, where the timestep is out of reach.
        """
        from ...core.backbones.pretrained.hooks import answering

        def change(number: int) -> Callable[[object], object]:
            def answer(out: object) -> object:
                parts = [out] if output is None else list(out)  # type: ignore[call-overload]
                index = output or 0
                tokens = parts[index]
                if number == 0 and offset is not None:
                    tokens = tokens + offset[:, None].to(tokens.dtype)
                parts[index] = self.behind(number, tokens, grid, scales)
                return parts[0] if output is None else tuple(parts)

            return answer

        for number, block in enumerate(blocks):
            stack.enter_context(answering(block, change(number)))
