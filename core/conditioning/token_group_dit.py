"""A DiT whose forward takes condition pictures by name: token groups as a model that trains, saves and loads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor, nn

from ..backbones.dit import DiT
from ..backbones.variant import extends
from .key_value_cache import KeyValueCache
from .positions import Position
from .token_groups import Looks, TokenGroup, forward_groups, only_itself, separate

__all__ = ["TokenGroupDiT"]

PLACES = ("shared", "beside", "below", "interpolated")


class TokenGroupDiT(DiT):
    """DiT over [target; conditions], each condition with its own place, type embedding and adapter.

    The type embeddings start at zero. The adapters are group LoRAs of the same name as the condition
    (:func:`~polydit.core.adapters.inject_group`); a condition without one runs through the plain weights. Conditions
    have timestep ``condition_timestep``.

    Args:
        conditions: Place of each condition by its name: ``"shared"`` (aligned with the target), ``"beside"`` or
            ``"below"`` (shifted by the target's width or height), ``"interpolated"`` (aligned, another resolution).
        attention: ``"independent"``: conditions look only at themselves and can be cached (EasyControl);
            ``"separate"``: conditions look at everything but each other (OminiControl); ``"full"``.
        condition_timestep: What the conditions' timestep is, on the model's scale; 0 is clean under the project's time.
        **kwargs: Of :class:`DiT`.
    """

    @extends(DiT)
    @register_to_config
    def __init__(
        self,
        conditions: dict[str, str] | None = None,
        attention: str = "independent",
        condition_timestep: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        conditions = conditions or {}
        for name, place in conditions.items():
            if place not in PLACES or name == "target":
                raise ValueError(
                    f"condition {name!r} at {place!r}: choose from {', '.join(PLACES)}; 'target' is taken"
                )
        if attention not in ("independent", "separate", "full"):
            raise ValueError(f"attention is {attention!r}; choose 'independent', 'separate' or 'full'")
        self.type_embed = nn.ParameterDict(
            {name: nn.Parameter(torch.zeros(self.config.hidden_size)) for name in conditions}
        )

    def groups(
        self, hidden_states: Tensor, timestep: Tensor, conditions: Mapping[str, Tensor]
    ) -> list[TokenGroup]:
        """The target and the given conditions."""
        unknown = set(conditions) - set(self.type_embed)
        if unknown:
            raise ValueError(
                f"conditions {', '.join(sorted(unknown))}; this model has "
                f"{', '.join(self.config.conditions or ()) or 'none'}"
            )
        target = self.grid_of(hidden_states)
        groups = [TokenGroup("target", hidden_states, timestep=timestep)]
        for name, picture in conditions.items():
            groups.append(
                TokenGroup(
                    name,
                    picture,
                    timestep=self.config.condition_timestep,
                    position=place(self.config.conditions[name], self.grid_of(picture), target),
                    type_embedding=self.type_embed[name],
                    adapter=name,
                )
            )
        return groups

    def looks(self, names: list[str]) -> Looks:
        """Who may look at whom."""
        if self.config.attention == "independent":
            return only_itself(*names)
        return separate(["target", *names], names) if self.config.attention == "separate" else {}

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
        """Predict the target.

        Args:
            hidden_states: (B, C, *spatial).
            timestep: (B,).
            class_labels: As in :class:`DiT`.
            conditions: (B, C, *spatial) by name; any of the model's, also none: then it is the plain DiT bit for bit.
            encoder_hidden_states: As in :class:`DiT`.
            encoder_attention_mask: As in :class:`DiT`.
            pooled_projections: As in :class:`DiT`.
            cache: State of one sampling run, with ``attention="independent"``.
            return_dict: False returns a plain tuple.
        """
        conditions = conditions or {}
        if cache is not None and self.config.attention != "independent":
            raise ValueError(
                f"attention={self.config.attention!r} lets conditions see the target: they cannot be cached"
            )
        sample = forward_groups(
            self,
            self.groups(hidden_states, timestep, conditions),
            self.looks(list(conditions)),
            ("target",),
            class_labels,
            encoder_hidden_states,
            encoder_attention_mask,
            pooled_projections,
            cache=cache,
        )["target"]
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)


def place(kind: str, grid: tuple[int, ...], target: tuple[int, ...]) -> Position:
    """The position that a configuration names."""
    if kind == "beside":
        return Position.beside(target, -1)
    if kind == "below":
        return Position.beside(target, -2)
    return Position.interpolated(grid, target) if kind == "interpolated" else Position()
