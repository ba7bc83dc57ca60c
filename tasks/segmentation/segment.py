"""``predict`` with DiffDIS and the small model."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from .pipeline import DETAIL_SIDE, SegmentationPipeline, to_tensor
from .predict import Segmented, parse_box

__all__ = ["segment"]


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
        detail=options.detail or "tiles",
        detail_side=getattr(options, "detail_side", None) or DETAIL_SIDE,
        box=parse_box(options.box, picture, source),
        min_max=options.min_max,
        augment=None if options.looks is None else options.looks > 1,
        output_type="np",
        progress=getattr(options, "progress", None),
    )
    return Segmented(alpha=found.masks[0], edges=found.edges[0])
