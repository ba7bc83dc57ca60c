"""The native block when both of its parts are left out: no norm and no modulation of what nobody reads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..backbones.dit import DiTBlock
from .sites import BranchSite, CacheSite, Unbind, bind

__all__ = ["shortcuts"]


def shortcuts(model: nn.Module, sites: Iterable[CacheSite]) -> list[Unbind]:
    """Bind the native blocks whose attention and MLP both have a plain site; what undoes it.

    The result is that of the block's own ``forward`` bit for bit, which would prepare inputs for parts that then
    answer from memory.
    """
    parts: dict[str, dict[str, BranchSite]] = {}
    for site in sites:
        name, _, child = site.name.rpartition(".")
        if type(site) is BranchSite and site.method == "forward":
            parts.setdefault(name, {})[child] = site
    undo = []
    for name, found in parts.items():
        block = model.get_submodule(name)
        if (
            isinstance(block, DiTBlock)
            and type(block).forward is DiTBlock.forward
            and {"attn", "mlp"} <= set(found)
        ):
            undo.append(bind(block, "forward", _forward(block, found["attn"], found["mlp"])))
    return undo


def _forward(block: DiTBlock, attention: BranchSite, mixing: BranchSite) -> Callable[..., Tensor]:
    inner = block.forward

    def forward(
        hidden_states: Tensor,
        conditioning: Tensor,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        rope: tuple[Tensor, Tensor] | None = None,
        attention_mask: Tensor | None = None,
        grids: Sequence[Sequence[int] | None] = (),
        token_group: Tensor | None = None,
        key_value_hook: Any = None,
    ) -> Tensor:
        if not attention.active or attention.compute or mixing.compute:
            return inner(
                hidden_states,
                conditioning,
                encoder_hidden_states,
                encoder_attention_mask,
                rope,
                attention_mask,
                grids,
                token_group,
                key_value_hook,
            )
        vectors: Sequence[Any] = block.modulation_vectors(conditioning, token_group)
        hidden_states = torch.addcmul(hidden_states, vectors[2], attention.recall())
        if block.cross_attn is not None and encoder_hidden_states is not None:
            hidden_states = hidden_states + block.cross_attn(
                hidden_states, encoder_hidden_states, encoder_attention_mask
            )
        return torch.addcmul(hidden_states, vectors[5], mixing.recall())

    return forward
