"""What EraserDiT diffuses and what its network is shown: the one place that training and inference share.

"EraserDiT: Fast Video Inpainting with Diffusion Transformer Model", arXiv 2506.12853: the noisy latents, the latents of
the masked video and the mask, one behind the other as channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.backbones.pretrained import PretrainedTransformer
from ...core.diffusion import Parameterization
from ...core.errors import PolyditError
from .propagation import propagate

__all__ = ["Formulation", "Known", "latent_mask", "linear_quadratic"]

Fill = Literal["black", "propagated"]
Part = Literal["hole", "unseen"]
_NEVER = 0.9999  # of `unseen`, but for rounding 1


@dataclass(frozen=True)
class Known:
    """What is given of a clip; colours and masks in [0, 1].

    Attributes:
        fill: (B, 3, T, H, W), the clip with its holes black, or filled from other frames.
        hole: (B, 1, T, H, W), 0 or 1.
        unseen: (B, 1, T, H, W), 1 in holes that no frame shows and the fill only guesses, less the more it is to be
            trusted; with black holes the hole.
    """

    fill: Tensor
    hole: Tensor
    unseen: Tensor

    @property
    def never(self) -> Tensor:
        """(B, 1, T, H, W), 1 where no frame shows anything."""
        return (self.unseen > _NEVER).float()

    def part(self, *place: slice) -> Known:
        """Some of the frames, rows and columns."""
        index = (slice(None), slice(None), *place)
        return Known(self.fill[index], self.hole[index], self.unseen[index])


@dataclass(frozen=True)
class Formulation:
    """How a clip becomes what the network works on, and back.

    Attributes:
        fill: ``black``: the masked video, as published. ``propagated``: holes are filled along the camera's motion
            before the network looks (:mod:`.propagation`), which is also told what no frame shows.
        residual_scale: if set, for pixel space and a propagated fill: the network works on what the fill lacks, in
            these units. One that answers zero leaves the fill as it is.
        signal_gain: see :meth:`Parameterization.signal_gain`.
        frames: that the network sees at once, in pixels' time. Longer clips are cut, see the pipeline.
        known: frames of the result that the next window is given as known.
        schedule: of the noise levels: ``even``, or ``linear_quadratic`` as LTX-Video's.
        strength: share of the schedule that is run; below 1 it starts from the noised fill.
        guidance: scale of classifier-free guidance, for networks that read text; 1 is off.
        max_pixels: of a frame; larger ones are cut around the hole, or reduced where that is larger still.
        residual_part: of the hole, with ``residual_scale``, that the network changes: all of it, or what is ``unseen``
            in every frame; a fill from other frames is better than what a small network makes of it.
    """

    fill: Fill = "black"
    residual_scale: float | None = None
    signal_gain: bool = False
    frames: int = 121
    known: int = 9
    schedule: Literal["even", "linear_quadratic"] = "linear_quadratic"
    strength: float = 0.8
    guidance: float = 1.0
    max_pixels: int = 1920 * 1088
    residual_part: Part = "hole"

    def __post_init__(self) -> None:
        if self.fill not in ("black", "propagated"):
            raise PolyditError(f"fill {self.fill!r}: choose black or propagated")
        if self.residual_scale is not None and (self.residual_scale <= 0 or self.fill != "propagated"):
            raise PolyditError("residual_scale: is above 0, and for fill propagated")
        if self.residual_part not in ("hole", "unseen"):
            raise PolyditError(f"residual_part {self.residual_part!r}: choose hole or unseen")
        if not 0 <= self.known < self.frames:
            raise PolyditError(f"known {self.known}: fewer frames than the {self.frames} of a window")
        if not 0 < self.strength <= 1:
            raise PolyditError(f"strength {self.strength:g}: is above 0 and at most 1")

    def config(self) -> dict[str, Any]:
        """JSON-ready description, stored in the pipeline folder."""
        return asdict(self)

    def extra_channels(self, latent_channels: int) -> int:
        """Channels that the network is given besides the noisy ones: 129 on LTX-Video."""
        return latent_channels + (2 if self.fill == "propagated" else 1)

    def times(self, steps: int) -> list[float]:
        """Noise levels, descending to 0: those that are left of the schedule's ``steps``."""
        if self.schedule == "linear_quadratic":
            levels = [*linear_quadratic(steps), 0.0]
        else:
            levels = [1 - i / steps for i in range(steps + 1)]
        return levels[steps - max(1, min(steps, int(steps * self.strength))) :]

    # -- what is given -------------------------------------------------------------------------------------

    def known_of(self, video: Tensor, hole: Tensor) -> Known:
        """Prepare a clip.

        Args:
            video: (B, 3, T, H, W) in [-1, 1].
            hole: (B, 1, T, H, W), above 0 where something is to be made up.
        """
        pixels, area = ((video.float() + 1) / 2).clamp(0, 1), (hole > 0).float()
        if self.fill == "black":
            return Known(pixels * (1 - area), area, area)
        fills, unseen = [], []
        for clip, mask in zip(pixels.cpu(), area.cpu(), strict=True):
            found = propagate(clip.transpose(0, 1), mask.transpose(0, 1))
            fills.append(found.frames.transpose(0, 1))
            unseen.append((1 - found.seen).transpose(0, 1))
        return Known(torch.stack(fills).to(video.device), area, torch.stack(unseen).to(video.device))

    def conditions(self, known: Known, space: Any) -> Tensor:
        """What is concatenated to the noisy latents: those of the fill, then the mask, then what is not seen."""
        latents = space.encode(known.fill * 2 - 1)
        mask = latent_mask(known.hole, tuple(latents.shape[2:]), space.temporal_factor)
        parts = [latents, mask]
        if self.fill == "propagated":
            parts.append(latent_mask(known.unseen, tuple(latents.shape[2:]), space.temporal_factor))
        return torch.cat(parts, 1)

    # -- to and from what is diffused ----------------------------------------------------------------------

    def target(self, known: Known, clean: Tensor, space: Any) -> Tensor:
        """What the network shall make of ``clean`` (B, 3, T, H, W) in [-1, 1]."""
        if self.residual_scale is not None:
            return self.changed(known) * ((clean.float() + 1) / 2 - known.fill) / self.residual_scale
        return space.encode(clean)

    def changed(self, known: Known) -> Tensor:
        """Where the network changes the fill, (B, 1, T, H, W), 0 or 1; see ``residual_part``."""
        return known.hole * known.never if self.residual_part == "unseen" else known.hole

    def finish(self, x0: Tensor, known: Known, space: Any) -> Tensor:
        """The inverse of :meth:`target`: a clip in [0, 1]."""
        if self.residual_scale is not None:
            return (known.fill + self.changed(known) * x0 * self.residual_scale).clamp(0, 1)
        return ((space.decode(x0) + 1) / 2).clamp(0, 1)

    def predict(
        self,
        network: nn.Module,
        x: Tensor,
        timestep: Tensor,
        channels: int,
        parameterization: Parameterization,
        text: Mapping[str, Any] | None = None,
        frame_rate: float | None = None,
    ) -> Tensor:
        """One call of the network.

        Args:
            network: a native ``DiT`` on three axes, or the adapter of a diffusers transformer.
            x: (B, C, t, h, w), noisy latents and conditions.
            timestep: (B,), as the network takes it.
            channels: of the noisy latents.
            parameterization: what the network's output means.
            text: what it reads.
            frame_rate: frames per second, for networks that count in seconds.

        Returns:
            (B, channels, t, h, w).
        """
        noisy, given = x[:, :channels], x[:, channels:]
        if self.signal_gain:
            noisy = noisy * parameterization.signal_gain(timestep).view(-1, 1, 1, 1, 1).to(x.dtype)
        options: dict[str, Any] = dict(text or {})
        if (
            frame_rate is not None
            and isinstance(network, PretrainedTransformer)
            and hasattr(network, "temporal_factor")
        ):
            options["frame_rate"] = frame_rate
        answer: Tensor = network(torch.cat([noisy, given], 1), timestep, **options).sample
        return answer[:, :channels]


def latent_mask(mask: Tensor, size: tuple[int, ...], temporal_factor: int) -> Tensor:
    """A mask of pixels on the grid of latents: the first frame alone, then the union of each further group.

    "Intersection" is what the paper says; the released code takes the union, without which the object would be among
    what is known.

    Args:
        mask: (B, 1, T, H, W).
        size: (t, h, w) of the latents.
        temporal_factor: frames of a latent.

    Returns:
        (B, 1, t, h, w); the nearest pixel is taken in height and width.
    """
    if temporal_factor > 1:
        first, rest = mask[:, :, :1], mask[:, :, 1:]
        groups = rest.unflatten(2, (-1, temporal_factor)).amax(3) if rest.shape[2] else rest
        mask = torch.cat([first, groups], 2)
    if mask.shape[2] != size[0]:
        raise ValueError(f"a mask of {mask.shape[2]} latents' time for {size[0]} latents")
    if tuple(mask.shape[3:]) == tuple(size[1:]):
        return mask
    flat = F.interpolate(mask.transpose(1, 2).flatten(0, 1), size[1:], mode="nearest")
    return flat.unflatten(0, (mask.shape[0], -1)).transpose(1, 2)


def linear_quadratic(steps: int, threshold: float = 0.025, linear: int | None = None) -> list[float]:
    """Noise levels of LTX-Video's schedule, without the final 0: half of them in the first 2.5 percent of the way."""
    if steps == 1:
        return [1.0]
    first = steps // 2 if linear is None else linear
    second = steps - first
    rise = [threshold * i / first for i in range(first)]
    shortfall = first - threshold * steps
    square = shortfall / (first * second**2)
    slope = threshold / first - 2 * shortfall / second**2
    offset = square * first**2
    curve = [square * i**2 + slope * i + offset for i in range(first, steps)]
    return [1 - value for value in (*rise, *curve)]
