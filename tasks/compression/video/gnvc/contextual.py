"""The contextual codec of latents: each latent frame is coded with features of the one before as context.

After DCVC-RT ("Towards Practical Real-Time Neural Video Compression", arXiv 2502.20762), whose grid at an eighth of the
frame is that of Wan's latents: 16 channels take the place of its 192 unshuffled pixels. The first latent frame is coded
by the same networks without context. Gains per quality (64, and 8 more that the hierarchy reaches) are ones at the
start.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from .....core.entropy import (
    UNIT,
    DepthConvBlock,
    Downsample,
    FactorizedPrior,
    SubpixelUp,
    make_exact,
    noisy,
    round_through,
)
from .....core.entropy.fixed_point import LARGEST
from .....core.entropy.gaussian import counts_of, gaussian_bits

__all__ = [
    "HIERARCHY",
    "QUALITIES",
    "RADIUS",
    "CodedClip",
    "ContextualCodec",
    "FrameCodec",
    "Loop",
    "two_pass_masks",
]

QUALITIES = 64
HIERARCHY = (0, 8, 4)
"""By how much the quality index is raised, latent frame by latent frame, in turns."""
RADIUS = 40
FINEST = 0.5
"""The least quantisation step that the prior may ask for."""

FrameQuantizer = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``(mean, scale, mask) -> values``: reconstructed latents of a pass, in quantisation steps."""


def two_pass_masks(channels: int, height: int, width: int) -> Tensor:
    """Where each of two passes codes, bool (2, 1, channels, height, width).

    A checkerboard, inverted in the second half of the channels.
    """
    board = (torch.arange(height).view(-1, 1) + torch.arange(width)) % 2 == 0
    first = board.expand(channels, -1, -1).clone()
    first[channels // 2 :] = ~board
    return torch.stack([first, ~first])[:, None]


class Loop(nn.Module):
    """What encoder and decoder both run, so what has to give the same numbers everywhere; see :meth:`exact_copy`.

    Args:
        latent_channels: of the autoencoder.
        width: of the features.
        channels: of what is coded; its side information has as many.
        recon_width: of the head that gives latents.
        conditional: whether there is a frame before.
    """

    def __init__(
        self, latent_channels: int, width: int, channels: int, recon_width: int, conditional: bool
    ) -> None:
        super().__init__()
        self.conditional, self.exact = conditional, False
        if conditional:
            self.adaptor_latents = DepthConvBlock(latent_channels, width)
            self.adaptor_features = nn.Conv2d(width, width, 1)
            self.extract_near = nn.Sequential(*(DepthConvBlock(width) for _ in range(2)))
            self.extract_far = nn.Sequential(*(DepthConvBlock(width) for _ in range(4)))
            self.temporal_prior = Downsample(width, 2 * channels)
        self.h_s = nn.Sequential(
            SubpixelUp(channels, channels), SubpixelUp(channels, channels), DepthConvBlock(channels)
        )
        self.fusion = nn.Sequential(
            DepthConvBlock(3 * channels if conditional else channels, 3 * channels),
            DepthConvBlock(3 * channels),
            DepthConvBlock(3 * channels),
        )
        self.spatial_prior = nn.Sequential(
            DepthConvBlock(4 * channels, 2 * channels),
            DepthConvBlock(2 * channels),
            nn.Conv2d(2 * channels, 2 * channels, 1),
        )
        self.up = SubpixelUp(channels, width)
        self.decode = nn.Sequential(
            DepthConvBlock(2 * width if conditional else width, width),
            DepthConvBlock(width),
            DepthConvBlock(width),
        )
        self.recon = nn.Sequential(
            DepthConvBlock(width, recon_width), *(DepthConvBlock(recon_width) for _ in range(3))
        )
        self.recon_out = nn.Conv2d(recon_width, latent_channels, 1)
        banks = {"q_decoder": width, "q_recon": recon_width, **({"q_feature": width} if conditional else {})}
        self.gains = nn.ParameterDict(
            {name: nn.Parameter(torch.ones(QUALITIES + max(HIERARCHY), size)) for name, size in banks.items()}
        )

    def exact_copy(self) -> Loop:
        """The same in whole numbers of 1/UNIT (see `core.entropy.fixed_point`)."""
        exact = copy.copy(self)
        gains = {name: torch.round(value.detach().double() * UNIT) for name, value in self.gains.items()}
        exact._modules = {name: make_exact(child) for name, child in self.named_children() if name != "gains"}
        object.__setattr__(exact, "gains", gains)
        exact.exact = True
        return exact.eval()

    def _times(self, values: Tensor, factors: Tensor) -> Tensor:
        if not self.exact:
            return values * factors
        return torch.floor(values * factors / UNIT + 0.5).clamp(-LARGEST, LARGEST)

    def _gain(self, values: Tensor, bank: str, quality: int) -> Tensor:
        return self._times(values, self.gains[bank][quality].view(1, -1, 1, 1))

    def context(self, before: Tensor, is_latents: bool, quality: int) -> tuple[Tensor, Tensor]:
        """Features for the prior and for the transform, both (B, width, h, w).

        Args:
            before: of the frame before: its features (B, width, h, w), or its latents after a first frame.
            is_latents: which of the two.
            quality: index.
        """
        adapted = self.adaptor_latents(before) if is_latents else self.adaptor_features(before)
        near = self._gain(self.extract_near(adapted), "q_feature", quality)
        return near, self.extract_far(near)

    def prior(self, side: Tensor, near: Tensor | None) -> Tensor:
        """What side information (B, channels, h / 8, w / 8) and context say of the latents: (B, 3 channels, ...)."""
        told = self.h_s(side)
        if near is not None:
            told = torch.cat([told, self.temporal_prior(near)], 1)
        return self.fusion(told)

    def passes(self, told: Tensor, quantizer: FrameQuantizer) -> tuple[Tensor, Tensor]:
        """Run the two passes.

        Returns:
            The reconstructed latents (B, channels, h / 2, w / 2) and the steps that they were quantised with.
        """
        step, scale, mean = told.chunk(3, 1)
        step = self.steps(step)
        masks = two_pass_masks(*mean.shape[1:]).to(mean.device)
        first = torch.where(masks[0], quantizer(mean, scale, masks[0]), 0)
        scale, mean = self.spatial_prior(torch.cat([first, told], 1)).chunk(2, 1)
        second = torch.where(masks[1], quantizer(mean, scale, masks[1]), 0)
        return self._times(first + second, step), step

    def steps(self, told: Tensor) -> Tensor:
        """Quantisation steps, `FINEST` at least."""
        one, least = (UNIT, FINEST * UNIT) if self.exact else (1.0, FINEST)
        return (told + one).clamp(min=least)

    def features(self, values: Tensor, far: Tensor | None, quality: int) -> Tensor:
        """Features of a decoded frame, (B, width, h, w): context of the next one, and what the adapter sees."""
        up = self.up(values)
        return self._gain(self.decode(up if far is None else torch.cat([up, far], 1)), "q_decoder", quality)

    def latents(self, features: Tensor, quality: int) -> Tensor:
        """The autoencoder's latents, (B, latent_channels, h, w)."""
        return self.recon_out(self._gain(self.recon(features), "q_recon", quality))


class FrameCodec(nn.Module):
    """The codec of one latent frame: `Loop`, and the encoder's part.

    Args:
        latent_channels: see `Loop`, as the others.
        width: see there.
        channels: see there.
        recon_width: see there.
        conditional: see there.
    """

    def __init__(
        self, latent_channels: int, width: int, channels: int, recon_width: int, conditional: bool
    ) -> None:
        super().__init__()
        self.loop = Loop(latent_channels, width, channels, recon_width, conditional)
        self.enter = nn.Conv2d(latent_channels, width, 1)
        self.encode = nn.Sequential(
            DepthConvBlock(2 * width if conditional else width, width), DepthConvBlock(width)
        )
        self.encode_last = DepthConvBlock(width)
        self.down = Downsample(width, channels)
        self.h_a = nn.Sequential(
            DepthConvBlock(channels), Downsample(channels, channels), Downsample(channels, channels)
        )
        self.priors = nn.ModuleList(FactorizedPrior(channels) for _ in range(QUALITIES + max(HIERARCHY)))
        self.q_encoder = nn.Parameter(torch.ones(QUALITIES + max(HIERARCHY), width))

    def analyse(self, latents: Tensor, far: Tensor | None, quality: int) -> tuple[Tensor, Tensor]:
        """What is coded (B, channels, h / 2, w / 2), and its side information (B, channels, h / 8, w / 8)."""
        hidden = self.enter(latents)
        hidden = self.encode(hidden if far is None else torch.cat([hidden, far], 1))
        hidden = self.encode_last(hidden) * self.q_encoder[quality].view(1, -1, 1, 1)
        values = self.down(hidden)
        return values, self.h_a(values)


@dataclass
class CodedClip:
    """A forward pass of `ContextualCodec`.

    Attributes:
        latents: decoded, (B, C, T, h, w).
        features: of each latent frame, (B, width, T, h, w).
        bits: estimate of each latent frame, (B, T).
    """

    latents: Tensor
    features: Tensor
    bits: Tensor


class ContextualCodec(ModelMixin, ConfigMixin):
    """Latent frames (B, C, T, h, w) to symbols and back; h and w are multiples of 8.

    Args:
        latent_channels: of the autoencoder.
        width: of the features.
        channels: of what is coded.
        recon_width: of the head that gives latents.

    Attributes:
        counts: of the side information, int32 (2, 72, channels, 2 RADIUS + 2): first frames and others, by quality.
    """

    counts: Tensor

    @register_to_config
    def __init__(
        self, latent_channels: int = 16, width: int = 256, channels: int = 128, recon_width: int = 320
    ) -> None:
        super().__init__()
        self.first = FrameCodec(latent_channels, width, channels, recon_width, conditional=False)
        self.next = FrameCodec(latent_channels, width, channels, recon_width, conditional=True)
        shape = (2, QUALITIES + max(HIERARCHY), channels, 2 * RADIUS + 2)
        self.register_buffer("counts", torch.zeros(shape, dtype=torch.int32))

    def count(self) -> ContextualCodec:
        """Write down the probabilities of the side information as whole numbers, which files are coded with."""
        for frame, part in enumerate((self.first, self.next)):
            for quality, prior in enumerate(part.priors):
                self.counts[frame, quality] = counts_of(prior.masses(RADIUS)).to(self.counts)
        return self

    def forward(self, latents: Tensor, quality: int) -> CodedClip:
        """Code without a file, for training and estimates."""
        found, features, bits = [], [], []
        before: Tensor | None = None
        for number in range(latents.shape[2]):
            part, index = self.part_of(number, quality)
            frame = latents[:, :, number]
            near = far = None
            if before is not None:
                near, far = part.loop.context(before, number == 1, index)
            values, side = part.analyse(frame, far, index)
            told_side, likelihood = part.priors[index](side)
            told = part.loop.prior(told_side, near)
            rounding = _Rounding(values, part.loop.steps(told.chunk(3, 1)[0]), self.training)
            decoded, _ = part.loop.passes(told, rounding)
            feature = part.loop.features(decoded, far, index)
            found.append(part.loop.latents(feature, index))
            features.append(feature)
            bits.append(rounding.bits - torch.log2(likelihood).sum((1, 2, 3)))
            before = found[0] if number == 0 else feature
        return CodedClip(torch.stack(found, 2), torch.stack(features, 2), torch.stack(bits, 1))

    def part_of(self, number: int, quality: int) -> tuple[FrameCodec, int]:
        """Which networks code a latent frame of a group, and at which index."""
        return (self.next if number else self.first), quality + HIERARCHY[number % len(HIERARCHY)]


class _Rounding:
    """The quantiser of training and of estimates."""

    def __init__(self, values: Tensor, step: Tensor, training: bool) -> None:
        self.values, self.training = values / step, training
        self.bits = values.new_zeros(len(values))

    def __call__(self, mean: Tensor, scale: Tensor, mask: Tensor) -> Tensor:
        distance = self.values - mean
        seen = noisy(distance) if self.training else torch.round(distance)
        self.bits = self.bits + (gaussian_bits(seen, scale) * mask).sum((1, 2, 3))
        return round_through(distance) + mean
