"""``polydit compression predict``: for each picture the coded file, what it decodes to, and figures."""

from __future__ import annotations

import time
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ...core.metrics.psnr import psnr
from .codec import quality_of
from .container import read_container
from .picture_file import decode_still, read_still, to_pillow
from .picture_system import encode_for
from .pipeline import CompressionPipeline
from .rate import check_rate

if TYPE_CHECKING:
    from ...core.media import OutputWriter
    from .dit_ic.pipeline import DiTICPipeline

__all__ = ["predict_one"]


def predict_one(
    pipe: CompressionPipeline | DiTICPipeline,
    source: Path,
    writer: OutputWriter,
    options: Namespace,
    generator: torch.Generator,
) -> dict[str, Any]:
    """Code a picture and decode it: ``<stem>.pdc`` and ``<stem>.png``.

    Returns:
        Bytes, bits per pixel, PSNR in RGB, quality and seconds, for ``results.json``.
    """
    check_rate(options)
    still = read_still(source, options.metadata)
    figures: dict[str, Any] = {}
    begin = time.perf_counter()
    if isinstance(pipe, CompressionPipeline):
        step = pipe.step(1.0 if options.fidelity is None else options.fidelity)
        index, file = encode_for(pipe.weights, still, options)
        figures["quality"] = round(quality_of(index), 2)
        middle = time.perf_counter()
        found = decode_still(pipe.weights, read_container(file, source), source, step)
    else:
        from .dit_ic import system

        file = system.encode_still(pipe, still)
        middle = time.perf_counter()
        found = system.decode_still(pipe, read_container(file, source), source, options.fidelity)
    end = time.perf_counter()
    with writer.open(f"{source.stem}.pdc") as target:
        target.write(file)
    writer.image(f"{source.stem}.png", to_pillow(found))
    shown = [np.ascontiguousarray(one.pixels) for one in (found, still)]
    return {
        "files": [f"{source.stem}.pdc", f"{source.stem}.png"],
        "bytes": len(file),
        "bits_per_pixel": round(8 * len(file) / still.pixels[..., 0].size, 4),
        "psnr": round(float(psnr(*shown)), 3),
        **figures,
        "encode_seconds": round(middle - begin, 3),
        "decode_seconds": round(end - middle, 3),
        **({"notes": still.notes} if still.notes else {}),
    }
