"""How training times are drawn, and the time shift that training and sampling share (t = 1 is noise)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TypeVar

import torch
from torch import Tensor

Time = TypeVar("Time", float, Tensor)


def shift_time(t: Time, shift: float) -> Time:
    """Move times towards noise (shift > 1) or data (shift < 1); 0 and 1 stay fixed.

    ``shift t / (1 + (shift - 1) t)``. In time that runs from noise to data the same move has the inverse
    shift: LightningDiT's 0.3 there is 1 / 0.3 here.
    """
    if shift <= 0:
        raise ValueError(f"time shift must be positive, not {shift}")
    return t / (t + (1 - t) / shift)  # in this form exactly 1 at t = 1


def unshift_time(t: Time, shift: float) -> Time:
    """Inverse of :func:`shift_time`."""
    return shift_time(t, 1 / shift)


def dimension_shift(*shape: int, reference: int = 4096) -> float:
    """Shift for a sample of this shape (channels, then spatial axes): ``sqrt(C H W / reference)``.

    Larger samples hide less under the same noise, so they are trained and sampled at higher noise: RAE
    (arXiv 2510.11690) and SR-DiT use it with reference 4096 = 4 x 32 x 32, where it is 1.
    """
    return math.sqrt(math.prod(shape) / reference)


class TimestepSampler(ABC):
    """Draws training times in [0, 1]."""

    @abstractmethod
    def __call__(
        self, batch: int, generator: torch.Generator | None = None, device: torch.device | str | None = None
    ) -> Tensor:
        """``batch`` times, float32 (B,), drawn on the CPU so that a seed means the same everywhere."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{key}={value!r}' for key, value in vars(self).items())})"


class Uniform(TimestepSampler):
    """Uniform between two times."""

    def __init__(self, low: float = 0.0, high: float = 1.0) -> None:
        if not 0 <= low < high <= 1:
            raise ValueError(f"times run from 0 to 1; low {low} and high {high} do not")
        self.low = low
        self.high = high

    def __call__(  # noqa: D102
        self, batch: int, generator: torch.Generator | None = None, device: torch.device | str | None = None
    ) -> Tensor:
        return torch.rand(batch, generator=generator).mul_(self.high - self.low).add_(self.low).to(device)


class LogitNormal(TimestepSampler):
    """``sigmoid(N(mean, std^2))``: most draws in the middle, as in SD3 (arXiv 2403.03206) and LightningDiT.

    A positive mean favours noise.
    """

    def __init__(self, mean: float = 0.0, std: float = 1.0) -> None:
        self.mean = mean
        self.std = std

    def __call__(  # noqa: D102
        self, batch: int, generator: torch.Generator | None = None, device: torch.device | str | None = None
    ) -> Tensor:
        return torch.randn(batch, generator=generator).mul_(self.std).add_(self.mean).sigmoid_().to(device)


class Shifted(TimestepSampler):
    """Another sampler's draws through :func:`shift_time`.

    Args:
        inner: Sampler to shift; None is :class:`Uniform`.
        shift: See :func:`shift_time` and :func:`dimension_shift`.
    """

    def __init__(self, inner: TimestepSampler | None = None, shift: float = 1.0) -> None:
        shift_time(0.5, shift)  # refuses a shift that is not positive
        self.inner = Uniform() if inner is None else inner
        self.shift = shift

    def __call__(  # noqa: D102
        self, batch: int, generator: torch.Generator | None = None, device: torch.device | str | None = None
    ) -> Tensor:
        return shift_time(self.inner(batch, generator, device), self.shift)


class Terminal(TimestepSampler):
    """Pure noise, t = 1, with a given probability and another sampler's draws otherwise.

    With probability 1 it trains a network that restores in one step.
    """

    def __init__(self, inner: TimestepSampler | None = None, probability: float = 1.0) -> None:
        if not 0 <= probability <= 1:
            raise ValueError(f"probability must lie in [0, 1], not {probability}")
        self.inner = Uniform() if inner is None else inner
        self.probability = probability

    def __call__(  # noqa: D102
        self, batch: int, generator: torch.Generator | None = None, device: torch.device | str | None = None
    ) -> Tensor:
        terminal = torch.rand(batch, generator=generator) < self.probability
        return torch.where(terminal, 1.0, self.inner(batch, generator)).to(device)
