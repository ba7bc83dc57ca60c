"""Transparent pictures through a latent space: encode, decode, and what a diffusion model of these latents made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline, ModelMixin
from PIL import Image
from torch import Tensor

from ...core.autoencoders.transparent import GAIN, TransparentAutoencoder
from ...core.errors import PolyditError

__all__ = ["TransparencyPipeline"]


class TransparencyPipeline(DiffusionPipeline):
    """LayerDiffuse's autoencoder of transparent pictures (arXiv 2402.17113).

    Args:
        vae: the frozen RGB autoencoder, a diffusers ``AutoencoderKL``.
        encoder: the ``OffsetEncoder``.
        decoder: the ``TransparencyDecoder``.
        channel_order: of the two, ``alpha_first`` or ``alpha_last``.
        gain: of the offset, in standard deviations.
    """

    model_cpu_offload_seq = "encoder->vae->decoder"

    def __init__(
        self,
        vae: ModelMixin,
        encoder: ModelMixin,
        decoder: ModelMixin,
        channel_order: str = "alpha_first",
        gain: float = GAIN,
    ) -> None:
        super().__init__()
        self.register_modules(vae=vae, encoder=encoder, decoder=decoder)
        self.register_to_config(channel_order=channel_order, gain=gain)
        self.autoencoder = TransparentAutoencoder(vae, encoder, decoder, channel_order, gain).eval()

    @classmethod
    def from_official(
        cls, vae: str | Path, *files: str | Path, channel_order: str | None = None
    ) -> TransparencyPipeline:
        """From released files and the autoencoder that they were trained for.

        Args:
            vae: folder in diffusers format, or a hub id; SDXL's for the files of SDXL.
            files: the encoder's and the decoder's file, or the one that holds both.
            channel_order: None finds it by trying, see ``guess_channel_order``.

        Raises:
            PolyditError: a file is something else, or a network is in none of them.
        """
        from ...core.autoencoders import DiffusersAutoencoder
        from ...core.autoencoders.transparent import guess_channel_order
        from ...core.backbones.official import load_official, read_official_file

        found: dict[str, ModelMixin] = {}
        for file in files:
            nets = load_official("layerdiffuse", read_official_file(file))
            found |= {
                name: net for name in ("encoder", "decoder") if (net := getattr(nets, name)) is not None
            }
        missing = [name for name in ("encoder", "decoder") if name not in found]
        if missing:
            raise PolyditError(
                f"{', '.join(map(str, files))}: hold no transparent {missing[0]}; give its file, too"
            )
        network = DiffusersAutoencoder.from_pretrained(vae).vae
        pipe = cls(network, **found, channel_order=channel_order or "alpha_first")
        if channel_order is None:
            order = guess_channel_order(pipe.autoencoder)
            pipe.register_to_config(channel_order=order)
            pipe.autoencoder.channel_order = order
        return pipe

    @torch.no_grad()
    def encode(self, rgba: Image.Image | np.ndarray) -> Tensor:
        """Normalised latents (1, C, h, w) of an RGBA picture; sides are padded with nothing to multiples of 8."""
        array = np.asarray(rgba.convert("RGBA") if isinstance(rgba, Image.Image) else rgba)
        if array.ndim != 3 or array.shape[2] != 4 or array.dtype != np.uint8:
            raise PolyditError(f"picture of shape {array.shape} and type {array.dtype}: give (H, W, 4) uint8")
        pixels = torch.from_numpy(array.copy()).permute(2, 0, 1)[None].float().to(self.device) / 127.5 - 1
        padding = (0, -pixels.shape[-1] % 8, 0, -pixels.shape[-2] % 8)
        return self.autoencoder.encode(F.pad(pixels, padding, value=-1.0))

    @torch.no_grad()
    def decode(self, latents: Tensor, augment: bool = True) -> list[np.ndarray]:
        """Straight RGBA pictures (H, W, 4), 8-bit, of normalised latents (B, C, h, w)."""
        decoded = (self.autoencoder.decode(latents.to(self.device), augment).clamp(-1, 1) + 1) / 2
        # Rounded, where the published code truncates: half a level less error.
        return list((decoded * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy())

    def __call__(self, image: Image.Image | np.ndarray, augment: bool = True) -> np.ndarray:
        """An RGBA picture through the latent space and back: what a diffusion model can make of it at best."""
        array = np.asarray(image.convert("RGBA") if isinstance(image, Image.Image) else image)
        height, width = array.shape[:2]
        return self.decode(self.encode(array), augment)[0][:height, :width]
