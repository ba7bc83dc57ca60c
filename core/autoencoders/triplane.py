"""Shapes as three feature planes: the autoencoder of Direct3D (D3D-VAE, arXiv 2405.14832)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import UNetMidBlock2D
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d_blocks import UpDecoderBlock2D
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..attention import attend

__all__ = [
    "TriplaneVAE",
    "fourier_features",
    "kl_to_normal",
    "look_up_planes",
    "semi_continuous_labels",
    "side_by_side",
]

PLANES = ((0, 1), (0, 2), (2, 1))
"""Which coordinate runs along the width and along the height of each plane."""


def semi_continuous_labels(distance: Tensor, band: float = 1 / 512) -> Tensor:
    """Occupancy that falls evenly from 1 to 0 across a band around the surface (Direct3D's surface sampling).

    Args:
        distance: signed, negative inside.
        band: half its width, s: labels are 1 below -s, 0 above s, and 0.5 - 0.5 d / s between. 0 gives hard labels.
    """
    if band <= 0:
        return (distance < 0).to(distance.dtype)
    return (0.5 - 0.5 * distance / band).clamp(0, 1)


def fourier_features(points: Tensor, frequencies: int) -> Tensor:
    """(..., 3) -> (..., 3 + 6 K): coordinates, sines and cosines of them times 1, 2, 4, ... (no pi)."""
    scales = 2.0 ** torch.arange(frequencies, device=points.device, dtype=points.dtype)
    angles = (points[..., None] * scales).flatten(-2)
    return torch.cat([points, angles.sin(), angles.cos()], dim=-1)


def plane_places(resolution: int, frequencies: int) -> Tensor:
    """(3 r r, 3 + 6 K + 3): features of the pixels of three planes, zero where a plane does not tell, as of normals."""
    centres = (torch.arange(resolution) + 0.5) / resolution * 2 - 1
    high, wide = torch.meshgrid(centres, centres, indexing="ij")
    places = []
    for axes in PLANES:
        points, known = torch.zeros(resolution, resolution, 3), torch.zeros(3)
        points[..., axes[0]], points[..., axes[1]] = wide, high
        known[list(axes)] = 1
        told = torch.cat([known, known.repeat_interleave(frequencies).repeat(2)])
        places.append((fourier_features(points, frequencies) * told).flatten(0, 1))
    return F.pad(torch.cat(places), (0, 3))


def side_by_side(planes: Tensor) -> Tensor:
    """Three planes (B, 3, C, H, W) as one picture (B, C, H, 3 W): they never share a channel."""
    return planes.permute(0, 2, 3, 1, 4).flatten(3)


def apart(picture: Tensor) -> Tensor:
    """The inverse of :func:`side_by_side`."""
    return picture.unflatten(3, (3, -1)).permute(0, 3, 1, 2, 4)


def look_up_planes(planes: Tensor, points: Tensor) -> Tensor:
    """Bilinear features of points: (B, 3, C, H, W), (B, N, 3) in [-1, 1] -> (B, N, 3 C), plane by plane.

    Beyond the planes' outermost pixel centres features fade to zero.
    """
    batch, _, channels = planes.shape[:3]
    places = torch.stack([points[..., list(axes)] for axes in PLANES], dim=1)  # (B, 3, N, 2)
    found = F.grid_sample(
        planes.flatten(0, 1).float(), places.flatten(0, 1)[:, None].float(), align_corners=False
    )  # (B * 3, C, 1, N)
    return found.reshape(batch, 3 * channels, -1).transpose(1, 2)


class PointAttention(nn.Module):
    """Multi-head attention without biases before it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(width, width, bias=False)
        self.to_v = nn.Linear(width, width, bias=False)
        self.to_out = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """(B, N, D) looks at (B, M, D)."""
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        return self.to_out(attend(query, key, value).transpose(1, 2).flatten(2))


class PointBlock(nn.Module):
    """Pre-norm attention, to other tokens or among its own, and MLP."""

    def __init__(self, width: int, heads: int, cross: bool = False) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.norm1_c = nn.LayerNorm(width) if cross else None
        self.attn = PointAttention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """(B, N, D), optionally with a context (B, M, D)."""
        own = self.norm1(x)
        seen = own if context is None or self.norm1_c is None else self.norm1_c(context)
        x = x + self.attn(own, seen)
        return x + self.mlp(self.norm2(x))


class PointEncoder(nn.Module):
    """Learned tokens, one for each pixel of the planes, that gather a cloud; the cloud's order does not matter."""

    def __init__(self, tokens: int, in_channels: int, heads: int, width: int, layers: int) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.randn(tokens, width) * 0.01)
        self.proj_in = nn.Linear(in_channels, width)
        self.cross_attn = PointBlock(width, heads, cross=True)
        self.self_attn = nn.ModuleList(PointBlock(width, heads) for _ in range(layers))
        self.norm_out = nn.LayerNorm(width)

    @torch.no_grad()
    def look_near(self, places: Tensor) -> None:
        """Start with attention to points like these: tokens are what they embed to, and keys are queries.

        Args:
            places: (tokens, F): features such as points have.
        """
        for linear in (self.proj_in, self.cross_attn.attn.to_k):
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
        self.tokens.copy_(places @ self.proj_in.weight.T)
        self.cross_attn.attn.to_q.weight.copy_(self.cross_attn.attn.to_k.weight)

    def forward(self, features: Tensor) -> Tensor:
        """(B, P, F) -> (B, tokens, D)."""
        x = self.cross_attn(self.tokens.expand(len(features), -1, -1), self.proj_in(features))
        for block in self.self_attn:
            x = block(x)
        return self.norm_out(x)


class PlaneDecoder(nn.Module):
    """The decoder of Stable Diffusion's autoencoder on planes that lie side by side."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        widths: Sequence[int],
        layers: int,
        groups: int,
        attention: bool,
    ) -> None:
        super().__init__()
        deepest = widths[-1]
        self.conv_in = nn.Conv2d(in_channels, deepest, 3, padding=1)
        self.mid_block = UNetMidBlock2D(
            in_channels=deepest,
            temb_channels=None,
            resnet_eps=1e-6,
            resnet_act_fn="silu",
            resnet_groups=groups,
            attention_head_dim=deepest,
            add_attention=attention,
        )
        self.up_blocks = nn.ModuleList()
        previous = deepest
        for index, width in enumerate(reversed(widths)):
            self.up_blocks.append(
                UpDecoderBlock2D(
                    in_channels=previous,
                    out_channels=width,
                    num_layers=layers,
                    resnet_eps=1e-6,
                    resnet_act_fn="silu",
                    resnet_groups=groups,
                    add_upsample=index < len(widths) - 1,
                    temb_channels=None,
                )
            )
            previous = width
        self.conv_norm_out = nn.GroupNorm(groups, widths[0], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[0], out_channels, 3, padding=1)
        self.gradient_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, r, 3 r) -> (B, out, R, 3 R)."""
        x = self.conv_in(x)
        for block in (self.mid_block, *self.up_blocks):
            recompute = self.gradient_checkpointing and torch.is_grad_enabled()
            x = checkpoint(block, x, use_reentrant=False) if recompute else block(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class OccupancyHead(nn.Module):
    """An MLP from the features of a point to the logit of being inside."""

    def __init__(self, in_channels: int, width: int, layers: int) -> None:
        super().__init__()
        parts: list[nn.Module] = [nn.Linear(in_channels, width), nn.ReLU()]
        for _ in range(layers - 2):
            parts += [nn.Linear(width, width), nn.ReLU()]
        self.net = nn.Sequential(*parts, nn.Linear(width, 1))

    def forward(self, features: Tensor) -> Tensor:
        """(B, N, F) -> (B, N)."""
        return self.net(features)[..., 0]


class TriplaneVAE(ModelMixin, ConfigMixin):
    """D3D-VAE: points with normals to a triplane latent and on to occupancy anywhere (Direct3D, arXiv 2405.14832).

    Args:
        resolution: pixels along the side of a latent plane, r.
        latent_channels: of a latent plane.
        plane_channels: of a decoded plane.
        frequencies: of the coordinates' Fourier features.
        num_heads: attention heads of the encoder.
        head_dim: channels of a head; the width is the product.
        num_layers: self-attention blocks of the encoder.
        block_out_channels: widths of the decoder, finest first; each step but one doubles the planes' side.
        decoder_layers: residual blocks of a level.
        norm_groups: of the decoder's group norms.
        mid_attention: whether the decoder attends at its lowest level.
        head_layers: linear layers of the head.
        head_width: their width.
        scaling_factor: latents that a diffusion model sees are (z - shift) times it; where ``scaling``, kept with the
            weights, starts. Training sets it by the latents that it sees.
        shift_factor: see there.
        local_tokens: start the encoder's tokens so that each looks at the points near its pixel, instead of anywhere as
            published; the first hundreds of steps then do what took twice as many.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["PointBlock", "UpDecoderBlock2D"]
    scaling: Tensor

    @register_to_config
    def __init__(
        self,
        resolution: int = 32,
        latent_channels: int = 16,
        plane_channels: int = 32,
        frequencies: int = 8,
        num_heads: int = 12,
        head_dim: int = 64,
        num_layers: int = 8,
        block_out_channels: list[int] = [128, 256, 512, 512],  # noqa: B006 - read only
        decoder_layers: int = 3,
        norm_groups: int = 32,
        mid_attention: bool = True,
        head_layers: int = 5,
        head_width: int = 64,
        scaling_factor: float = 1.0,
        shift_factor: float = 0.0,
        local_tokens: bool = False,
    ) -> None:
        super().__init__()
        width = num_heads * head_dim
        features = 3 * (2 * frequencies + 1) + 3
        self.encoder = PointEncoder(3 * resolution**2, features, num_heads, width, num_layers)
        if local_tokens:
            self.encoder.look_near(plane_places(resolution, frequencies))
        self.to_moments = nn.Conv2d(width, 2 * latent_channels, 1)
        self.from_latents = nn.Conv2d(latent_channels, width, 1)
        self.decoder = PlaneDecoder(
            width, plane_channels, block_out_channels, decoder_layers, norm_groups, mid_attention
        )
        self.head = OccupancyHead(3 * plane_channels, head_width, head_layers)
        self.register_buffer("scaling", torch.tensor([scaling_factor, shift_factor]))

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a latent, its planes side by side."""
        return (self.config.latent_channels, self.config.resolution, 3 * self.config.resolution)

    def moments(self, points: Tensor, normals: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the variance, each (B, C, r, 3 r), of a cloud.

        Args:
            points: (B, P, 3) in [-1, 1]; any order.
            normals: (B, P, 3) of unit length.
        """
        features = torch.cat([fourier_features(points, self.config.frequencies), normals], dim=-1)
        tokens = self.encoder(features)
        side = self.config.resolution
        planes = tokens.unflatten(1, (3, side, side)).permute(0, 1, 4, 2, 3)
        mean, log_variance = self.to_moments(side_by_side(planes)).chunk(2, dim=1)
        return mean, log_variance.clamp(-30, 20)

    def encode(self, points: Tensor, normals: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The latent that a diffusion model sees, (B, C, r, 3 r): the mean, or with a generator a draw."""
        mean, log_variance = self.moments(points, normals)
        if generator is not None:
            noise = torch.randn(mean.shape, generator=generator).to(mean)
            mean = mean + (0.5 * log_variance).exp() * noise
        scale, shift = self.scaling.to(mean).unbind()
        return (mean - shift) * scale

    def decode(self, latents: Tensor) -> Tensor:
        """Planes (B, 3, C, R, R) of a latent as :meth:`encode` gives it."""
        scale, shift = self.scaling.to(latents).unbind()
        return self.planes(latents / scale + shift)

    def planes(self, z: Tensor) -> Tensor:
        """Planes (B, 3, C, R, R) of a latent as :meth:`moments` describes it."""
        return apart(self.decoder(self.from_latents(z)))

    def query(self, planes: Tensor, points: Tensor) -> Tensor:
        """Logits (B, N), positive inside, at points (B, N, 3) in [-1, 1]."""
        features = look_up_planes(planes, points)
        return self.head(features.to(self.dtype))

    def forward(self, points: Tensor, normals: Tensor, queries: Tensor) -> Tensor:
        """Reconstruct: logits (B, N) at queries (B, N, 3), from the mean latent."""
        return self.query(self.planes(self.moments(points, normals)[0]), queries)


def kl_to_normal(mean: Tensor, log_variance: Tensor) -> Tensor:
    """(B,): how far the latents' law is from the standard normal one, as a mean over their elements."""
    return 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).flatten(1).mean(1)
