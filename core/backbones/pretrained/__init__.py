"""Pretrained diffusers transformers, used as they are.

A folder or hub id in diffusers format goes in; out comes an adapter that takes latents, timesteps and text as every
backbone of the project does, and passes them on as the family's own pipeline would: packed, scaled, with position ids.
The diffusers module itself stays reachable and untouched as ``.transformer``; that is what a pipeline registers.
"""

from __future__ import annotations

from .adapter import PretrainedTransformer, TextInputs
from .loading import (
    FAMILIES,
    adapt_transformer,
    as_backbone,
    load_transformer,
    model_class,
    refuse_other_latents,
)

__all__ = [
    "FAMILIES",
    "PretrainedTransformer",
    "TextInputs",
    "adapt_transformer",
    "as_backbone",
    "load_transformer",
    "model_class",
    "refuse_other_latents",
]
