"""``predict`` for general stacks: a picture to N layers, bottom to top."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ...core.data.images import read_image, to_uint8
from ...core.media import OutputWriter
from ...core.media.layer_files import export_layers, write_layers
from .layer_stack_pipeline import LayerStackPipeline

__all__ = ["predict_stack"]

STEPS = 50  # as published
LAYERS = 4


def predict_stack(
    pipe: LayerStackPipeline,
    source: Path,
    writer: OutputWriter,
    options: Namespace,
    generator: torch.Generator,
) -> dict[str, Any]:
    """Write ``<stem>_layer-1.png`` (the bottom), ..., ``<stem>_composite.png`` and ``<stem>_layers.json``.

    Options: ``--layers``, ``--prompt``, ``--steps``, ``--size`` (1024 or more asks for the larger of the model's two
    resolutions), ``--export``.
    """
    colour, info = read_image(source, background=None)
    picture = to_uint8(colour)
    if info.alpha is not None:
        picture = np.dstack([picture, to_uint8(info.alpha)])
    resolution = 1024 if (options.size or 0) >= 1024 else 640
    stack = pipe.decompose(
        Image.fromarray(picture),
        layers=options.layers or LAYERS,
        prompt=options.prompt,
        num_inference_steps=options.steps or STEPS,
        generator=generator,
        resolution=resolution,
    )
    files = write_layers(writer, source.stem, stack)
    exported = export_layers(writer, source.stem, stack, getattr(options, "export", "none"))
    return {
        "files": [*([exported] if exported else []), *files],
        "size": [stack.width, stack.height],
        "layers": len(stack.layers),
        "resolution": resolution,
    }
