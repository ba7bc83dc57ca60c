"""Latents as tokens: each patch becomes one token, its channels slowest, then time, height and width within it.

So channels concatenated behind others end up behind them in every token, and new input columns stand for them.
"""

from __future__ import annotations

from torch import Tensor

__all__ = ["pack", "unpack"]


def pack(latents: Tensor, patch: tuple[int, int, int]) -> Tensor:
    """(B, C, T, H, W) to (B, tokens, C * prod(patch)), tokens row-major over (time, height, width)."""
    b, c, *sizes = latents.shape
    (t, h, w), (pt, ph, pw) = (s // p for s, p in zip(sizes, patch, strict=True)), patch
    blocks = latents.reshape(b, c, t, pt, h, ph, w, pw).permute(0, 2, 4, 6, 1, 3, 5, 7)
    return blocks.flatten(4, 7).flatten(1, 3)


def unpack(tokens: Tensor, sizes: tuple[int, int, int], patch: tuple[int, int, int]) -> Tensor:
    """Inverse of :func:`pack` for latents of ``sizes`` (T, H, W); the channels follow from the tokens' width."""
    (t, h, w), (pt, ph, pw) = (s // p for s, p in zip(sizes, patch, strict=True)), patch
    blocks = tokens.reshape(tokens.shape[0], t, h, w, -1, pt, ph, pw).permute(0, 4, 1, 5, 2, 6, 3, 7)
    return blocks.flatten(6, 7).flatten(4, 5).flatten(2, 3)
