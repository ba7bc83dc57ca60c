"""The small system for videos, on the command line; see `..systems`."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from ....core.media.writer import OutputWriter
from ....core.open_pipeline import choose_weights
from .. import TASK
from ..codec import LAST_QUALITY, quality_index, quality_of
from ..container import CODECS, Container
from ..weights import identity_of, read_codec
from .groups import Coder
from .latent_video import LatentVideoCodec
from .video_io import VideoSystem, decode_video, encode_video

__all__ = ["decode_file", "encode_file", "open_chosen", "open_small"]

NUMBER = next(number for number, codec in CODECS.items() if codec.system == "small-video")


def open_small(folder: str | Path, name: str | Path = "file") -> VideoSystem:
    """The small video codec of a saved pipeline.

    Args:
        folder: of the pipeline.
        name: of the file that is decoded, for complaints.

    Raises:
        PolyditError: it is no such folder, or is damaged.
    """
    codec = read_codec(folder, LatentVideoCodec)
    coder = Coder(codec)
    return VideoSystem(
        NUMBER,
        identity_of(codec),
        LAST_QUALITY,
        quality_of,
        coder.encode,
        lambda group, number, count, size, index: coder.decode(group, count, size, index, name),
        str(folder),
    )


def encode_file(source: Path, output: OutputWriter, name: str, options: Namespace) -> dict[str, Any]:
    """Code a video; see `..systems`."""
    system = open_chosen(options)
    return encode_video(system, source, output, name, quality_index(options.quality), options)


def decode_file(
    source: Path, content: Container, output: OutputWriter, name: str, options: Namespace
) -> dict[str, Any]:
    """Decode a video; see `..systems`."""
    return decode_video(open_chosen(options, source), source, content, output, name)


def open_chosen(options: Namespace, name: str | Path = "file") -> VideoSystem:
    """The weights that the options name; see `open_small`."""
    system = None if options.weights is not None else CODECS[NUMBER].system
    return open_small(choose_weights(TASK, options.weights, system), name)
