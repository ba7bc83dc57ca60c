"""Guidance: pushing a prediction away from that of an unconditional or a weaker network."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .parameterization import Denoise, TimeConvention


def guide(conditional: Tensor, reference: Tensor, scale: float, channels: int | None = None) -> Tensor:
    """``reference + scale (conditional - reference)`` on the first channels, conditional on the others.

    Args:
        conditional: Prediction (B, C, ...) under the condition.
        reference: Prediction of the unconditional or weaker network, same shape.
        scale: 1 is the conditional prediction itself.
        channels: How many are guided, None for all. DiT, SiT and LightningDiT guide 3, whatever C is.
    """
    guided = reference[:, :channels] + scale * (conditional[:, :channels] - reference[:, :channels])
    return torch.cat([guided, conditional[:, guided.shape[1] :]], dim=1)


@dataclass(frozen=True)
class Guidance:
    """How strongly to guide, where and when. All times are project time (t = 0 data).

    With the reference an unconditional prediction this is classifier-free guidance (arXiv 2207.12598), with a
    weaker network it is autoguidance (arXiv 2406.02507).

    Args:
        scale: 1 switches guidance off.
        channels: Guided channels; None is all channels of the state, never those of a learned variance.
        interval: Times, ends included, at which guidance acts (arXiv 2404.07724); elsewhere only the
            conditional network runs. LightningDiT's ``cfg_interval_start`` s, in its own time, is (0, 1 - s).
        power: If given, the scale grows from 1 at t = 1 to ``scale`` at t = 0 along
            ``(1 - cos(pi (1 - t)^power)) / 2``.
    """

    scale: float = 1.0
    channels: int | None = None
    interval: tuple[float, float] = (0.0, 1.0)
    power: float | None = None

    def scale_at(self, t: float) -> float:
        """Scale at one time; 1 outside the interval."""
        # The tolerance keeps an end that was written in another time (1 - s) inside after float32 rounding.
        if not self.interval[0] - 1e-6 <= t <= self.interval[1] + 1e-6:
            return 1.0
        if self.power is None:
            return self.scale
        return 1 + (self.scale - 1) * (1 - math.cos(math.pi * (1 - t) ** self.power)) / 2

    def combine(self, conditional: Tensor, reference: Tensor, x_t: Tensor, scale: float) -> Tensor:
        """Guided prediction for the state ``x_t``."""
        return guide(conditional, reference, scale, x_t.shape[1] if self.channels is None else self.channels)

    def separate(self, conditional: Denoise, reference: Denoise, time: TimeConvention) -> Denoise:
        """Guide with two calls: for a weaker network, or where memory does not allow a doubled batch.

        Args:
            conditional: Network with its condition.
            reference: The same network without condition, or a weaker network.
            time: How both networks count time.
        """

        def denoise(x_t: Tensor, timestep: Tensor, /) -> Tensor:
            prediction = conditional(x_t, timestep)
            scale = self._scale_of(timestep, time)
            if scale == 1:
                return prediction
            return self.combine(prediction, reference(x_t, timestep), x_t, scale)

        return denoise

    def doubled(
        self,
        model: Callable[..., Tensor],
        conditional: Mapping[str, Any],
        unconditional: Mapping[str, Any],
        time: TimeConvention,
    ) -> Denoise:
        """Guide with one call on a doubled batch.

        Args:
            model: ``model(x_t, timestep, **condition) -> prediction``.
            conditional: Condition by argument name. Tensors whose first axis is the batch are doubled;
                everything else must be equal in both conditions.
            unconditional: The same names.
            time: How the network counts time.
        """
        if conditional.keys() != unconditional.keys():
            raise ValueError(f"conditions differ in {sorted(conditional.keys() ^ unconditional.keys())}")

        def denoise(x_t: Tensor, timestep: Tensor, /) -> Tensor:
            scale = self._scale_of(timestep, time)
            if scale == 1:
                return model(x_t, timestep, **conditional)
            batch = x_t.shape[0]
            both = {key: _join(key, value, unconditional[key], batch) for key, value in conditional.items()}
            prediction = model(torch.cat([x_t, x_t]), torch.cat([timestep, timestep]), **both)
            on_condition, on_reference = prediction.chunk(2)
            return self.combine(on_condition, on_reference, x_t, scale)

        return denoise

    def _scale_of(self, timestep: Tensor, time: TimeConvention) -> float:
        if self.power is None and self.interval[0] <= 0 and self.interval[1] >= 1:
            return self.scale  # without a look at the timestep, which would wait for the device
        return self.scale_at(float(time.project_time(timestep.flatten()[0])))


def _join(name: str, conditional: Any, unconditional: Any, batch: int) -> Any:
    if isinstance(conditional, Tensor) and conditional.ndim and conditional.shape[0] == batch:
        return torch.cat([conditional, unconditional])
    if conditional is unconditional or (not isinstance(conditional, Tensor) and conditional == unconditional):
        return conditional
    raise ValueError(f"condition {name!r} differs between the branches but has no batch axis of {batch}")
