"""Attention inside non-overlapping windows of an N-d grid."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch.nn.functional as F
from torch import Tensor

from .dense import attend

__all__ = ["window_attention"]


def _cut(x: Tensor, grid: Sequence[int], window: Sequence[int]) -> Tensor:
    """(B, H, S*prod(grid), d) -> (B*windows, H, S*prod(window), d); S sequences share the grid."""
    batch, heads, tokens, dim = x.shape
    groups = tokens // _volume(grid)
    counts = [g // w for g, w in zip(grid, window, strict=True)]
    n = len(grid)
    x = x.reshape(batch, heads, groups, *chain.from_iterable(zip(counts, window, strict=True)), dim)
    outer = [3 + 2 * i for i in range(n)]
    inner = [4 + 2 * i for i in range(n)]
    return x.permute(0, *outer, 1, 2, *inner, 3 + 2 * n).reshape(-1, heads, groups * _volume(window), dim)


def _join(x: Tensor, batch: int, grid: Sequence[int], window: Sequence[int]) -> Tensor:
    """The inverse of :func:`_cut`."""
    heads, dim = x.shape[1], x.shape[3]
    groups = x.shape[2] // _volume(window)
    counts = [g // w for g, w in zip(grid, window, strict=True)]
    n = len(grid)
    x = x.reshape(batch, *counts, heads, groups, *window, dim)
    order = [0, n + 1, n + 2, *chain.from_iterable((1 + i, n + 3 + i) for i in range(n)), 2 * n + 3]
    return x.permute(order).reshape(batch, heads, groups * _volume(grid), dim)


def _volume(sizes: Sequence[int]) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total


def _pad(x: Tensor, grid: Sequence[int], padded: Sequence[int]) -> Tensor:
    batch, heads, tokens, dim = x.shape
    x = x.reshape(batch * heads, tokens // _volume(grid), *grid, dim)
    widths = list(
        chain.from_iterable((0, p - g) for g, p in zip(reversed(grid), reversed(padded), strict=True))
    )
    return F.pad(x, [0, 0, *widths]).reshape(batch, heads, -1, dim)


def window_attention(
    query: Tensor, key: Tensor, value: Tensor, grid: Sequence[int], window: Sequence[int]
) -> Tensor:
    """Each token looks at the tokens of its own window only; equal to dense attention under ``window_mask``.

    Several sequences on the same grid (a noisy picture and its condition) may be concatenated: the windows
    at the same place then see each other. A grid that does not divide by the window is padded at its far
    ends and the padding is masked out.

    Args:
        query: (B, H, S*prod(grid), d).
        key: as the query.
        value: as the query.
        grid: tokens per axis, row-major.
        window: window size per axis.

    Returns:
        (B, H, S*prod(grid), d).
    """
    grid = tuple(grid)
    window = tuple(min(w, g) for w, g in zip(window, grid, strict=True))
    padded = tuple(-(-g // w) * w for g, w in zip(grid, window, strict=True))
    batch, heads, tokens, dim = query.shape
    mask = None
    if padded != grid:
        real = query.new_ones(1, 1, tokens, 1)
        real = _cut(_pad(real, grid, padded), padded, window).squeeze(-1).bool()  # (windows, 1, S*w)
        mask = real[:, :, None, :].repeat(batch, 1, 1, 1)
        query, key, value = (_pad(t, grid, padded) for t in (query, key, value))
    query, key, value = (_cut(t, padded, window) for t in (query, key, value))
    out = _join(attend(query, key, value, mask), batch, padded, window)
    if padded != grid:
        out = out.reshape(batch, heads, tokens // _volume(grid), *padded, dim)
        out = out[(slice(None), slice(None), slice(None), *(slice(0, g) for g in grid))]
        out = out.reshape(batch, heads, tokens, dim)
    return out
