"""Linear attention: cost linear in the number of tokens (arXiv 2006.16236; ReLU kernel as in SANA, 2410.10629)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

__all__ = ["dense_linear_attention", "linear_attention"]


def linear_attention(query: Tensor, key: Tensor, value: Tensor, eps: float = 1e-15) -> Tensor:
    """Non-causal, normalised, with the ReLU feature map; accumulated in float32.

    Args:
        query: (B, H, N, d).
        key: (B, H, M, d).
        value: (B, H, M, d).
        eps: keeps an all-negative query or key from dividing by zero.

    Returns:
        (B, H, N, d): sum_j phi(q_i).phi(k_j) v_j / sum_j phi(q_i).phi(k_j).
    """
    query_f, key_f, value_f = F.relu(query).float(), F.relu(key).float(), value.float()
    state = key_f.transpose(-2, -1) @ value_f  # (B, H, d, d)
    norm = query_f @ key_f.sum(-2, keepdim=True).transpose(-2, -1)  # (B, H, N, 1)
    return ((query_f @ state) / (norm + eps)).to(value.dtype)


def dense_linear_attention(query: Tensor, key: Tensor, value: Tensor, eps: float = 1e-15) -> Tensor:
    """The quadratic form of :func:`linear_attention`, its reference."""
    weights = F.relu(query).float() @ F.relu(key).float().transpose(-2, -1)
    return ((weights @ value.float()) / (weights.sum(-1, keepdim=True) + eps)).to(value.dtype)
