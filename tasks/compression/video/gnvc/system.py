"""GNVC-VD on the command line; see `...systems`."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .....core.devices import choose_device
from .....core.errors import PolyditError
from .....core.load import load
from .....core.media.writer import OutputWriter
from ...container import CODECS, Container
from ..video_io import VideoSystem, decode_video, encode_video
from .contextual import QUALITIES
from .pipeline import GNVCPipeline

__all__ = ["decode_file", "encode_file", "open_generative"]

NUMBER = next(number for number, codec in CODECS.items() if codec.system == "GNVC-VD")
LAST = QUALITIES - 1


def open_generative(
    pipe: GNVCPipeline, source: str, fidelity: float = 0.0, name: str = "file"
) -> VideoSystem:
    """A pipeline as what codes groups.

    Args:
        pipe: the pipeline.
        source: where it came from, for complaints.
        fidelity: see `GNVCPipeline.decode`.
        name: of the file that is decoded, for complaints.
    """
    return VideoSystem(
        NUMBER,
        pipe.identity,
        LAST,
        lambda index: 1 + 8 * index / LAST,
        lambda frames, index: pipe.encode(np.stack(frames), index),
        # The noise of a group is that of its number.
        lambda group, number, count, size, index: pipe.decode(
            group, count, size, index, fidelity, number, name
        ),
        source,
    )


def encode_file(source: Path, output: OutputWriter, name: str, options: Namespace) -> dict[str, Any]:
    """Code a video; see `...systems`."""
    system = open_generative(_pipeline(options), str(options.weights))
    index = round((options.quality - 1) / 8 * LAST)
    return encode_video(system, source, output, name, index, options)


def decode_file(
    source: Path, content: Container, output: OutputWriter, name: str, options: Namespace
) -> dict[str, Any]:
    """Decode a video; see `...systems`."""
    fidelity = getattr(options, "fidelity", None)
    pipe = _pipeline(options)
    system = open_generative(pipe, str(options.weights), fidelity or 0.0, str(source))
    return decode_video(system, source, content, output, name)


def _pipeline(options: Namespace) -> GNVCPipeline:
    if options.weights is None:
        raise PolyditError("--weights: GNVC-VD comes without weights; give the folder of its pipeline")
    pipe = load(options.weights)
    if not isinstance(pipe, GNVCPipeline):
        raise PolyditError(
            f"--weights {options.weights}: holds {type(pipe).__name__}, not GNVC-VD's pipeline"
        )
    dtype = torch.bfloat16 if options.dtype == "bfloat16" else torch.float32
    _ = pipe.coder  # of the weights as they are, before they are cast
    return pipe.to(choose_device(options.device), dtype)
