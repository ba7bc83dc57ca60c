"""A DiT that denoises several layers at once, each a group of tokens, beside groups of conditions.

LayerDecomp (arXiv 2411.17864): ``[image | mask | noisy background | noisy foreground]``, told apart by type embeddings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor, nn

from ..backbones.dit import DiT
from ..backbones.embedding import PatchEmbed
from ..backbones.variant import extends
from .key_value_cache import KeyValueCache
from .positions import Position
from .token_groups import Looks, TokenGroup, forward_groups, only_itself

__all__ = ["LayerGroupDiT", "layer_looks"]

ATTENTION = ("full", "independent", "in_turn")


def layer_looks(attention: str, layers: Sequence[str], conditions: Sequence[str]) -> Looks:
    """Who may look at whom.

    Args:
        attention: ``"full"``; ``"independent"``: conditions look only at themselves and can be cached, layers look at
            everything; ``"in_turn"``: besides, a layer looks at no later layer, which is what any diffusers transformer
            can do with type embeddings; FLUX can do all three.
        layers: the noisy groups in order.
        conditions: the other groups.

    Raises:
        ValueError: another name.
    """
    if attention not in ATTENTION:
        raise ValueError(f"attention is {attention!r}; choose from {', '.join(ATTENTION)}")
    if attention == "full":
        return {}
    looks: dict[str, tuple[str, ...]] = only_itself(*conditions)
    if attention == "in_turn":
        looks |= {name: (*layers[: i + 1], *conditions) for i, name in enumerate(layers)}
    return looks


class LayerGroupDiT(DiT):
    """DiT over [conditions; noisy layers]: all layers stand on the same places and are told apart by their type.

    The layers share the patch embedding and, without ``own_heads``, the head, so exchanging the type embeddings of two
    layers exchanges what they are; each condition has a patch embedding of its own.

    Args:
        layers: names of the layers, in the order of their channels.
        conditions: channels of each condition by its name.
        attention: see :func:`layer_looks`.
        layer_axis: give layer k the coordinate k on the model's group axis and conditions -1, for a model whose
            ``rope_axes_dim`` has one (Qwen-Image-Layered, arXiv 2512.15603).
        aligned: the conditions' tokens are also added to the layers' tokens of the same place. A large model learns to
            look at its own place in another group; a small one trained from scratch does not get there.
        own_heads: each layer has a head of its own. With a shared one, what tells layers apart must come through every
            block, which a small model that is trained from scratch learns late.
        condition_timestep: what the conditions' timestep is, on the model's scale.
        **kwargs: of :class:`DiT`; ``in_channels`` are those of one layer.
    """

    @extends(DiT)
    @register_to_config
    def __init__(
        self,
        layers: list[str] = ["background", "foreground"],  # noqa: B006 - read only; the parser shows it
        conditions: dict[str, int] | None = None,
        attention: str = "full",
        layer_axis: bool = False,
        aligned: bool = False,
        own_heads: bool = False,
        condition_timestep: float = 0.0,
        **kwargs: Any,
    ) -> None:
        if own_heads:  # one linear map with the channels of all; each layer reads its own
            channels = kwargs.get("out_channels") or kwargs.get("in_channels", 4)
            kwargs["out_channels"] = channels * len(layers)
        super().__init__(**kwargs)
        if own_heads:  # what the layers' predictions have, and what a configuration says
            self.prediction_channels //= len(layers)
            self.register_to_config(out_channels=self.prediction_channels)
        conditions = conditions or {}
        if set(layers) & set(conditions) or len(set(layers)) != len(layers) or not layers:
            raise ValueError(
                f"layers {layers} and conditions {list(conditions)} must have names of their own"
            )
        self.table = layer_looks(attention, layers, list(conditions))
        width = self.config.hidden_size
        self.condition_embed = nn.ModuleDict(
            {name: PatchEmbed(channels, width, self.patch_size) for name, channels in conditions.items()}
        )
        for embed in self.condition_embed.values():
            nn.init.xavier_uniform_(embed.proj.weight.view(width, -1))
            nn.init.zeros_(embed.proj.bias)
        # Not zero: layers whose inputs are alike could never become different.
        self.type_embed = nn.ParameterDict(
            {name: nn.Parameter(0.02 * torch.randn(width)) for name in (*layers, *conditions)}
        )

    def groups(
        self, hidden_states: Tensor, timestep: Tensor, conditions: Mapping[str, Tensor]
    ) -> list[TokenGroup]:
        """The conditions, then the layers."""
        names = list(self.condition_embed)
        if set(conditions) != set(names):
            raise ValueError(
                f"conditions {', '.join(sorted(conditions)) or 'none'}; this model has {', '.join(names)}"
            )
        grid = self.grid_of(hidden_states)
        axis = self.config.layer_axis
        tokens = {name: self.condition_embed[name](conditions[name]) for name in names}
        groups = [
            TokenGroup(
                name,
                tokens=tokens[name],
                grid=grid,
                timestep=self.config.condition_timestep,
                position=Position(group=-1.0 if axis else 0.0),
                type_embedding=self.type_embed[name],
                adapter=name,
            )
            for name in names
        ]
        for k, (name, picture) in enumerate(
            zip(self.config.layers, hidden_states.chunk(len(self.config.layers), dim=1), strict=True)
        ):
            group = TokenGroup(
                name,
                picture,
                timestep=timestep,
                position=Position(group=float(k) if axis else 0.0),
                type_embedding=self.type_embed[name],
                adapter=name,
            )
            if self.config.aligned:
                group.picture, group.grid = None, grid
                group.tokens = self.patch_embed(picture) + torch.stack(list(tokens.values())).sum(0)
            groups.append(group)
        return groups

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        class_labels: Tensor | None = None,
        conditions: Mapping[str, Tensor] | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        pooled_projections: Tensor | None = None,
        cache: KeyValueCache | None = None,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """Predict all layers.

        Args:
            hidden_states: (B, L C, *spatial), the noisy layers one behind the other.
            timestep: (B,).
            class_labels: as in :class:`DiT`.
            conditions: (B, channels, *spatial) by name.
            encoder_hidden_states: as in :class:`DiT`.
            encoder_attention_mask: as in :class:`DiT`.
            pooled_projections: as in :class:`DiT`.
            cache: state of one sampling run; not with ``attention="full"``.
            return_dict: False returns a plain tuple.

        Returns:
            ``.sample`` (B, L C, *spatial).
        """
        samples = forward_groups(
            self,
            self.groups(hidden_states, timestep, conditions or {}),
            self.table,
            tuple(self.config.layers),
            class_labels,
            encoder_hidden_states,
            encoder_attention_mask,
            pooled_projections,
            cache=cache,
        )
        parts = list(samples.values())
        if self.config.own_heads:
            parts = [part.chunk(len(parts), dim=1)[k] for k, part in enumerate(parts)]
        sample = torch.cat(parts, dim=1)
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)
