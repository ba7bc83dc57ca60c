"""Condition by a side branch: copied blocks whose zero-initialised outputs are added to the base's blocks.

ControlNet (arXiv 2302.05543) on a transformer, as VACE (arXiv 2503.07598) and the background branch of GenCompositor
(arXiv 2509.02460) have it. The base stays frozen; a fresh branch adds exactly zero.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from ..backbones.dit import DiT
from ..backbones.pretrained import PretrainedTransformer
from ..backbones.variant import extends
from .channels import widen_input

if TYPE_CHECKING:
    from .pretrained_branch import PretrainedSideBranch

__all__ = ["SideBranch"]


class SideBranch(DiT):
    """The first blocks of a DiT with weights of their own, reading the noisy input and the condition as channels.

    All of its weights are to be trained, and none of the base's: freeze that with ``base.requires_grad_(False)``.
    Its output goes to the base as ``base(x, t, block_controlnet_hidden_states=branch(torch.cat([x, c], 1), t))``.

    Args:
        base_depth: Blocks of the base.
        base_layers: Index of the base's block that each block's output is added behind (VACE). Default: branch block j
            serves the base's blocks i with ``i // ceil(base_depth / depth) == j`` (GenCompositor, ControlNets on DiTs).
        **kwargs: Of :class:`DiT`; ``depth`` is the branch's own, ``in_channels`` counts noisy and condition channels.
    """

    _cp_plan = None  # DiT's ends behind a head, which a branch does not have

    @extends(DiT)
    @register_to_config
    def __init__(self, base_depth: int = 12, base_layers: list[int] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_layers(len(self.blocks), base_depth, base_layers)
        del self.final_layer  # it predicts nothing, and unused weights trouble distributed training
        self.outputs = nn.ModuleList(
            nn.Linear(self.config.hidden_size, self.config.hidden_size) for _ in self.blocks
        )
        for layer in self.outputs:
            nn.init.zeros_(layer.weight)  # the base starts undisturbed
            nn.init.zeros_(layer.bias)

    @classmethod
    def from_base(
        cls,
        base: DiT | PretrainedTransformer,
        depth: int,
        condition_channels: int,
        base_layers: list[int] | None = None,
    ) -> SideBranch | PretrainedSideBranch:
        """Copy the embeddings and the first ``depth`` blocks of a base; columns of the condition start at zero.

        The branch of a diffusers transformer is a :class:`PretrainedSideBranch`.
        """
        if isinstance(base, PretrainedTransformer):
            from .pretrained_branch import PretrainedSideBranch

            return PretrainedSideBranch.from_base(base, depth, condition_channels, base_layers)
        known = inspect.signature(DiT.__init__).parameters
        config = {**{k: v for k, v in base.config.items() if k in known}, "depth": depth}
        branch = cls(base_depth=len(base.blocks), base_layers=base_layers, **config)
        missing = branch.load_state_dict(base.state_dict(), strict=False).missing_keys
        if any(not key.startswith("outputs.") for key in missing):
            raise ValueError(
                f"{type(base).__name__} has no plain weights for {missing[0]}; take its adapters off first"
            )
        widen_input(branch, condition_channels)
        return branch.to(next(base.parameters()).device, next(base.parameters()).dtype)

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        class_labels: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        pooled_projections: Tensor | None = None,
        mask: Tensor | None = None,
        scale: float = 1.0,
    ) -> list[Tensor | None]:
        """What to add behind each block of the base.

        Args:
            hidden_states: (B, C, *spatial), noisy input and condition concatenated.
            timestep: (B,).
            class_labels: As in :class:`DiT`.
            encoder_hidden_states: As in :class:`DiT`.
            encoder_attention_mask: As in :class:`DiT`.
            pooled_projections: As in :class:`DiT`.
            mask: (B, 1, *spatial), above 0 where something is to be generated: nothing is added to a token that
                touches it, so that the branch carries only the known surroundings.
            scale: Strength.

        Returns:
            ``base_depth`` tensors (B, N, D) or None.
        """
        grid = self.grid_of(hidden_states)
        x = self.embed_tokens(hidden_states)  # (B, N, D)
        conditioning = self.block_conditioning(
            self.embed_condition(timestep, class_labels, pooled_projections)
        )
        context = self.context_embed(encoder_hidden_states) if encoder_hidden_states is not None else None
        rope = self.rotary(self.position_ids(grid, x.device)) if self.rotary is not None else None
        keep = None if mask is None else scale * (1 - touched(mask, self.patch_size).to(x.dtype))
        own = []
        for block, output in zip(self.blocks, self.outputs, strict=True):
            x = self.run_block(
                lambda h, block=block: block(
                    h, conditioning, context, encoder_attention_mask, rope=rope, grids=(grid,)
                ),
                x,
            )
            own.append(output(x) * (scale if keep is None else keep))
        return spread(own, self.config.base_depth, self.config.base_layers)


def check_layers(depth: int, base_depth: int, base_layers: Sequence[int] | None) -> None:
    """Refuse a branch that does not fit its base."""
    if depth > base_depth:
        raise ValueError(f"a branch of {depth} blocks on a base of {base_depth}: it can have at most as many")
    if base_layers is not None and (
        len(set(base_layers)) != depth or not all(0 <= i < base_depth for i in base_layers)
    ):
        raise ValueError(f"base_layers {base_layers}: name {depth} different blocks of 0..{base_depth - 1}")


def spread(own: Sequence[Tensor], base_depth: int, base_layers: Sequence[int] | None) -> list[Tensor | None]:
    """The branch's outputs by block of the base, see :class:`SideBranch`."""
    if base_layers is not None:
        behind = dict(zip(base_layers, own, strict=True))
        return [behind.get(i) for i in range(base_depth)]
    interval = -(-base_depth // len(own))
    return [own[i // interval] for i in range(base_depth)]


def touched(mask: Tensor, patch: Sequence[int]) -> Tensor:
    """(B, 1, *spatial) -> (B, N, 1), 1 for tokens with any masked place."""
    pool = F.max_pool2d if len(patch) == 2 else F.max_pool3d
    return torch.flatten(pool((mask > 0).float(), tuple(patch)), 2).transpose(1, 2)
