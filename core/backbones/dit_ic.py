"""DiT-IC: an image codec whose decoder is a one-step diffusion transformer on latents of a 32x autoencoder.

"DiT-IC: Aligned Diffusion Transformer for Efficient Image Compression" (CVPR 2026). The transformer is diffusers'
``SanaTransformer2DModel``, the autoencoder its ``AutoencoderDC``; here is what the paper adds: a latent codec with a
hyperprior and a four-pass context, the tokens that take the place of text, and the step from the decoded latents whose
strength follows the codec's own uncertainty.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from ..entropy import DepthConvBlock, Downsample, FactorizedPrior, QuadtreeContext, SubpixelUp
from ..entropy.gaussian import counts_of, gaussian_likelihood
from ..entropy.quadtree import Rounding
from ..entropy.rounding import noisy

__all__ = [
    "DC_AE",
    "FLOW_SIGMA",
    "SANA_600M",
    "DiTIC",
    "DiTICLatentCodec",
    "LatentPrompter",
    "one_step",
    "sigma_of",
    "strength",
]

RADIUS = 40
"""Largest offset of the side information with a probability of its own."""
TIMESTEP = 999
FLOW_SIGMA = 0.9996665716171265
"""Noise level at which the transformer is asked: the one step of DPM-Solver's flow schedule with shift 3."""

SANA_600M: dict[str, Any] = {
    "in_channels": 32,
    "out_channels": 32,
    "num_attention_heads": 36,
    "attention_head_dim": 32,
    "num_layers": 28,
    "num_cross_attention_heads": 16,
    "cross_attention_head_dim": 72,
    "cross_attention_dim": 1152,
    "caption_channels": 2304,
    "mlp_ratio": 2.5,
    "attention_bias": False,
    "sample_size": 32,
    "patch_size": 1,
    "norm_elementwise_affine": False,
    "norm_eps": 1e-6,
}
"""The transformer that the paper adapts."""

DC_AE: dict[str, Any] = {
    "in_channels": 3,
    "latent_channels": 32,
    "attention_head_dim": 32,
    "encoder_block_types": ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3,
    "decoder_block_types": ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3,
    "encoder_block_out_channels": [128, 256, 512, 512, 1024, 1024],
    "decoder_block_out_channels": [128, 256, 512, 512, 1024, 1024],
    "encoder_layers_per_block": [2, 2, 2, 3, 3, 3],
    "decoder_layers_per_block": [3, 3, 3, 3, 3, 3],
    "encoder_qkv_multiscales": [[], [], [], [5], [5], [5]],
    "decoder_qkv_multiscales": [[], [], [], [5], [5], [5]],
    "upsample_block_type": "interpolate",
    "downsample_block_type": "Conv",
    "decoder_norm_types": "rms_norm",
    "decoder_act_fns": "silu",
    "scaling_factor": 0.41407,
}
"""The autoencoder: 32 channels at 1/32."""


class Synthesis(nn.Module):
    """Decoded latents (channels) to a map of twice their size: blocks, sub-pixel upsampling, a convolution."""

    def __init__(self, channels: int, width: int, up_width: int, out_channels: int, depth: int = 3) -> None:
        super().__init__()
        self.synthesis_transform = nn.Sequential(
            DepthConvBlock(channels, width),
            *(DepthConvBlock(width) for _ in range(depth - 1)),
            SubpixelUp(width, up_width),
            nn.Conv2d(up_width, out_channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, h, w) -> (B, out_channels, 2h, 2w)."""
        return self.synthesis_transform(x)


class Analysis(nn.Module):
    """Latents of the autoencoder and features of the picture itself to what is coded.

    Args:
        latent_channels: of the autoencoder's latents (1/32 of the picture's size).
        width: of the features (1/16), and inside.
        channels: of the result (1/64).
        latent_width: of the latents' part in between.
        feature_width: of the features' part.
    """

    def __init__(
        self, latent_channels: int, width: int, channels: int, latent_width: int, feature_width: int
    ) -> None:
        super().__init__()
        mid = latent_width + feature_width
        self.pre1 = nn.Sequential(nn.Conv2d(latent_channels, latent_width, 3, padding=1))
        self.pre2 = nn.Sequential(Downsample(width, feature_width))
        self.analysis_transform = nn.Sequential(
            DepthConvBlock(mid),
            DepthConvBlock(mid),
            Downsample(mid, width),
            DepthConvBlock(width),
            DepthConvBlock(width, channels),
        )

    def forward(self, latents: Tensor, features: Tensor) -> Tensor:
        """(B, latent_channels, h, w) and (B, width, 2h, 2w) -> (B, channels, h / 2, w / 2)."""
        return self.analysis_transform(torch.cat([self.pre1(latents), self.pre2(features)], dim=1))


class Reduce(nn.Module):
    """A 2x2 convolution of stride 2, then a block with a skip connection of its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(width, width, 2, stride=2)
        self.conv = DepthConvBlock(width)

    def forward(self, x: Tensor) -> Tensor:
        """Half the height and width."""
        x = self.down(x)
        return x + self.conv(x)


class Increase(nn.Module):
    """A 1x1 convolution with pixel shuffle, then a block with a skip connection of its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Sequential(nn.Conv2d(width, 4 * width, 1), nn.PixelShuffle(2))
        self.conv = DepthConvBlock(width)

    def forward(self, x: Tensor) -> Tensor:
        """Twice the height and width."""
        x = self.up(x)
        return x + self.conv(x)


@dataclass
class Decoded:
    """What the decoder's heads say, all at the autoencoder's grid.

    Attributes:
        mean: the plain reconstruction of the latents, (B, latent_channels, h, w).
        scale: logarithm of a variance, (B, latent_channels, h, w).
        res: what is added after the step, (B, latent_channels, h, w).
        prompt: what the prompter pools, (B, width, h, w).
    """

    mean: Tensor
    scale: Tensor
    res: Tensor
    prompt: Tensor


class CodecOutput(BaseOutput):
    """A forward pass of :class:`DiTICLatentCodec`.

    Attributes:
        mean: see :class:`Decoded`, with ``scale``, ``res`` and ``prompt``.
        likelihoods: of the ``y`` and the ``z`` symbols.
        y: latents before rounding.
        z: side information before rounding.
        z_hat: after.
        y_hat: what the decoder has.
        scales: with which y was coded.
    """

    mean: Tensor
    scale: Tensor
    res: Tensor
    prompt: Tensor
    likelihoods: dict[str, Tensor]
    y: Tensor
    z: Tensor
    z_hat: Tensor
    y_hat: Tensor
    scales: Tensor


class DiTICLatentCodec(ModelMixin, ConfigMixin):
    """The codec of the autoencoder's latents. Its names of weights are the released ones, but for ``context``.

    Args:
        ch_emd: channels of the autoencoder's latents.
        channel: width of everything that is coded.
        channel_out: channels of the reconstruction; None is ``ch_emd``.
        latent_width: width of the latents' own part in the analysis; None is the published 128 of 320.
        feature_width: width of the features' part; None is 64 of 320.
        scale_width: width of the scale head's upsampling; None is 192 of 320.
        width: of the features and inside of all transforms, the published 320; None is ``channel``.

    Attributes:
        counts: of the side information's offsets from the medians, int32 (channel / 2, 2 RADIUS + 2).
    """

    counts: Tensor

    # What gives a file's probabilities keeps its precision, whatever the rest is cast to.
    _keep_in_fp32_modules = ["entropy_bottleneck", "h_s", "context"]

    @register_to_config
    def __init__(
        self,
        ch_emd: int = 32,
        channel: int = 320,
        channel_out: int | None = None,
        latent_width: int | None = None,
        feature_width: int | None = None,
        scale_width: int | None = None,
        width: int | None = None,
    ) -> None:
        super().__init__()
        out, half, width = channel_out or ch_emd, channel // 2, width or channel
        self.g_a = Analysis(
            ch_emd, width, channel, latent_width or width * 2 // 5, feature_width or width // 5
        )
        self.g_s = Synthesis(channel, width, width, out)
        self.scale = Synthesis(channel, width, scale_width or width * 3 // 5, out)
        self.prompt = Synthesis(channel, width, width, width)
        self.aux = Synthesis(channel, width, width, ch_emd, depth=2)
        self.h_a = nn.Sequential(
            DepthConvBlock(channel), DepthConvBlock(channel, half), Reduce(half), Reduce(half)
        )
        self.h_s = nn.Sequential(
            Increase(half), Increase(half), DepthConvBlock(half, channel), DepthConvBlock(channel)
        )
        self.context = QuadtreeContext(channel)
        self.entropy_bottleneck = FactorizedPrior(half)
        self.register_buffer("counts", torch.zeros(half, 2 * RADIUS + 2, dtype=torch.int32))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DiTICLatentCodec:
        kept = {id(p) for name in self._keep_in_fp32_modules for p in getattr(self, name).parameters()}

        def careful(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return tensor.to(moved.device) if id(tensor) in kept and moved.dtype != tensor.dtype else moved

        return super()._apply(careful, recurse)

    def count(self) -> DiTICLatentCodec:
        """Write down the probabilities of the side information as whole numbers, which files are coded with."""
        self.counts = counts_of(self.entropy_bottleneck.masses(RADIUS)).to(self.counts)
        return self

    def forward(self, latents: Tensor, features: Tensor) -> CodecOutput:
        """Code and decode without a file.

        Args:
            latents: of the autoencoder, scaled, (B, ch_emd, h, w); h and w multiples of 8.
            features: of the picture, (B, width, 2h, 2w).
        """
        y, z = self.analyse(latents, features)
        z_hat, z_likelihood = self.entropy_bottleneck(z)
        rounding = Rounding(y)
        y_hat, scales = self.context(self.h_s(z_hat), rounding)
        distance = y - rounding.means
        distance = noisy(distance) if self.training else torch.round(distance)
        likelihoods = {"y": gaussian_likelihood(distance, scales), "z": z_likelihood}
        return CodecOutput(
            **vars(self.decode(y_hat, scales)),
            likelihoods=likelihoods,
            y=y,
            z=z,
            z_hat=z_hat,
            y_hat=y_hat,
            scales=scales,
        )

    def analyse(self, latents: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """What is coded (B, channel, h / 2, w / 2) and its side information (B, channel / 2, h / 8, w / 8), float32."""
        dtype = self.g_a.pre1[0].weight.dtype
        y = self.g_a(latents.to(dtype), features.to(dtype))
        return y.float(), self.h_a(y).float()

    def decode(self, y_hat: Tensor, scales: Tensor) -> Decoded:
        """Apply the four heads to decoded latents and to the scales they were coded with (B, channel, h / 2, w / 2)."""
        dtype = self.g_a.pre1[0].weight.dtype
        y_hat, scales = y_hat.to(dtype), scales.to(dtype)
        return Decoded(self.g_s(y_hat), self.scale(scales), self.aux(y_hat), self.prompt(y_hat))


class LatentPrompter(ModelMixin, ConfigMixin):
    """Latent-conditioned guidance: tokens of the decoded latents where the transformer expects a text's.

    Args:
        in_channels: of the codec's ``prompt``.
        embed_dim: width of the tokens.
        num_tokens: all of them.
        fixed_tokens: pooled from the latents; the others are learned and the same for every picture.
    """

    @register_to_config
    def __init__(
        self, in_channels: int = 320, embed_dim: int = 2304, num_tokens: int = 77, fixed_tokens: int = 48
    ) -> None:
        super().__init__()
        self.pattern = nn.Parameter(torch.randn(1, num_tokens - fixed_tokens, in_channels))
        self.align = nn.Sequential(
            nn.Linear(in_channels, embed_dim),
            nn.SiLU(),
            nn.Linear(embed_dim, embed_dim),
            nn.SiLU(),
            nn.Linear(embed_dim, embed_dim),
        )

    def forward(self, prompt: Tensor) -> Tensor:
        """(B, in_channels, h, w) -> (B, num_tokens, embed_dim)."""
        pooled = F.adaptive_avg_pool1d(prompt.flatten(2), self.config.fixed_tokens).transpose(1, 2)
        return self.align(torch.cat([pooled, self.pattern.expand(len(pooled), -1, -1)], dim=1))


def sigma_of(log_variance: Tensor) -> Tensor:
    """Deviation of a logarithm of a variance, clamped to -30..20."""
    return torch.exp(0.5 * log_variance.clamp(-30, 20))


def strength(sigma: Tensor) -> Tensor:
    """How strongly the flow moves where the codec is unsure: ``0.15 |s| + 0.4`` below 4, else 1."""
    size = sigma.abs()
    return torch.where(size < 4, 0.15 * size + 0.4, torch.ones_like(size))


def one_step(
    latents: Tensor,
    velocity: Tensor,
    sigma: Tensor | None,
    start: float = FLOW_SIGMA,
    mode: str = "scale",
) -> Tensor:
    """The variance-guided step of the reconstruction flow: ``y - start * F * velocity``.

    Args:
        latents: decoded, (B, C, h, w).
        velocity: the transformer's answer to them at timestep 999.
        sigma: uncertainty like the latents, for mode ``scale``.
        start: noise level of the step.
        mode: what F depends on: ``scale`` (as published: :func:`strength` of sigma), ``value`` (of twice the latents'
            size) or ``flow_prediction`` (F is 1, the plain step).

    Raises:
        ValueError: another mode.
    """
    if mode == "flow_prediction":
        return latents - start * velocity
    if mode not in ("scale", "value"):
        raise ValueError(f"mode is {mode!r}; choose 'scale', 'value' or 'flow_prediction'")
    amount = strength(sigma if mode == "scale" and sigma is not None else 2 * latents)
    return latents - start * amount * velocity


class DiTICOutput(CodecOutput):
    """A forward pass of :class:`DiTIC`: that of the codec and what follows.

    Attributes:
        sample: the reconstructed latents of the autoencoder.
        sigma: the codec's uncertainty.
        caption_tokens: what the transformer reads.
        velocity: its answer.
    """

    sample: Tensor
    sigma: Tensor
    caption_tokens: Tensor
    velocity: Tensor


class DiTIC(nn.Module):
    """Codec, prompter and transformer together: latents in, coded and reconstructed latents out.

    Args:
        codec: of the latents.
        prompter: makes the transformer's tokens.
        transformer: a ``SanaTransformer2DModel``.
        start: noise level of the step.
        timestep: that the transformer is told.
        vae: the ``AutoencoderDC``, where a checkpoint holds it.
        features: the picture's analysis (:class:`~.elic.ElicAnalysis`), where a checkpoint holds it.
    """

    def __init__(
        self,
        codec: DiTICLatentCodec,
        prompter: LatentPrompter,
        transformer: ModelMixin,
        start: float = FLOW_SIGMA,
        timestep: int = TIMESTEP,
        vae: ModelMixin | None = None,
        features: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.codec, self.prompter, self.transformer = codec, prompter, transformer
        self.vae, self.features = vae, features
        self.start, self.timestep = start, timestep

    @property
    def DiT(self) -> ModelMixin:
        """The transformer."""
        return self.transformer

    def enhance(self, decoded: Decoded | CodecOutput) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The generative decoder: latents, sigma, tokens and velocity of what was decoded."""
        sigma = sigma_of(decoded.scale)
        tokens = self.prompter(decoded.prompt)
        timestep = torch.full((len(tokens),), float(self.timestep), device=tokens.device)
        timestep = timestep * getattr(self.transformer.config, "timestep_scale", 1.0)
        dtype = next(self.transformer.parameters()).dtype
        velocity = self.transformer(decoded.mean.to(dtype), tokens.to(dtype), timestep).sample.to(
            tokens.dtype
        )
        return one_step(decoded.mean, velocity, sigma, self.start) + decoded.res, sigma, tokens, velocity

    def forward(self, latents: Tensor, features: Tensor) -> DiTICOutput:
        """Code, decode and enhance; see :meth:`DiTICLatentCodec.forward`."""
        coded = self.codec(latents, features)
        sample, sigma, tokens, velocity = self.enhance(coded)
        return DiTICOutput(sample=sample, sigma=sigma, caption_tokens=tokens, velocity=velocity, **coded)
