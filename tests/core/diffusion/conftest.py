"""Gaussian data, for which every quantity of diffusion has a closed form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from polydit.core.diffusion import Parameterization


@dataclass
class GaussianData:
    """Independent elements N(mean, std^2) and the exact denoiser of any parameterization for them."""

    mean: float = 0.7
    std: float = 0.3

    def denoiser(self, parameterization: Parameterization) -> Callable[[Tensor, Tensor], Tensor]:
        path, prediction = parameterization.path, parameterization.prediction

        def denoise(x_t: Tensor, timestep: Tensor) -> Tensor:
            t = parameterization.time.project_time(timestep).to(x_t.dtype).view(-1, *[1] * (x_t.ndim - 1))
            alpha, sigma = path.alpha(t), path.sigma(t)
            x0 = self.mean + alpha * self.std**2 * (x_t - alpha * self.mean) / (
                (alpha * self.std) ** 2 + sigma**2
            )
            answer = path.convert(x0, x_t, t, "x0", prediction)
            return -answer if prediction == "velocity" and parameterization.time.flip else answer

        return denoise

    def transport(self, noise: Tensor) -> Tensor:
        """Where the probability flow ends that starts at standard normal noise."""
        return self.mean + self.std * noise


@pytest.fixture
def gaussian() -> GaussianData:
    return GaussianData()


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
