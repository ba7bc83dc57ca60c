"""Sparse attention: bands and blocks, each beside its dense reference, with the log-sum-exp of the rows.

The log-sum-exp says how much of the full softmax a row of a sparse one holds, which is what methods that choose or
repair sparsity work with.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "attend_with_lse",
    "band_attend",
    "block_attend",
    "block_attend_flex",
    "block_mass",
    "expand_blocks",
    "row_lse",
    "to_blocks",
]


def attend_with_lse(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """Dense attention and the log-sum-exp of each row of scores: the oracle of the sparse kinds.

    Args:
        query: (B, H, N, d).
        key: (B, H, M, d).
        value: (B, H, M, d).
        mask: boolean, True = may look, broadcastable to (B, H, N, M).
        scale: of the products; default ``d ** -0.5``.

    Returns:
        (B, H, N, d), and (B, H, N) float32; a row that sees nothing is zero, its log-sum-exp minus infinity.
    """
    scores = _scores(query, key, scale)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return _mix(scores, value)


def row_lse(query: Tensor, key: Tensor, scale: float | None = None, rows: int = 256) -> Tensor:
    """Log-sum-exp (B, H, N) of the full scores, some rows at a time: the square is never held."""
    return torch.cat([_scores(part, key, scale).logsumexp(-1) for part in query.split(rows, dim=2)], dim=2)


def band_attend(
    query: Tensor, key: Tensor, value: Tensor, radius: int, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """Each token sees those at most ``radius`` places away, in O(N radius): ``band_mask`` without the square.

    Args:
        query: (B, H, N, d).
        key: as the query.
        value: as the query.
        radius: of the band.
        scale: of the products.

    Returns:
        As :func:`attend_with_lse`.
    """
    length = query.shape[2]
    block = max(radius, 16)
    count = -(-length // block)
    tail = count * block - length
    width = block + 2 * radius
    padded = F.pad(query, (0, 0, 0, tail)).unflatten(2, (count, block))  # (B, H, n, b, d)
    keys, values = (
        F.pad(t, (0, 0, radius, radius + tail)).unfold(2, width, block).transpose(-1, -2)
        for t in (key, value)
    )  # (B, H, n, b + 2r, d)
    row = torch.arange(block, device=query.device)[:, None]
    column = torch.arange(width, device=query.device)[None]
    start = torch.arange(count, device=query.device)[:, None, None] * block
    place = start + column - radius
    mask = (column - radius - row).abs() <= radius
    mask = mask & (place >= 0) & (place < length)  # (n, b, b + 2r)
    scores = _scores(padded, keys, scale).masked_fill(~mask, float("-inf"))
    out, lse = _mix(scores, values)
    return out.flatten(2, 3)[:, :, :length], lse.flatten(2, 3)[:, :, :length]


def to_blocks(length: int, block: int) -> int:
    """How many blocks a sequence has; the last may be shorter."""
    return -(-length // block)


def expand_blocks(blocks: Tensor, queries: int, keys: int, block: int) -> Tensor:
    """A mask (..., N, M) of tokens from one of blocks (..., n, m)."""
    mask = blocks.repeat_interleave(block, -2).repeat_interleave(block, -1)
    return mask[..., :queries, :keys]


def block_mass(
    query: Tensor,
    key: Tensor,
    lse: Tensor,
    block: int,
    mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Softmax mass between blocks (B, H, n, m): the sum of ``exp(score - lse)``, a row of blocks at a time.

    With the log-sum-exp of this very query and key each row sums to the number of its queries; with that of an earlier
    step it is an estimate.

    Args:
        query: (B, H, N, d).
        key: (B, H, M, d).
        lse: (B, H, N).
        block: tokens of a block.
        mask: boolean (B, H, n, m) of blocks; others are left at zero.
        scale: of the products.
    """
    keys, columns = key.shape[2], to_blocks(key.shape[2], block)
    rows = []
    for index, part in enumerate(query.split(block, dim=2)):
        at = slice(index * block, index * block + part.shape[2])
        mass = torch.exp(_scores(part, key, scale) - lse[:, :, at, None]).sum(2)  # (B, H, M)
        mass = F.pad(mass, (0, columns * block - keys)).unflatten(-1, (columns, block)).sum(-1)
        rows.append(mass)
    total = torch.stack(rows, dim=2)
    return total if mask is None else total * mask


def block_attend(
    query: Tensor, key: Tensor, value: Tensor, blocks: Tensor, block: int, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """Attention between the chosen blocks only: keys of a row of blocks are gathered, so cost follows what is kept.

    Args:
        query: (B, H, N, d).
        key: (B, H, M, d).
        value: (B, H, M, d).
        blocks: boolean (B, H, n, m), or broadcastable: which blocks of keys a block of queries sees; at least one.
        block: tokens of a block.
        scale: of the products.

    Returns:
        As :func:`attend_with_lse` under :func:`expand_blocks`.
    """
    batch, heads, length, dim = query.shape
    keys, columns = key.shape[2], to_blocks(key.shape[2], block)
    blocks = blocks.expand(batch, heads, to_blocks(length, block), columns)
    most = int(blocks.sum(-1).max())
    # The kept blocks of each row first; rows with fewer are filled up and masked.
    order = blocks.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)[..., :most]
    kept = blocks.gather(-1, order)  # (B, H, n, most)
    real = F.pad(torch.ones(keys, dtype=torch.bool, device=key.device), (0, columns * block - keys))
    mask = real.view(columns, block)[order] & kept[..., None]  # (B, H, n, most, b)

    def gather(tensor: Tensor) -> Tensor:
        tiles = F.pad(tensor, (0, 0, 0, columns * block - keys)).unflatten(2, (columns, block))
        index = order[..., None, None].expand(*order.shape, block, dim).flatten(2, 3)
        return tiles.gather(2, index).unflatten(2, order.shape[2:]).flatten(3, 4)  # (B, H, n, most b, d)

    padded = F.pad(query, (0, 0, 0, blocks.shape[2] * block - length)).unflatten(2, (-1, block))
    scores = _scores(padded, gather(key), scale).masked_fill(~mask.flatten(-2)[..., None, :], float("-inf"))
    out, lse = _mix(scores, gather(value))
    return out.flatten(2, 3)[:, :, :length], lse.flatten(2, 3)[:, :, :length]


def block_attend_flex(
    query: Tensor, key: Tensor, value: Tensor, blocks: Tensor, block: int, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """:func:`block_attend` by FlexAttention, which is fast where it is compiled: on a GPU.

    Args:
        query: (B, H, N, d).
        key: (B, H, M, d).
        value: (B, H, M, d).
        blocks: as there.
        block: as there.
        scale: of the products.

    Returns:
        As there.
    """
    from torch.nn.attention import flex_attention as flex

    rows, columns = to_blocks(query.shape[2], block), to_blocks(key.shape[2], block)
    blocks = blocks.expand(*query.shape[:2], rows, columns)
    order = blocks.to(torch.uint8).argsort(dim=-1, descending=True, stable=True).to(torch.int32)
    length = key.shape[2]
    plan = flex.BlockMask.from_kv_blocks(
        blocks.sum(-1).to(torch.int32),
        order,
        BLOCK_SIZE=block,
        mask_mod=lambda b, h, q, k: blocks[b, h, q // block, k // block] & (k < length),
        seq_lengths=(query.shape[2], length),
    )
    function: Any = flex.flex_attention
    more: dict[str, Any] = {}
    if query.is_cuda:
        function = _compiled_flex()
        # The kernel's own tiles must divide the blocks, and it would take larger ones.
        more["kernel_options"] = {"BLOCK_M": min(block, 64), "BLOCK_N": min(block, 64)}
    if hasattr(flex, "AuxRequest"):
        wanted = flex.AuxRequest(lse=True)
        out, extra = function(query, key, value, block_mask=plan, scale=scale, return_aux=wanted, **more)
        return out, extra.lse
    return function(
        query, key, value, block_mask=plan, scale=scale, return_lse=True, **more
    )  # torch below 2.9


@cache
def _compiled_flex() -> Any:
    from torch.nn.attention import flex_attention as flex

    return torch.compile(flex.flex_attention)


def _scores(query: Tensor, key: Tensor, scale: float | None) -> Tensor:
    return (query.float() @ key.float().mT) * (query.shape[-1] ** -0.5 if scale is None else scale)


def _mix(scores: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    lse = scores.logsumexp(-1)
    weights = torch.exp(scores - lse.masked_fill(lse.isneginf(), 0.0)[..., None])
    return (weights @ value.float()).to(value.dtype), lse
