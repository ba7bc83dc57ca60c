"""Dense attention, and which of torch's ways to compute it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import has_torch_function

__all__ = ["PLAIN_KEYS", "attend"]

# Up to this many keys three plain products beat torch's fused kernel for bfloat16 on a CPU: 1.5 times forward, 1.7 to
# 4 times with the backward pass (64 to 1024 keys, heads of 32 and 64). Beyond it the score matrix costs too much.
PLAIN_KEYS = 1024


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention.

    Args:
        query: (B, H, N, d).
        key: (B, H, M, d).
        value: (B, H, M, d).
        mask: boolean, True = may look; broadcastable to (B, H, N, M).

    Returns:
        (B, H, N, d).
    """
    plain = query.device.type == "cpu" and query.dtype == torch.bfloat16 and key.shape[-2] <= PLAIN_KEYS
    if plain and not has_torch_function((query, key, value)):  # a probe waits for the fused call
        return _attend_plainly(query, key, value, mask)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def _attend_plainly(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    heads = query.shape[:2]
    query, key, value = (t.flatten(0, 1) for t in (query, key, value))
    scores = torch.baddbmm(
        query.new_zeros(1), query, key.transpose(1, 2), beta=0, alpha=query.shape[-1] ** -0.5
    )
    if mask is not None:
        scores = scores.unflatten(0, heads).masked_fill(~mask, float("-inf")).flatten(0, 1)
    return torch.bmm(scores.softmax(-1), value).unflatten(0, heads)
