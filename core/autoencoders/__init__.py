"""Where diffusion happens: pixels themselves, or the latents of a diffusers autoencoder.

Latents are normalised here and nowhere else: what ``encode`` returns has about unit variance and goes to the
denoiser as it is; what the denoiser predicts goes to ``decode`` as it is.
"""

from __future__ import annotations

from .autoencoder import Autoencoder, PixelSpace, as_autoencoder
from .diffusers_autoencoder import DiffusersAutoencoder
from .video_autoencoder import VideoAutoencoder

__all__ = ["Autoencoder", "DiffusersAutoencoder", "PixelSpace", "VideoAutoencoder", "as_autoencoder"]
