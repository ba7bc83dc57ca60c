"""GenCompositor's released checkpoints (arXiv 2509.02460): the transformer of two streams and its background branch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor, nn

from ..backbones.compositing import CompositingTransformer
from ..backbones.official import load_matching
from ..backbones.pretrained.compositing import PretrainedCompositing
from .pretrained_branch import PretrainedSideBranch
from .side_branch import spread, touched

__all__ = ["GenCompositor", "gencompositor_from_official", "gencompositor_to_official"]

BASE_GRID = (30, 45)  # tokens of 480 x 720 pixels, on which the released code counts places whatever the size


class GenCompositor(nn.Module):
    """Both parts, behind the official call.

    Args:
        backbone: the transformer of two streams.
        branch: the background's side branch.
    """

    def __init__(self, backbone: PretrainedCompositing, branch: PretrainedSideBranch) -> None:
        super().__init__()
        self.backbone, self.branch = backbone, branch
        backbone.layout, backbone.base_grid = "released", BASE_GRID
        side: Any = branch.branch
        side.base_grid = BASE_GRID

    def hints(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        branch_cond: Tensor,
        timestep: Tensor,
        conditioning_scale: float = 1.0,
    ) -> list[Tensor]:
        """What each block of the branch says, (B, tokens, D).

        Args:
            hidden_states: (B, T, 16, H, W), noisy.
            encoder_hidden_states: (B, tokens, width).
            branch_cond: (B, T, 17, H, W), masked background and mask.
            timestep: (B,).
            conditioning_scale: strength.
        """
        x = torch.cat([hidden_states, branch_cond], 2).transpose(1, 2)
        found = self.branch(
            x, timestep, scale=conditioning_scale, encoder_hidden_states=encoder_hidden_states
        )
        unique: list[Tensor] = []
        for hint in found:
            if not unique or hint is not unique[-1]:
                unique.append(hint)
        return unique

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        timestep: Tensor,
        branch_block_samples: Sequence[Tensor] | None = None,
        branch_block_masks: Tensor | None = None,
        add_first: bool = False,
    ) -> Transformer2DModelOutput:
        """Velocity, ``.sample`` (B, T, 16, H, W).

        Args:
            hidden_states: (B, T, 48, H, W): noisy, masked background, foreground.
            encoder_hidden_states: (B, tokens, width).
            timestep: (B,).
            branch_block_samples: of :meth:`hints`.
            branch_block_masks: (B, T, 1, H, W), 1 where something is put in.
            add_first: one sample behind each of the first blocks only.
        """
        x = hidden_states.transpose(1, 2)
        background, foreground = x[:, :32], x[:, 32:]
        added: list[Tensor | None] | None = None
        if branch_block_samples is not None:
            own = list(branch_block_samples)
            if branch_block_masks is not None:
                keep = 1 - touched(branch_block_masks.transpose(1, 2), self.backbone.patch).to(own[0].dtype)
                own = [hint * keep for hint in own]
            depth = len(self.backbone.blocks)
            added = spread(own, depth, list(range(len(own))) if add_first else None)
        sample = self.backbone(
            background,
            timestep,
            encoder_hidden_states=encoder_hidden_states,
            foreground=foreground,
            block_controlnet_hidden_states=added,
        ).sample
        return Transformer2DModelOutput(sample=sample.transpose(1, 2))


def gencompositor_from_official(
    state_dict: dict[str, Tensor], branch_config: dict[str, Any] | None = None, **config: Any
) -> GenCompositor:
    """The native model; keys begin with ``transformer.`` and ``branch.``.

    Args:
        state_dict: of both parts.
        branch_config: of the branch, as the official one; by default the main one's with two blocks.
        **config: of the transformer.
    """
    main = {k.removeprefix("transformer."): v for k, v in state_dict.items() if k.startswith("transformer.")}
    side = {k.removeprefix("branch."): v for k, v in state_dict.items() if k.startswith("branch.")}
    transformer = load_matching(CompositingTransformer(**config), main, "gencompositor")
    options = {**config, **(branch_config or {"num_layers": 2})}
    channels = int(side["patch_embed.proj.weight"].shape[1])
    shallow = {"_class_name": "CogVideoXTransformer3DModel", **options, "in_channels": channels}
    branch = PretrainedSideBranch(shallow, options["num_layers"], config["num_layers"])
    named = {_inner(name): value for name, value in side.items()}
    return GenCompositor(PretrainedCompositing(transformer), load_matching(branch, named, "gencompositor"))


def gencompositor_to_official(model: GenCompositor) -> dict[str, Tensor]:
    """The inverse of :func:`gencompositor_from_official`."""
    main = {f"transformer.{name}": v for name, v in model.backbone.transformer.state_dict().items()}
    side = {f"branch.{_outer(name)}": v for name, v in model.branch.state_dict().items()}
    return {**main, **side}


def _inner(name: str) -> str:
    if name.startswith("branch_blocks."):
        return name.replace("branch_blocks.", "outputs.", 1)
    return f"branch.transformer.{name}"


def _outer(name: str) -> str:
    if name.startswith("outputs."):
        return name.replace("outputs.", "branch_blocks.", 1)
    return name.removeprefix("branch.transformer.")
