"""A small DiT whose features move from step to step, and a run of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polydit.core.backbones import DiT
from polydit.core.diffusion import Guidance, Parameterization, TimeConvention, ddim

GOLDEN = Path(__file__).parents[2] / "data" / "golden"


@pytest.fixture
def golden() -> Path:
    """Reference vectors."""
    return GOLDEN


@pytest.fixture
def make_dit() -> Callable[..., DiT]:
    """Build ``DiT`` with random gates; options as of ``DiT``."""

    def make(seed: int = 0, std: float = 0.15, **options: Any) -> DiT:
        config = {"input_size": 8, "in_channels": 4, "hidden_size": 32, "depth": 4, "num_heads": 2}
        torch.manual_seed(seed)
        model = DiT(**{**config, "num_classes": 5, **options}).eval()
        for parameter in model.parameters():
            if parameter.requires_grad:
                nn.init.normal_(parameter, std=std)
        return model

    return make


def times(steps: int) -> list[float]:
    """Even steps of the flow."""
    return [1 - i / steps for i in range(steps + 1)]


@pytest.fixture
def run() -> Callable[..., Tensor]:
    """``run(model, steps, separate=False)``: guided Euler steps of the flow from fixed noise."""

    def sample(
        model: nn.Module, steps: int = 12, separate: bool = False, batch: int = 2, size: int = 8, **call: Any
    ) -> Tensor:
        noise = torch.randn(batch, 4, size, size, generator=torch.Generator().manual_seed(3))
        # A slow clock: random weights on sines of 0 .. 1000 would jump from step to step.
        flow, guidance = Parameterization(time=TimeConvention(scale=10.0)), Guidance(scale=2.0)
        labels, null = torch.arange(batch) % 5, torch.full((batch,), 5)

        def ask(x: Tensor, timestep: Tensor, class_labels: Tensor) -> Tensor:
            return model(x, timestep, class_labels).sample

        if separate:
            denoise = guidance.separate(
                lambda x, t: ask(x, t, labels), lambda x, t: ask(x, t, null), flow.time
            )
        else:
            denoise = guidance.doubled(ask, {"class_labels": labels}, {"class_labels": null}, flow.time)
        with torch.set_grad_enabled(call.pop("grad", False)):
            return ddim(denoise, noise, flow, times(steps), **call)

    return sample


def relative_error(value: Tensor, reference: Tensor) -> float:
    """|value - reference| / |reference|."""
    return float((value - reference).norm() / reference.norm())
