"""What segmentation asks a diffusion transformer: the one place that training and inference share."""

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
from .dichotomy import halves

__all__ = ["Formulation"]

WAYS = ("batch", "channels")
NOISES = ("white", "none")


class Space(Protocol):
    """What is needed of an autoencoder (see ``polydit.core.autoencoders``)."""

    def encode(self, pixels: Tensor) -> Tensor: ...
    def decode(self, latents: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Formulation:
    """How mask and edges are diffused, and how the picture conditions them.

    Attributes:
        halves: ``"batch"``: mask and edges are two halves of the batch, each a picture of its own (DiffDIS);
            ``"channels"``: they are two channels of one answer, in pixel space, at half the cost.
        scales: at how many scales, 1/2, 1/4, 1/8, the picture is injected (SWCI).
        noise: what inference starts from: ``"white"`` noise, or ``"none"``: zeros, for networks that were trained so.
        same_noise: inference gives both halves the same noise (the published way) and not noise of their own.
        bounded: the network's answer goes through tanh: its clean data is then a probability, in [-1, 1].
        context: one more channel tells a soft mask seen from further away, for tiles of large pictures; it is zero
            where nothing is known.
        augment: inference looks at the whole mirrored and at three sizes, too, and takes the mean (published).
        side: pictures are seen as a whole with the area of a square of this side.
        tile: side of the tiles.
    """

    halves: str = "batch"
    scales: int = 3
    noise: str = "white"
    same_noise: bool = True
    bounded: bool = False
    context: bool = False
    augment: bool = False
    side: int = 1024
    tile: int = 1024

    def __post_init__(self) -> None:
        for name, value, known in (("halves", self.halves, WAYS), ("noise", self.noise, NOISES)):
            if value not in known:
                raise PolyditError(f"{name} {value!r} is not known; choose from {', '.join(known)}")
        if self.halves == "batch" and (self.context or self.bounded):
            raise PolyditError(
                "context and bounded are for one answer in pixel space: set halves to channels"
            )

    def config(self) -> dict[str, Any]:
        """JSON-ready description, stored in the pipeline folder."""
        return asdict(self)

    def target(self, mask: Tensor, edges: Tensor, space: Space) -> Tensor:
        """Clean data of masks and edges (B, 1, H, W) in [0, 1]: (2B, C, h, w), or (B, 2, H, W) as channels."""
        if self.halves == "channels":
            return torch.cat([mask, edges], dim=1) * 2 - 1
        both = torch.cat([mask, edges]) * 2 - 1
        return space.encode(both.expand(-1, 3, -1, -1))

    def condition(self, picture: Tensor, space: Space, context: Tensor | None = None) -> dict[str, Any]:
        """What the network is told of pictures (B, 3, H, W) in [-1, 1].

        Args:
            picture: see above.
            space: the autoencoder.
            context: (B, 1, H, W) in [0, 1]; 0.5, or None for all, where nothing is known.

        Returns:
            ``picture`` (B, C, h, w), and ``scales``, its latents at 1/2, 1/4 and so on.
        """
        latents = space.encode(picture)
        if self.context:
            known = torch.zeros_like(latents[:, :1]) if context is None else context * 2 - 1
            latents = torch.cat([latents, known.to(latents.dtype)], dim=1)
        smaller = [
            space.encode(F.interpolate(picture, scale_factor=0.5**k, mode="bilinear", antialias=True))
            for k in range(1, self.scales + 1)
        ]
        return {"picture": latents, "scales": smaller}

    def predict(
        self,
        network: nn.Module,
        x_t: Tensor,
        timestep: Tensor,
        condition: Mapping[str, Any],
        parameterization: Parameterization,
        extra: Mapping[str, Any] | None = None,
    ) -> Tensor:
        """One call of the network.

        Args:
            network: a ``DichotomousDiT``, or what has its call.
            x_t: noisy (2B, C, h, w), or (B, 2, H, W) as channels.
            timestep: as the network takes it, one a row of ``x_t``.
            condition: of :meth:`condition`, for the B pictures.
            parameterization: what the answer means.
            extra: further arguments of the network, such as text.
        """
        picture, scales = condition["picture"], condition["scales"]
        labels = None
        if self.halves == "batch":
            picture, scales = torch.cat([picture] * 2), [torch.cat([part] * 2) for part in scales]
            labels = halves(len(picture) // 2, picture.device)
        if self.noise == "none":
            # What the best linear estimate of the data makes of it: nothing, at pure noise.
            t = expand_like(parameterization.time.project_time(timestep), x_t)
            alpha, sigma = parameterization.path.alpha(t), parameterization.path.sigma(t)
            x_t = x_t * (alpha / (alpha**2 + sigma**2)).to(x_t.dtype)
        given = torch.cat([picture.to(x_t.dtype), x_t], dim=1)
        more = {name: value for name, value in (extra or {}).items() if value is not None}
        scales = [part.to(x_t.dtype) for part in scales] or None
        return network(given, timestep, scales=scales, halves=labels, **more).sample

    def bound(self, raw: Tensor) -> Tensor:
        """The network's answer, through tanh where the formulation says so."""
        return torch.tanh(raw / 2) if self.bounded else raw

    def finish(self, x0: Tensor, space: Space) -> tuple[Tensor, Tensor]:
        """Masks and edges (B, 1, H, W) in [0, 1] of clean data."""
        if self.halves == "channels":
            mask, edges = ((x0 + 1) / 2).clamp(0, 1).split(1, dim=1)
            return mask, edges
        pictures = space.decode(x0).mean(dim=1, keepdim=True)
        mask, edges = ((pictures + 1) / 2).clamp(0, 1).chunk(2)
        return mask, edges
