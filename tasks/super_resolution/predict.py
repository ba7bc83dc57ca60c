"""``polydit super-resolution predict``: one input file at a time, pictures and videos."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...core.data.images import read_image
from ...core.media import OutputWriter
from .pipeline import SuperResolutionPipeline

__all__ = ["predict_one"]


def predict_one(
    pipe: SuperResolutionPipeline,
    source: Path,
    writer: OutputWriter,
    options: Namespace,
    generator: torch.Generator,
) -> dict[str, Any]:
    """Enlarge one picture (``<stem>.png``) or video, and say what was done.

    Returns:
        A JSON-ready record: files, sizes, settings.
    """
    pipe.check_scale(options.scale)
    image, _ = read_image(source)
    low = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
    height, width = low.shape[-2:]
    strips = pipe.strips(
        low,
        scale=options.scale,
        num_inference_steps=options.steps or 1,
        generator=generator,
        tile=options.tile,
        overlap=options.overlap,
        color_fix=options.color_fix,
        progress=getattr(options, "progress", None),
    )
    path = writer.image_strips(
        f"{source.stem}.png", map(to_rows, strips), height * options.scale, width * options.scale
    )
    return {
        "files": [path.name],
        "input_size": [width, height],
        "output_size": [width * options.scale, height * options.scale],
        "scale": options.scale,
    }


def to_rows(strip: Tensor) -> np.ndarray:
    """(1, 3, rows, W) in [-1, 1] to (rows, W, 3) uint8."""
    return ((strip[0].clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
