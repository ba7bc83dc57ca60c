"""The inside of an attention product: queries, keys, values, logits and probabilities of any backbone.

Backbones call a fused kernel that never forms the probabilities, so they are computed beside it; the kernel's
own result is what flows on unless something was replaced.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .sites import Site, Visit

__all__ = ["AttentionProbe"]


class AttentionProbe(TorchFunctionMode):
    """Sees the calls of ``scaled_dot_product_attention`` that watched attention modules make."""

    def __init__(self, visit: Visit) -> None:
        super().__init__()
        self.visit = visit
        self.sites: dict[nn.Module, dict[str, str]] = {}  # module -> part -> site name
        self.running: list[nn.Module] = []

    def watch(self, site: Site) -> list[Any]:
        """Hook the site's module so that its products are seen; the hooks' handles."""
        known = site.module in self.sites
        self.sites.setdefault(site.module, {})[site.part] = site.name
        if known:
            return []
        return [
            site.module.register_forward_pre_hook(lambda module, args: self.running.append(module)),
            site.module.register_forward_hook(lambda module, args, out: self._left(), always_call=True),
        ]

    def _left(self) -> None:
        self.running.pop()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention or not self.running:
            return func(*args, **kwargs)
        names = self.sites[self.running[-1]]

        def see(part: str, value: Tensor) -> Tensor:
            return self.visit(names[part], value) if part in names else value

        call = dict(zip(("query", "key", "value", "attn_mask", "dropout_p", "is_causal"), args, strict=False))
        call |= kwargs
        for part, argument in (("q", "query"), ("k", "key"), ("v", "value")):
            call[argument] = see(part, call[argument])
        if "logits" in names or "probs" in names:
            logits = _logits(**call)
            seen = see("logits", logits)
            probs = seen.softmax(-1)
            seen_probs = see("probs", probs)
            if seen is not logits or seen_probs is not probs:
                value = call["value"]
                return seen_probs.to(value.dtype) @ _repeat_heads(value, seen_probs.shape[1])
        return func(**call)


def _logits(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """The softmax's argument as the fused kernel has it, float32."""
    key = _repeat_heads(key, query.shape[1])
    logits = query.float() @ key.float().mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        allowed = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).tril()
        logits = logits.masked_fill(~allowed, float("-inf"))
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        return logits.masked_fill(~attn_mask, float("-inf"))
    return logits if attn_mask is None else logits + attn_mask


def _repeat_heads(tensor: Tensor, heads: int) -> Tensor:
    """Grouped-query attention: every key and value head serves several query heads."""
    return tensor if tensor.shape[1] == heads else tensor.repeat_interleave(heads // tensor.shape[1], dim=1)
