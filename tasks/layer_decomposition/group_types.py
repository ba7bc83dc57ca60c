"""Type embeddings of the groups for a transformer that has none of its own."""

from __future__ import annotations

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

__all__ = ["GroupTypes"]


class GroupTypes(ModelMixin, ConfigMixin):
    """One vector for each group, added to its tokens: a model of its own beside a transformer that is used as it is.

    Args:
        names: of the groups.
        width: of the tokens.
    """

    @register_to_config
    def __init__(self, names: list[str], width: int) -> None:
        super().__init__()
        # Small but not zero: groups that start alike would stay alike.
        self.vectors = nn.ParameterDict({name: nn.Parameter(0.02 * torch.randn(width)) for name in names})

    def forward(self) -> dict[str, Tensor]:
        """The vectors (D,) by name."""
        return dict(self.vectors.items())
