"""Attention with masks, windows and linear kinds, each beside its dense reference."""

from __future__ import annotations

from .attention import Attention, CrossAttention, attend
from .linear import dense_linear_attention, linear_attention
from .masks import band_mask, block_mask, circle_mask, group_mask, text_joint_mask, window_mask
from .projection import Projection, project_gelu
from .window import window_attention

__all__ = [
    "Attention",
    "CrossAttention",
    "Projection",
    "attend",
    "band_mask",
    "block_mask",
    "circle_mask",
    "dense_linear_attention",
    "group_mask",
    "linear_attention",
    "project_gelu",
    "text_joint_mask",
    "window_attention",
    "window_mask",
]
