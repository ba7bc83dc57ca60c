"""``predict`` for illustration layers: a picture to flat colour, shadow, highlight and line art."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...core.data.images import read_image, to_uint8
from ...core.media import OutputWriter
from ...core.media.layer_files import export_layers, write_layers
from .illustration_pipeline import IllustrationLayersPipeline, as_stack

__all__ = ["predict_illustration"]


def predict_illustration(
    pipe: IllustrationLayersPipeline,
    source: Path,
    writer: OutputWriter,
    options: Namespace,
    generator: torch.Generator,
) -> dict[str, Any]:
    """Write ``<stem>_flat.png``, ``_shadow``, ``_highlight``, ``_line``, ``_composite`` and ``<stem>_layers.json``.

    With ``--export`` also ``<stem>.zip``, ``.ora`` or ``.psd``.

    Returns:
        A JSON-ready record: files, sizes, how close the layers come to the picture, what there is to note.
    """
    image, info = read_image(source)
    picture = to_uint8(image)
    notes = []
    if info.alpha is not None and info.alpha.min() < info.alpha.max():
        notes.append("the picture has transparency: it was put on white paper")
    layers = pipe(picture, options.steps or 1, generator, size=options.size).layers[0]
    stack = as_stack(layers)
    composite = stack.composite()
    files = write_layers(writer, source.stem, stack)
    exported = export_layers(writer, source.stem, stack, getattr(options, "export", "none"))
    error = float(((composite.astype(np.float64) - picture) ** 2).mean())
    for note in notes:
        print(f"{source.name}: {note}", file=sys.stderr, flush=True)  # noqa: T201
    return {
        "files": [*([exported] if exported else []), *files],
        "size": [stack.width, stack.height],
        "recomposition_psnr": round(10 * float(np.log10(255**2 / error)), 2) if error else None,
        "alpha": {layer.role: round(float(layer.pixels[..., 3].mean() / 255), 5) for layer in stack.layers},
        "notes": notes,
    }
