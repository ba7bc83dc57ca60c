"""Multi-head attention as a diffusion transformer uses it: packed projections, query-key norm, rotary positions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor, nn

from .dense import attend
from .projection import Projection
from .rotary import apply_rotary
from .window import window_attention

__all__ = ["Attention", "CrossAttention", "KeyValueHook", "RMSNorm", "attend"]

KeyValueHook = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Receives the keys and values (B, H, N, d) of a layer and returns those that the queries will see."""


class _Backend:
    """What diffusers sets on an attention module: its kernel and its context-parallel plan."""

    _attention_backend: object | None = None
    _parallel_config: object | None = None

    @property
    def is_default(self) -> bool:
        return self._attention_backend is None and self._parallel_config is None


class RMSNorm(nn.RMSNorm):
    """Root-mean-square norm that stays on the fused kernel under autocast, where the gain is wider than the input."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        # Heads are strided views, and the kernel for those is three times slower than a copy and the plain kernel.
        return F.rms_norm(x.contiguous(), self.normalized_shape, self.weight.to(x.dtype), self.eps)


def make_qk_norm(kind: str | None, head_dim: int) -> nn.Module:
    """The norm on each head's queries and keys: ``None``, ``"rms"`` (eps 1e-6) or ``"layer"`` (eps 1e-5)."""
    if kind is None:
        return nn.Identity()
    if kind == "rms":
        return RMSNorm(head_dim, eps=1e-6)
    if kind == "layer":
        return nn.LayerNorm(head_dim, eps=1e-5)
    raise ValueError(f"qk_norm is {kind!r}; choose from None, 'rms', 'layer'")


class Attention(nn.Module, AttentionModuleMixin):
    """Self-attention with packed ``qkv`` and output ``proj``, both with bias.

    Args:
        hidden_size: width D.
        num_heads: D must divide by it.
        qk_norm: norm on each head's queries and keys before the rotary positions.
    """

    _default_processor_cls = _Backend
    _available_processors = (_Backend,)
    _supports_qkv_fusion = False  # the projections are packed already
    is_cross_attention = False

    def __init__(self, hidden_size: int, num_heads: int, qk_norm: str | None = None) -> None:
        super().__init__()
        if hidden_size % num_heads:
            raise ValueError(f"hidden_size {hidden_size} does not divide by num_heads {num_heads}")
        self.head_dim = hidden_size // num_heads
        self.qkv = Projection(hidden_size, 3 * hidden_size)
        # Tensor parallelism shards each of the three packed parts by itself.
        self.qkv._tp_packed_col_blocks = [hidden_size] * 3  # type: ignore[assignment]
        self.q_norm = make_qk_norm(qk_norm, self.head_dim)
        self.k_norm = make_qk_norm(qk_norm, self.head_dim)
        self.proj = Projection(hidden_size, hidden_size)
        self.processor = _Backend()

    def heads(self, x: Tensor) -> Tensor:
        """(B, N, H*d) -> (B, H, N, d). The head count is read from the width, so a sharded layer works."""
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def project(
        self, hidden_states: Tensor, rope: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys (normalised, rotated) and values, each (B, H, N, d)."""
        query, key, value = (self.heads(part) for part in self.qkv(hidden_states).chunk(3, dim=-1))
        query, key = self.q_norm(query), self.k_norm(key)
        if rope is not None:
            query, key = apply_rotary(query, *rope), apply_rotary(key, *rope)
        return query, key, value

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None = None,
        window: Sequence[int] | None = None,
        grid: Sequence[int] | None = None,
    ) -> Tensor:
        """Mix the values, by window or globally: (B, N, D) before the output projection."""
        if window is not None:
            if grid is None:
                raise ValueError("window attention needs the grid of its tokens")
            out = window_attention(query, key, value, grid, window)
        elif self.processor.is_default:
            out = attend(query, key, value, mask)
        else:
            out = dispatch_attention_fn(
                *(t.transpose(1, 2) for t in (query, key, value)),
                attn_mask=mask,
                backend=self.processor._attention_backend,
                parallel_config=self.processor._parallel_config,
            ).transpose(1, 2)
        return out.transpose(1, 2).flatten(2)

    def forward(
        self,
        hidden_states: Tensor,
        rope: tuple[Tensor, Tensor] | None = None,
        mask: Tensor | None = None,
        window: Sequence[int] | None = None,
        grid: Sequence[int] | None = None,
        key_value_hook: KeyValueHook | None = None,
    ) -> Tensor:
        """Attend within the sequence.

        Args:
            hidden_states: (B, N, D).
            rope: cosines and sines, each (N, d) or (B, 1, N, d).
            mask: boolean, True = may look, broadcastable to (B, H, N, M).
            window: window size per axis; tokens then look only inside their window of ``grid``.
            grid: token grid, row-major; N is its product (or a multiple: several groups on one grid).
            key_value_hook: may record or extend keys and values (cached conditions, reference features).

        Returns:
            (B, N, D).
        """
        query, key, value = self.project(hidden_states, rope)
        if key_value_hook is not None:
            key, value = key_value_hook(key, value)
        return self.proj(self.attend(query, key, value, mask, window, grid))


class CrossAttention(nn.Module, AttentionModuleMixin):
    """Attention from the tokens to a text or feature sequence of the same width (PixArt-alpha, arXiv 2310.00426)."""

    _default_processor_cls = _Backend
    _available_processors = (_Backend,)
    _supports_qkv_fusion = False
    is_cross_attention = True

    def __init__(self, hidden_size: int, num_heads: int, qk_norm: str | None = None) -> None:
        super().__init__()
        self.head_dim = hidden_size // num_heads
        self.q = Projection(hidden_size, hidden_size)
        self.kv = Projection(hidden_size, 2 * hidden_size)
        self.kv._tp_packed_col_blocks = [hidden_size] * 2  # type: ignore[assignment]
        self.q_norm = make_qk_norm(qk_norm, self.head_dim)
        self.k_norm = make_qk_norm(qk_norm, self.head_dim)
        self.proj = Projection(hidden_size, hidden_size)
        self.processor = _Backend()

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """(B, N, D) looks at (B, M, D); ``mask`` is boolean (B, M), True = a real token."""
        query, key, value = (
            part.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for part in (self.q(hidden_states), *self.kv(encoder_hidden_states).chunk(2, dim=-1))
        )
        query, key = self.q_norm(query), self.k_norm(key)
        if mask is not None:
            mask = mask[:, None, None, :].bool()
        return self.proj(attend(query, key, value, mask).transpose(1, 2).flatten(2))
