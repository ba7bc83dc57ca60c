"""``predict`` for general stacks: a picture to N layers, bottom to top, by Qwen-Image-Layered or by pixels."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from ...core.data.images import read_image, to_uint8
from ...core.media import OutputWriter
from ...core.media.layer_files import LayerStack, export_layers, write_layers

if TYPE_CHECKING:
    from .layer_stack_pipeline import LayerStackPipeline
    from .pixel_stack_pipeline import PixelStackPipeline

__all__ = ["predict_pixel_stack", "predict_stack"]

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
    return {**written(stack, source, writer, options), "resolution": resolution}


def predict_pixel_stack(
    pipe: PixelStackPipeline,
    source: Path,
    writer: OutputWriter,
    options: Namespace,
    generator: torch.Generator,
) -> dict[str, Any]:
    """The same by a network on pixels; also says how close the layers come to the picture.

    Options: ``--layers``, ``--steps``, ``--size`` (the longest side that the network sees), ``--export``. Transparency
    is put on white.
    """
    picture = to_uint8(read_image(source)[0])
    stack = pipe.decompose(picture, options.layers or LAYERS, options.steps or 1, generator, options.size)
    seen = replace(stack, paper=(255, 255, 255)).composite()
    error = float(((seen.astype(np.float64) - picture) ** 2).mean())
    return {
        **written(stack, source, writer, options),
        "recomposition_psnr": round(10 * float(np.log10(255**2 / error)), 2) if error else None,
        "alpha": [round(float(layer.pixels[..., 3].mean() / 255), 5) for layer in stack.layers],
    }


def written(stack: LayerStack, source: Path, writer: OutputWriter, options: Namespace) -> dict[str, Any]:
    """Write a stack as the options say; what the record of every stack has."""
    files = write_layers(writer, source.stem, stack)
    exported = export_layers(writer, source.stem, stack, getattr(options, "export", "none"))
    return {
        "files": [*([exported] if exported else []), *files],
        "size": [stack.width, stack.height],
        "layers": len(stack.layers),
    }
