"""``predict`` for latent transparency: a transparent picture through the latent space and back."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...core.data.images import read_image, to_uint8
from ...core.errors import PolyditError
from ...core.media import OutputWriter
from ...core.media.layer_files import LayerStack, PictureLayer, export_layers, write_layers
from .stack_metrics import rgba_scores
from .transparency_pipeline import TransparencyPipeline

__all__ = ["predict_transparency"]


def predict_transparency(
    pipe: TransparencyPipeline,
    source: Path,
    writer: OutputWriter,
    options: Namespace,
    generator: torch.Generator,
) -> dict[str, Any]:
    """Write ``<stem>_foreground.png`` (RGBA, as decoded) and ``<stem>_layers.json``, and how close it is.

    Raises:
        PolyditError: the picture has no transparency.
    """
    colour, info = read_image(source, background=None)
    if info.alpha is None:
        raise PolyditError(f"{source}: has no transparency; these weights take RGBA pictures")
    rgba = np.dstack([to_uint8(colour), to_uint8(info.alpha)])
    decoded = pipe(rgba)
    height, width = rgba.shape[:2]
    stack = LayerStack(width, height, (PictureLayer("foreground", decoded, role="foreground"),))
    files = write_layers(writer, source.stem, stack, composite=False)
    exported = export_layers(writer, source.stem, stack, getattr(options, "export", "none"))
    scores = rgba_scores(decoded.astype(np.float32) / 255, rgba.astype(np.float32) / 255)
    return {
        "files": [*([exported] if exported else []), *files],
        "size": [width, height],
        **{name: round(value, 4) for name, value in scores.items()},
    }
