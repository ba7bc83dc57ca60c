"""The contract of an autoencoder, and pixel space, its identity."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

__all__ = ["Autoencoder", "PixelSpace", "as_autoencoder"]


@runtime_checkable
class Autoencoder(Protocol):
    """Pixels to normalised latents and back.

    Attributes:
        spatial_factor: pixels per latent along height and width.
        temporal_factor: frames per latent along time.
        channels: channels of the latents.
        scale: latents are ``(raw - shift) * scale``; a number, or one per channel as (C,).
        shift: see ``scale``.
        component: what a pipeline registers and saves under ``vae``; see :func:`as_autoencoder`.
    """

    spatial_factor: int
    temporal_factor: int
    channels: int
    scale: float | Tensor
    shift: float | Tensor

    @property
    def component(self) -> ModelMixin | None:
        """What a pipeline registers and saves."""

    def encode(
        self, pixels: Tensor, sample: bool = False, generator: torch.Generator | None = None
    ) -> Tensor:
        """Pixels (B, C, H, W) or (B, C, T, H, W) in [-1, 1] to normalised latents, float32."""

    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents to pixels in about [-1, 1] (not clamped), float32."""


class PixelSpace(nn.Module):
    """No autoencoder: the latents are the pixels.

    Args:
        channels: of the pixels; 3 for colour, 4 with alpha.
    """

    spatial_factor = 1
    temporal_factor = 1
    scale: float | Tensor = 1.0
    shift: float | Tensor = 0.0
    component = None

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.channels = channels

    def encode(
        self, pixels: Tensor, sample: bool = False, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return ``pixels``; nothing is drawn."""
        return pixels

    def decode(self, latents: Tensor) -> Tensor:
        """Return ``latents``."""
        return latents


def as_autoencoder(component: ModelMixin | Autoencoder | None) -> Autoencoder:
    """The autoencoder of what a pipeline holds under ``vae``.

    A pipeline registers :attr:`Autoencoder.component`: the plain diffusers model, so that its saved folder
    opens in diffusers and in other tools, or None for pixel space.
    """
    if component is None:
        return PixelSpace()
    if isinstance(component, Autoencoder):
        return component
    from .diffusers_autoencoder import VIDEO, DiffusersAutoencoder
    from .video_autoencoder import VideoAutoencoder

    if type(component).__name__ in VIDEO:
        return VideoAutoencoder(component)
    return DiffusersAutoencoder(component)
