"""``predict`` with DiffDIS and the small model."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ...core.errors import PolyditError
from .pipeline import Box, SegmentationPipeline, to_tensor
from .predict import Segmented

__all__ = ["parse_box", "segment"]


def segment(
    pipe: SegmentationPipeline,
    picture: NDArray[np.uint8],
    source: Path,
    options: Namespace,
    generator: torch.Generator,
) -> Segmented:
    """Soft mask and edges of one picture."""
    found = pipe(
        to_tensor(picture),
        num_inference_steps=options.steps or 1,
        generator=generator,
        detail=options.detail,
        box=parse_box(options.box),
        min_max=options.min_max,
        output_type="np",
        progress=getattr(options, "progress", None),
    )
    return Segmented(alpha=found.masks[0], edges=found.edges[0])


def parse_box(text: str | None) -> Box | None:
    """``"10,20,110,220"`` as numbers.

    Raises:
        PolyditError: it is something else.
    """
    if text is None:
        return None
    try:
        left, top, right, bottom = (int(part) for part in text.replace(" ", "").split(","))
    except ValueError:
        raise PolyditError(f"--box {text}: give four whole numbers, such as 10,20,110,220") from None
    return left, top, right, bottom
