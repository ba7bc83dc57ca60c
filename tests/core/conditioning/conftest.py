"""Small models whose every weight matters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polydit.core.backbones import DiT


@pytest.fixture
def make_dit() -> Callable[..., DiT]:
    def make(seed: int = 0, kind: type[DiT] = DiT, dtype: torch.dtype = torch.float32, **options: Any) -> DiT:
        config = {
            "input_size": 8,
            "patch_size": 2,
            "in_channels": 3,
            "hidden_size": 24,
            "depth": 3,
            "num_heads": 2,
        }
        torch.manual_seed(seed)
        model = kind(**{**config, **options})
        for parameter in model.parameters():
            if parameter.requires_grad:
                nn.init.normal_(parameter, std=0.2)
        return model.eval().to(dtype)

    return make


@pytest.fixture
def noise() -> Callable[..., Tensor]:
    def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)

    return draw
