"""What super-resolution asks a diffusion transformer: the one place that training and inference share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.diffusion import Parameterization
from ...core.diffusion.paths import expand_like
from ...core.errors import PolyditError

__all__ = ["Formulation", "upsample"]


class Space(Protocol):
    """What is needed of an autoencoder (see ``polydit.core.autoencoders``)."""

    def encode(self, pixels: Tensor) -> Tensor: ...
    def decode(self, latents: Tensor) -> Tensor: ...


def upsample(image: Tensor, scale: int) -> Tensor:
    """Bicubic enlargement by a whole factor (a = -0.5, what Pillow does); (B, C, h, w) -> (B, C, h*s, w*s)."""
    # With antialias=True torch uses Pillow's kernel; without it, another one (a = -0.75).
    return F.interpolate(image, scale_factor=scale, mode="bicubic", antialias=True)


@dataclass(frozen=True)
class Formulation:
    """How a low-resolution picture conditions the network and what the network predicts.

    Attributes:
        conditioning: ``"stream"``: the enlarged picture is a second token stream (DiT4SR); ``"channels"``: it is
            concatenated to the noisy input (LDM-SR).
        low_condition: the condition is the low-resolution picture as it is, not enlarged, because it has the size of
            the latents already (LDM-SR: factor 4 and an autoencoder that shrinks by 4).
        residual_scale: if set, the network works on (high - enlarged) / residual_scale instead of on the picture
            itself; for pixel space, where the enlarged picture already holds most of the signal.
        scales: factors that the weights know; with more than one, the factor is the class label.
        signal_gain: multiply the noisy input by the gain of the best linear estimate of unit-variance data from it,
            alpha / (alpha^2 + sigma^2). At pure noise it is zero: the input says nothing then, and a narrow network
            need not spend its width on carrying noise; its one-step answer does not depend on the seed.
    """

    conditioning: str = "stream"
    low_condition: bool = False
    residual_scale: float | None = None
    scales: tuple[int, ...] = (4,)
    signal_gain: bool = False

    def __post_init__(self) -> None:
        if self.conditioning not in ("stream", "channels"):
            raise PolyditError(
                f"conditioning {self.conditioning!r} is not known; choose 'stream' or 'channels'"
            )
        if self.low_condition and self.residual_scale is not None:
            raise PolyditError(
                "low_condition is for latents; a residual is conditioned on the enlarged picture"
            )
        object.__setattr__(self, "scales", tuple(self.scales))

    def config(self) -> dict[str, Any]:
        """JSON-ready description, stored in the pipeline folder."""
        return {**asdict(self), "scales": list(self.scales)}

    def labels(self, scale: int | Tensor, batch: int, device: torch.device) -> Tensor | None:
        """Class labels (B,) of one factor or of a tensor of factors; None for a model of one factor."""
        if len(self.scales) == 1:
            return None
        factors = torch.as_tensor(scale, device=device).expand(batch)
        return (factors[:, None] == torch.tensor(self.scales, device=device)).int().argmax(1)

    def target(self, high: Tensor, enlarged: Tensor, space: Space) -> Tensor:
        """Clean latents that the network shall predict."""
        if self.residual_scale is not None:
            return (high - enlarged) / self.residual_scale
        return space.encode(high)

    def condition(self, low: Tensor | None, enlarged: Tensor, space: Space) -> Tensor:
        """The condition, of the spatial size of the latents.

        Beside a residual it is the enlarged picture and its local detail, the difference to the mean of 17 x 17
        pixels, in the units of the residual: six channels. The detail alone is what the residual depends on, and it
        would drown in the picture's brightness.
        """
        if self.low_condition:
            if low is None:
                raise PolyditError("low_condition needs pairs of one factor: give one entry in --data.scales")
            return low
        if self.residual_scale is None:
            return space.encode(enlarged)
        mean = F.pad(enlarged, (8, 8, 8, 8), mode="replicate")
        for kernel in ((17, 1), (1, 17)):  # one axis at a time: torch's pooling on a CPU is direct
            mean = F.avg_pool2d(mean, kernel, stride=1)
        return torch.cat([enlarged, (enlarged - mean) / self.residual_scale], dim=1)

    def finish(self, latents: Tensor, enlarged: Tensor, space: Space) -> Tensor:
        """The inverse of :meth:`target`: pixels from predicted clean latents."""
        if self.residual_scale is not None:
            return enlarged + latents * self.residual_scale
        return space.decode(latents)

    def predict(
        self,
        transformer: nn.Module,
        x_t: Tensor,
        timestep: Tensor,
        condition: Tensor,
        labels: Tensor | None,
        parameterization: Parameterization,
        text: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """One call of the network on noisy latents (B, C, h, w) and a condition of the same size.

        A pretrained transformer (an adapter of ``polydit.core.backbones.pretrained``) reads ``text`` and no labels.
        """
        if self.signal_gain:
            t = expand_like(parameterization.time.project_time(timestep), x_t)
            alpha, sigma = parameterization.path.alpha(t), parameterization.path.sigma(t)
            x_t = x_t * (alpha / (alpha**2 + sigma**2)).to(x_t.dtype)
        labelled, given = ((labels,), {}) if text is None else ((), text)
        condition = condition.to(x_t.dtype)
        if self.conditioning == "channels":
            return transformer(torch.cat([x_t, condition], dim=1), timestep, *labelled, **given).sample
        return transformer(x_t, timestep, *labelled, condition=condition, **given).sample
