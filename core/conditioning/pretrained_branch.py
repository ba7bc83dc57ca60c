"""A side branch for a diffusers transformer: its first blocks once more, with the condition as further channels.

The same mechanism as :mod:`.side_branch` (ControlNet, arXiv 2302.05543; VACE, arXiv 2503.07598; GenCompositor, arXiv
2509.02460), on a base that is used as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from ..backbones.pretrained import PretrainedTransformer, adapt_transformer, model_class
from .channels import widen_input
from .side_branch import check_layers, spread, touched

__all__ = ["PretrainedSideBranch"]

BLOCK_LISTS = ("transformer_blocks", "single_transformer_blocks", "blocks")
HEADS = ("norm_final", "norm_out", "proj_out", "proj_out_1", "proj_out_2")


class PretrainedSideBranch(ModelMixin, ConfigMixin):
    """The first blocks of a diffusers transformer with weights of their own.

    All of its weights are to be trained, and none of the base's. Its output goes to the base as
    ``base(x, t, **text, block_controlnet_hidden_states=branch(torch.cat([x, c], 1), t, **text))``.

    Args:
        transformer: Configuration of the shallow diffusers model, with its ``_class_name``.
        depth: Blocks of the branch.
        base_depth: Blocks of the base.
        base_layers: As in :class:`SideBranch`.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self, transformer: dict[str, Any], depth: int, base_depth: int, base_layers: list[int] | None = None
    ) -> None:
        super().__init__()
        check_layers(depth, base_depth, base_layers)
        shallow = model_class(transformer["_class_name"]).from_config(transformer)
        left = depth
        for name in BLOCK_LISTS:
            if hasattr(shallow, name):
                kept = getattr(shallow, name)[:left]
                setattr(shallow, name, kept)
                left -= len(kept)
        for name in HEADS:  # it predicts nothing, and unused weights trouble distributed training
            if hasattr(shallow, name):
                setattr(shallow, name, _End())
        if isinstance(getattr(shallow, "scale_shift_table", None), nn.Parameter):
            shallow.scale_shift_table.requires_grad_(False)  # of the head, too
        self.branch = adapt_transformer(shallow)
        width = shallow.config.num_attention_heads * shallow.config.attention_head_dim
        self.outputs = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        for layer in self.outputs:
            nn.init.zeros_(layer.weight)  # the base starts undisturbed
            nn.init.zeros_(layer.bias)

    @classmethod
    def from_base(
        cls,
        base: PretrainedTransformer,
        depth: int,
        condition_channels: int,
        base_layers: list[int] | None = None,
    ) -> PretrainedSideBranch:
        """Copy the embeddings and the first ``depth`` blocks of a base; columns of the condition start at zero.

        Raises:
            ValueError: too many blocks, or the base carries adapters.
        """
        check_layers(depth, len(base.blocks), base_layers)
        config = {"_class_name": type(base.transformer).__name__, **base.shallow_config(depth)}
        with torch.device(base.device):
            branch = cls(_plain(config), depth, len(base.blocks), base_layers)
        own = branch.branch.transformer
        missing = own.load_state_dict(base.transformer.state_dict(), strict=False).missing_keys
        if missing:
            raise ValueError(
                f"{type(own).__name__} has no plain weights for {missing[0]}; take its adapters off first"
            )
        widen_input(branch.branch, condition_channels)
        branch.register_to_config(transformer=_plain({**config, "in_channels": own.config.in_channels}))
        nn.Module.to(branch, base.dtype)  # diffusers' own warns, about nothing
        return branch

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        mask: Tensor | None = None,
        scale: float = 1.0,
        **condition: Any,
    ) -> list[Tensor | None]:
        """What to add behind each block of the base.

        Args:
            hidden_states: (B, C, *spatial), noisy latents and condition concatenated.
            timestep: As the base takes it.
            mask: (B, 1, *spatial), above 0 where something is to be generated: nothing is added to a token that
                touches it.
            scale: Strength.
            **condition: Of the base's ``forward``.

        Returns:
            ``base_depth`` tensors (B, tokens, width) or None.
        """
        found: list[Tensor] = []
        which = self.branch.hidden_output

        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            found.append(output if which is None else output[which])

        handles = [block.register_forward_hook(keep) for block in self.branch.blocks]
        try:
            self.branch(hidden_states, timestep, **condition)
        except _Stop:
            pass
        finally:
            for handle in handles:
                handle.remove()
        keep_tokens: Tensor | float = scale
        if mask is not None:
            if self.branch.video and mask.ndim == 4:
                mask = mask.unsqueeze(2)
            keep_tokens = scale * (1 - touched(mask, self.branch.patch)).to(found[0].dtype)
        own = [layer(tokens) * keep_tokens for layer, tokens in zip(self.outputs, found, strict=True)]
        return spread(own, self.config.base_depth, self.config.base_layers)


class _Stop(Exception):
    """The blocks are over, and nobody wants the head."""


class _End(nn.Module):
    """In the place of a head."""

    def forward(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        raise _Stop


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """What describes the model, without diffusers' notes about where it came from."""
    listed = {name: list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
              for name, value in config.items()}  # fmt: skip
    return {
        name: value for name, value in listed.items() if name == "_class_name" or not name.startswith("_")
    }
