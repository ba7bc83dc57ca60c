"""A DiT over a stack of layers: one group of tokens per layer, and one for the picture that they come from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor, nn

from ..attention.rotary import rotary_axes_dim
from ..backbones.dit import DiT
from ..backbones.variant import extends
from .positions import Position
from .token_groups import TokenGroup, forward_groups

__all__ = ["LayerStackDiT"]

CONDITION = -1


class LayerStackDiT(DiT):
    """Denoises all layers of a picture at once.

    Positions are those of Qwen-Image-Layered (arXiv 2512.15603): all groups stand on the same places, and the group
    axis says which is which: 0 is the composite, 1..N are the layers, bottom to top, -1 is the picture to decompose.
    The number of layers is free. Where the layers have roles (line art, flat colour, ...), each role has an embedding
    that is added to its tokens, the layer semantic embedding of arXiv 2603.14925; it starts at zero.

    Args:
        roles: Names of the layers, bottom to top, where each has its own; None for any number of layers.
        composite: Slot 0 is the composite, which is predicted, too.
        condition_group: The picture is a group of tokens of its own.
        local_affine: The tokens predict, for every pixel and channel, a linear map of the picture's channels and an
            offset, and the layer is what they make of the picture. For pixel space: the assumption of closed-form
            matting, that colours and alpha are locally affine in the picture, holds to the pixel where tokens are
            coarse.
        **kwargs: Of :class:`DiT`. With ``in_channels`` = ``out_channels`` the picture is seen as a group only; with
            more, every layer's input has the picture's channels behind its own.
    """

    @extends(DiT)
    @register_to_config
    def __init__(
        self,
        roles: list[str] | None = None,
        composite: bool = True,
        condition_group: bool = True,
        local_affine: bool = False,
        **kwargs: Any,
    ) -> None:
        if "rope" not in kwargs.get("position", "sincos"):
            raise ValueError("layers are told apart by rotary positions; choose position 'rope'")
        if kwargs.get("rope_axes_dim") is None:
            size = kwargs.get("input_size", 32)
            axes = 2 if isinstance(size, int) else len(size)
            head = kwargs.get("hidden_size", 384) // kwargs.get("num_heads", 6)
            kwargs["rope_axes_dim"] = list(rotary_axes_dim(head, axes + 1))
        layer = kwargs.get("out_channels") or kwargs.get("in_channels", 4)
        picture = kwargs.get("in_channels", 4) - layer
        super().__init__(**{**kwargs, "out_channels": layer * (1 + picture) if local_affine else layer})
        # The parent has written down the width of its head and the axes that were worked out.
        self.register_to_config(out_channels=layer)
        self.prediction_channels = layer
        self.condition_channels = picture
        if self.condition_channels < 0 or not (self.condition_channels or condition_group):
            raise ValueError(
                "the picture enters as a group (condition_group) or as channels (in_channels above out_channels)"
            )
        slots = len(roles) + composite if roles is not None else 0
        hidden = self.config.hidden_size
        self.role_embed = nn.Parameter(torch.zeros(slots, hidden)) if roles is not None else None
        if local_affine and not picture:
            raise ValueError(
                "local_affine needs the picture among the channels: in_channels above out_channels"
            )

    @property
    def first_slot(self) -> int:
        """Number of the first of the pictures: 0, the composite, or 1."""
        return 0 if self.config.composite else 1

    def groups(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        condition: Tensor,
        slots: Sequence[int] | None = None,
        condition_timestep: Tensor | float = 0.0,
    ) -> list[TokenGroup]:
        """The layers, ``"0"``, ``"1"``, ... by slot, and ``"condition"``; arguments as in :meth:`forward`."""
        first, count = self.first_slot, hidden_states.shape[2]
        slots = list(slots) if slots is not None else list(range(first, first + count))
        if self.role_embed is not None and not all(0 <= s - first < len(self.role_embed) for s in slots):
            raise ValueError(
                f"slots {slots}: this model has roles for {first}..{first + len(self.role_embed) - 1}"
            )
        if len(slots) != count:
            raise ValueError(f"{len(slots)} slots for {count} layers")
        groups = []
        for index, slot in enumerate(slots):
            picture = hidden_states[:, :, index]
            if self.condition_channels:
                picture = torch.cat([picture, condition[:, : self.condition_channels]], dim=1)
            role = None if self.role_embed is None else self.role_embed[slot - first]
            groups.append(TokenGroup(str(slot), picture, None, None, timestep, Position(slot), None, role))
        if self.config.condition_group:
            picture = condition
            if self.condition_channels:
                # as many channels as the layers have: the picture where a layer's own would be
                own = torch.zeros_like(hidden_states[:, :, 0])
                picture = torch.cat([own, condition[:, : self.condition_channels]], dim=1)
            groups.append(
                TokenGroup("condition", picture, None, None, condition_timestep, Position(CONDITION))
            )
        return groups

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        condition: Tensor,
        slots: Sequence[int] | None = None,
        class_labels: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        detail: Tensor | None = None,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """Predict all layers.

        Args:
            hidden_states: Noisy layers (B, C, L, H, W), bottom to top; with ``composite`` the first is the composite.
            timestep: (B,).
            condition: The picture (B, C, H, W) in the space of the layers, or with as many channels as the layers'
                input has more than their output.
            slots: Which slot each of the L pictures is in; None is in order.
            class_labels: As in :class:`DiT`.
            encoder_hidden_states: As in :class:`DiT`.
            encoder_attention_mask: As in :class:`DiT`.
            detail: With ``local_affine``, the picture at a higher resolution (B, C, H', W'): the layers have its size.
            return_dict: False returns a plain tuple.

        Returns:
            An object with ``.sample`` (B, C, L, H, W).

        Raises:
            ValueError: layers and slots do not fit.
        """
        groups = self.groups(hidden_states, timestep, condition, slots)
        names = [group.name for group in groups if group.name != "condition"]
        answers = forward_groups(
            self,
            groups,
            None,
            names,
            class_labels,
            encoder_hidden_states,
            encoder_attention_mask,
        )
        sample = torch.stack([answers[name] for name in names], dim=2)  # (B, C * (1 + picture), L, H, W)
        if self.config.local_affine:
            picture = condition[:, : self.condition_channels] if detail is None else detail
            sample = apply_affine(sample, picture, self.prediction_channels)
        elif detail is not None:
            raise ValueError("detail is for models with local_affine")
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)


def apply_affine(maps: Tensor, picture: Tensor, channels: int) -> Tensor:
    """Linear maps and offsets (B, C * (1 + P), L, h, w) of a picture (B, P, H, W): layers (B, C, L, H, W)."""
    if maps.shape[-2:] != picture.shape[-2:]:
        layers = maps.shape[2]
        maps = F.interpolate(maps.flatten(1, 2), picture.shape[-2:], mode="bilinear", align_corners=False)
        maps = maps.unflatten(1, (-1, layers))
    maps = maps.unflatten(1, (channels, -1))  # (B, C, 1 + P, L, H, W)
    return maps[:, :, 0] + (maps[:, :, 1:] * picture[:, None, :, None]).sum(2)
