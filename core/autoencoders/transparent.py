"""Latent transparency: any diffusers autoencoder that also carries alpha (LayerDiffuse, arXiv 2402.17113)."""

from __future__ import annotations

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn

from ..alpha import pad_rgb
from .diffusers_autoencoder import DiffusersAutoencoder
from .transparency_nets import OffsetEncoder, TransparencyDecoder, unview, views

__all__ = ["CHANNEL_ORDERS", "TransparentAutoencoder", "guess_channel_order"]

CHANNEL_ORDERS = ("alpha_first", "alpha_last")
"""``alpha_first`` [alpha, R, G, B]: the release for SDXL. ``alpha_last`` [R, G, B, alpha]: the port to FLUX."""

GAIN = 300.0
"""What the encoder's offset is multiplied with, in standard deviations of the posterior."""


class TransparentAutoencoder(nn.Module):
    """RGBA pictures in the latent space of a frozen RGB autoencoder.

    The latent is the posterior's mean of the picture on grey, moved by ``std * gain * offset``: like a draw from the
    posterior, whose noise is where the alpha is hidden. So the frozen decoder, and a diffusion model of these latents,
    find them usual. Latents in and out of this class are normalised by the autoencoder's scale and shift.

    Args:
        vae: a diffusers ``AutoencoderKL`` that shrinks by 8; it is frozen.
        encoder: of the offsets.
        decoder: of colours and alpha.
        channel_order: of the two networks' four channels, see :data:`CHANNEL_ORDERS`.
        gain: see :data:`GAIN`.

    Attributes:
        space: the RGB autoencoder.
    """

    temporal_factor = 1
    component: ModelMixin | None = None

    def __init__(
        self,
        vae: ModelMixin,
        encoder: OffsetEncoder,
        decoder: TransparencyDecoder,
        channel_order: str = "alpha_first",
        gain: float = GAIN,
    ) -> None:
        super().__init__()
        if channel_order not in CHANNEL_ORDERS:
            raise ValueError(f"channel_order {channel_order!r}: choose {' or '.join(CHANNEL_ORDERS)}")
        self.space = DiffusersAutoencoder(vae).requires_grad_(False)
        self.encoder, self.decoder = encoder, decoder
        self.channel_order, self.gain = channel_order, gain
        channels = {self.space.channels, encoder.config.latent_channels, decoder.config.latent_channels}
        if len(channels) > 1:
            raise ValueError(f"autoencoder, encoder and decoder have latents of {sorted(channels)} channels")
        if self.space.spatial_factor != 8:
            raise ValueError(
                f"the offset encoder shrinks by 8, the autoencoder by {self.space.spatial_factor}"
            )
        self.channels: int = self.space.channels
        self.spatial_factor: int = self.space.spatial_factor
        self.scale, self.shift = self.space.scale, self.space.shift

    def train(self, mode: bool = True) -> TransparentAutoencoder:
        """The autoencoder stays in eval mode."""
        super().train(mode)
        self.space.eval()
        return self

    # -- encoding ------------------------------------------------------------------------------------------

    def offset_feed(self, rgba: Tensor) -> Tensor:
        """What the offset encoder sees of straight RGBA (B, 4, H, W) in [0, 1]: alpha and padded colours."""
        colour, alpha = rgba[:, :3], rgba[:, 3:]
        padded = pad_rgb(colour, alpha, exact=False)
        parts = [alpha, padded] if self.channel_order == "alpha_first" else [padded, alpha]
        return torch.cat(parts, dim=1)

    @staticmethod
    def picture_feed(rgba: Tensor) -> Tensor:
        """What the autoencoder sees: colours in [-1, 1] times alpha, grey where nothing is."""
        return (2 * rgba[:, :3] - 1) * rgba[:, 3:]

    def posterior(self, rgba: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (B, C, h, w) of the frozen autoencoder, not normalised."""
        dtype = self.space.vae.dtype
        moments = self.space.vae.encode(self.picture_feed(rgba).to(dtype)).latent_dist
        assert isinstance(moments, DiagonalGaussianDistribution)
        return moments.mean.float(), moments.std.float()

    def encode_rgba(self, rgba: Tensor, noise: Tensor | None = None) -> Tensor:
        """Latents, not normalised, of straight RGBA in [0, 1]; ``noise`` takes the place of the offset."""
        mean, std = self.posterior(rgba)
        if noise is None:
            noise = self.gain * self.encoder(self.offset_feed(rgba).to(self.encoder.dtype)).float()
        return mean + std * noise

    def encode(
        self, pixels: Tensor, sample: bool = False, generator: torch.Generator | None = None
    ) -> Tensor:
        """Normalised latents of pictures.

        Args:
            pixels: (B, 4, H, W) in [-1, 1], straight; sides divide by 8.
            sample: an ordinary draw from the posterior, which knows nothing of alpha.
            generator: for the draw.

        Returns:
            (B, channels, H / 8, W / 8), float32.
        """
        rgba = (pixels.float() + 1) / 2
        noise = None
        if sample:
            shape = (len(rgba), self.channels, *(side // self.spatial_factor for side in rgba.shape[-2:]))
            noise = randn_tensor(shape, generator=generator, device=rgba.device)
        return (self.encode_rgba(rgba, noise) - self._wide(self.shift)) * self._wide(self.scale)

    # -- decoding ------------------------------------------------------------------------------------------

    def decode_picture(self, latents: Tensor) -> Tensor:
        """What the frozen decoder makes of latents that are not normalised: (B, 3, H, W) in about [0, 1]."""
        return (self.space.vae.decode(latents.to(self.space.vae.dtype)).sample.float() + 1) / 2

    def decode_rgba(self, latents: Tensor, augment: bool = False) -> Tensor:
        """Straight RGBA (B, 4, H, W) of latents that are not normalised, in about [0, 1].

        Args:
            latents: (B, C, h, w).
            augment: the median over eight flips and rotations, each clamped, as published; of eight values it is the
                fourth smallest.
        """
        picture = self.decode_picture(latents)
        if not augment:
            return self._ordered(self._decoded(picture, latents))
        seen = [
            unview(self._decoded(one, latent).clamp(0, 1), index)
            for index, (one, latent) in enumerate(zip(views(picture), views(latents), strict=True))
        ]
        return self._ordered(torch.stack(seen).median(dim=0).values)

    def decode(self, latents: Tensor, augment: bool = True) -> Tensor:
        """Straight RGBA (B, 4, H, W) in about [-1, 1] of normalised latents."""
        raw = latents.float() / self._wide(self.scale) + self._wide(self.shift)
        return 2 * self.decode_rgba(raw, augment) - 1

    def _decoded(self, picture: Tensor, latents: Tensor) -> Tensor:
        """The decoder on a picture of any size that the autoencoder makes: padded to what its levels need."""
        factor, multiple = self.spatial_factor, self.decoder.multiple
        height, width = picture.shape[-2:]
        right, bottom = -width % multiple, -height % multiple
        dtype = self.decoder.dtype
        if right or bottom:
            picture = nn.functional.pad(picture, (0, right, 0, bottom), mode="replicate")
            latents = nn.functional.pad(latents, (0, right // factor, 0, bottom // factor), mode="replicate")
        return self.decoder(picture.to(dtype), latents.to(dtype)).float()[..., :height, :width]

    def _ordered(self, decoded: Tensor) -> Tensor:
        """[R, G, B, alpha] of what the decoder says."""
        return decoded.roll(-1, dims=1) if self.channel_order == "alpha_first" else decoded

    @staticmethod
    def _wide(value: float | Tensor) -> float | Tensor:
        return value.view(-1, 1, 1) if isinstance(value, Tensor) else value


@torch.no_grad()
def guess_channel_order(model: TransparentAutoencoder, side: int = 64) -> str:
    """Which order trained weights are of, by what they make of an opaque, a clear and a half-clear picture.

    Files say nothing of it, and with the wrong order they load without a complaint. The right one gives back the alpha
    that went in.
    """
    grey = torch.linspace(0.2, 0.8, side).expand(3, side, side)
    alphas = torch.stack([torch.ones(1, side, side), torch.zeros(1, side, side), torch.ones(1, side, side)])
    alphas[2, :, :, : side // 2] = 0
    rgba = torch.cat([grey.expand(3, 3, side, side), alphas], dim=1)
    kept, errors = model.channel_order, {}
    for order in CHANNEL_ORDERS:
        model.channel_order = order
        errors[order] = float((model.decode_rgba(model.encode_rgba(rgba))[:, 3:] - alphas).abs().mean())
    model.channel_order = kept
    return min(errors, key=lambda order: errors[order])
