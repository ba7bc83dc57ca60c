"""Training of latent transparency: an RGB autoencoder learns to carry alpha without its pictures changing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DiffusionPipeline
from torch import Tensor, nn
from torch.func import functional_call

from ...core.alpha import pad_rgb
from ...core.autoencoders.diffusers_autoencoder import DiffusersAutoencoder
from ...core.autoencoders.transparency_nets import OffsetEncoder, TransparencyDecoder
from ...core.autoencoders.transparent import GAIN, TransparentAutoencoder
from ...core.errors import PolyditError
from ...core.training import DiffusionModule

__all__ = ["LatentTransparency", "PatchDiscriminator", "identity_loss", "reconstruction_loss"]

NO_VAE = "--model.vae: name the folder of the autoencoder that is to carry alpha"


def reconstruction_loss(decoded: Tensor, rgba: Tensor) -> Tensor:
    """L1 of padded colours and of alpha: scalar, for decoded and true straight RGBA (B, 4, H, W) in [0, 1].

    Colours are compared with the padded ones, which go on smoothly where nothing is seen.
    """
    target = torch.cat([pad_rgb(rgba[:, :3], rgba[:, 3:], exact=False), rgba[:, 3:]], dim=1)
    return (decoded - target).abs().mean()


def identity_loss(picture: Tensor, original: Tensor) -> Tensor:
    """How far the frozen decoder's picture of a moved latent is from that of the latent as it was: mean square.

    The paper's "harmlessness": a diffusion model of the frozen latent space must find the moved latents usual.
    """
    return F.mse_loss(picture, original)


class PatchDiscriminator(nn.Sequential):
    """PatchGAN's judge (arXiv 1611.07004): says for each patch of an RGBA picture whether it is real."""

    def __init__(self, width: int = 64, levels: int = 3) -> None:
        layers: list[nn.Module] = [nn.Conv2d(4, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        inner = width
        for level in range(1, levels):
            outer = width * min(2**level, 8)
            layers += [nn.Conv2d(inner, outer, 4, 2, 1), nn.GroupNorm(4, outer), nn.LeakyReLU(0.2)]
            inner = outer
        super().__init__(*layers, nn.Conv2d(inner, 1, 4, 1, 1))


def frozen_autoencoder(source: str | nn.Module | None) -> nn.Module:
    """A diffusers autoencoder from its folder; without one, Stable Diffusion's shapes while the device is ``meta``.

    Raises:
        PolyditError: no folder is named, or nothing is there.
    """
    if isinstance(source, nn.Module):
        return source
    if source is not None:
        return DiffusersAutoencoder.from_pretrained(source).vae
    if torch.get_default_device().type != "meta":
        raise PolyditError(NO_VAE)
    widths = (128, 256, 512, 512)
    return AutoencoderKL(
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        layers_per_block=2,
    )


class LatentTransparency(DiffusionModule):
    """Train the offset encoder and the RGBA decoder of LayerDiffuse (arXiv 2402.17113) on a frozen autoencoder.

    Args:
        vae: the autoencoder: a folder in diffusers format, or a hub id. (In Python also a loaded one.)
        encoder_widths: of the offset encoder.
        decoder_channels: widths of the decoder.
        decoder_layers: residual blocks of a level.
        attention_levels: lowest levels of the decoder that attend.
        channel_order: ``alpha_first`` as the release for SDXL, ``alpha_last`` as the port to FLUX.
        gain: of the offset, in standard deviations.
        reconstruction_weight: weight of :func:`reconstruction_loss`.
        identity_weight: weight of :func:`identity_loss`.
        adversarial_weight: weight of the PatchGAN loss on four channels; 0 is without a judge.
        discriminator_width: of the judge.
        **kwargs: of :class:`DiffusionModule`.

    Raises:
        PolyditError: there is no such autoencoder, or it does not fit.
    """

    def __init__(
        self,
        vae: str | None = None,
        encoder_widths: list[int] = [32, 64, 128, 256],  # noqa: B006 - read only; the parser shows it
        decoder_channels: list[int] = [32, 32, 64, 128, 256, 512, 512],  # noqa: B006
        decoder_layers: int = 2,
        attention_levels: int = 3,
        channel_order: str = "alpha_first",
        gain: float = GAIN,
        reconstruction_weight: float = 1.0,
        identity_weight: float = 1.0,
        adversarial_weight: float = 0.01,
        discriminator_width: int = 64,
        **kwargs: Any,
    ) -> None:
        network = frozen_autoencoder(vae)
        channels = network.config.latent_channels
        decoder = TransparencyDecoder(channels, decoder_channels, attention_levels, decoder_layers)
        try:
            model = TransparentAutoencoder(
                network, OffsetEncoder(channels, encoder_widths), decoder, channel_order, gain
            )
        except ValueError as error:
            raise PolyditError(f"--model.vae: {error}") from error
        judge = PatchDiscriminator(discriminator_width) if adversarial_weight else None
        parts = {"encoder": model.encoder, "decoder": model.decoder}
        super().__init__(nn.ModuleDict(parts if judge is None else {**parts, "judge": judge}), **kwargs)
        # Not a child: its networks are the backbone's, and the autoencoder under it is frozen and not saved.
        self._model = (model,)
        self._stands_in = vae is None  # on the meta device: shapes to count, and nothing to train on
        self.reconstruction_weight, self.identity_weight = reconstruction_weight, identity_weight
        self.adversarial_weight = adversarial_weight

    def setup(self, stage: str) -> None:
        """Refuse to train on shapes that only stand in for an autoencoder.

        Raises:
            PolyditError: no folder is named.
        """
        if stage == "fit" and self._stands_in:
            raise PolyditError(NO_VAE)
        super().setup(stage)

    @property
    def model(self) -> TransparentAutoencoder:
        """The autoencoder with alpha, of the trained networks."""
        return self._model[0]

    def losses(self, batch: Mapping[str, Tensor], first: int | None = None) -> tuple[dict[str, Tensor], Any]:
        """Reconstruction, identity, and the two sides of the adversarial game; ``batch["rgba"]`` is in [0, 1]."""
        rgba = batch["rgba"]
        self.batch_samples = len(rgba)
        model = self.model
        if (
            next(model.space.vae.parameters()).device != rgba.device
        ):  # no child, so Lightning leaves it where it is
            model.to(rgba.device)
        mean, std = model.posterior(rgba)
        offset = model.encoder(model.offset_feed(rgba).to(model.encoder.dtype)).float()
        latents = mean + std * model.gain * offset
        picture = model.decode_picture(latents)
        with torch.no_grad():
            original = model.decode_picture(mean)
        decoded = model._ordered(model._decoded(picture, latents))
        terms = {
            "objective": self.reconstruction_weight * reconstruction_loss(decoded, rgba),
            "identity": self.identity_weight * identity_loss(picture, original),
        }
        if self.adversarial_weight and "judge" in self.backbone:
            terms |= self._adversarial(decoded, rgba)
        return terms, None

    def _adversarial(self, decoded: Tensor, rgba: Tensor) -> dict[str, Tensor]:
        """Hinge losses: the judge learns on detached pictures, the networks through a judge that stands still."""
        judge = self.backbone["judge"]
        real = torch.cat([pad_rgb(rgba[:, :3], rgba[:, 3:], exact=False), rgba[:, 3:]], dim=1)
        judged = F.relu(1 - judge(real)).mean() + F.relu(1 + judge(decoded.detach())).mean()
        still = {name: parameter.detach() for name, parameter in judge.named_parameters()}
        fooled = -functional_call(judge, still, (decoded,)).mean()
        return {"adversarial": self.adversarial_weight * fooled, "judge": judged}

    def build_pipeline(self) -> DiffusionPipeline:
        """The pipeline over these networks."""
        from .transparency_pipeline import TransparencyPipeline

        model = self.model
        return TransparencyPipeline(
            vae=model.space.vae,
            encoder=model.encoder,
            decoder=model.decoder,
            channel_order=model.channel_order,
            gain=model.gain,
        )
