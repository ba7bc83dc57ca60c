"""What comes with a UNet of Stable Diffusion: the folder's autoencoder, and its embedding of the empty prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers import UNet2DConditionModel
from torch import nn

from ...core.autoencoders import DiffusersAutoencoder
from ...core.conditioning import FixedText

__all__ = ["EMPTY_TOKENS", "companions"]

EMPTY_TOKENS = 2
"""Start and end: the empty prompt without padding."""


def companions(
    backbone: nn.Module, autoencoder: nn.Module | None, kind: type[FixedText] = FixedText
) -> tuple[Any, Any]:
    """Autoencoder and text of a backbone.

    Args:
        backbone: for any other than a UNet of Stable Diffusion nothing is added.
        autoencoder: that of the config; None is the one of the folder that the UNet is from, or pixel space.
        kind: class of the text.

    Raises:
        PolyditError: the folder lacks something.
    """
    if not isinstance(backbone, UNet2DConditionModel):
        return autoencoder, None
    source = getattr(backbone.config, "_name_or_path", None) or None
    if source is None:
        return autoencoder, kind({"empty": ""}, EMPTY_TOKENS, backbone.config.cross_attention_dim)
    folder = Path(source)
    if not (folder / "model_index.json").is_file() and (folder.parent / "model_index.json").is_file():
        folder = folder.parent  # that of the UNet alone was given
    if autoencoder is None and (folder / "vae").is_dir():
        autoencoder = DiffusersAutoencoder.from_pretrained(folder)
    return autoencoder, kind.from_stable_diffusion(folder, {"empty": ""})
