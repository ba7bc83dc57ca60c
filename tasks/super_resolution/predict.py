"""``polydit super-resolution predict``: one input file at a time, pictures and videos."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...core.data.images import read_image, to_uint8
from ...core.data.video import VideoReader, is_video
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
    """Enlarge one picture (``<stem>.png``) or video (``<stem>.mp4``), and say what was done.

    Returns:
        A JSON-ready record: files, sizes, settings.
    """
    pipe.check_scale(options.scale)
    pipe.check_guidance(options.guidance_scale)
    if is_video(source):
        return predict_video(pipe, source, writer, options, generator)
    image, _ = read_image(source)
    height, width = image.shape[:2]
    progress = getattr(options, "progress", None)
    strips = enlarged_rows(pipe, to_uint8(image), options, generator, progress)
    path = writer.image_strips(f"{source.stem}.png", strips, height * options.scale, width * options.scale)
    return {
        "files": [path.name],
        "input_size": [width, height],
        "output_size": [width * options.scale, height * options.scale],
        "scale": options.scale,
    }


def predict_video(
    pipe: SuperResolutionPipeline,
    source: Path,
    writer: OutputWriter,
    options: Namespace,
    generator: torch.Generator,
) -> dict[str, Any]:
    """Enlarge a video frame by frame; one frame is in memory at a time.

    Every frame gets the same noise: noise of its own would make what stands still flicker.
    """
    from ...core.media.video import VideoWriter

    name, seed = f"{source.stem}.mp4", int(torch.randint(2**62, (), generator=generator))
    progress = getattr(options, "progress", None) or (lambda done, total: None)
    with VideoReader(source) as reader:
        width, height = reader.width * options.scale, reader.height * options.scale
        with (
            writer.open(name) as file,
            VideoWriter(file, width, height, reader.rate, sound_of=source) as video,
        ):
            frames = 0
            for frame in reader:
                same = torch.Generator().manual_seed(seed)
                strips = enlarged_rows(pipe, frame.pixels, options, same)
                video.write(np.concatenate(list(strips)), frame.time)
                frames += 1
                progress(frames, max(frames, reader.frames))
        return {
            "files": [name],
            "input_size": [reader.width, reader.height],
            "output_size": [video.stream.width, video.stream.height],  # even, as the format demands
            "scale": options.scale,
            "frames": frames,
            "frames_per_second": float(reader.rate),
            "sound": video.sound,
        }


def enlarged_rows(
    pipe: SuperResolutionPipeline,
    picture: NDArray[np.uint8],
    options: Namespace,
    generator: torch.Generator,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[NDArray[np.uint8]]:
    """Finished rows of an enlarged (H, W, 3) picture, from top to bottom."""
    low = torch.from_numpy(picture.transpose(2, 0, 1).copy())[None]
    strips = pipe.strips(
        low,
        scale=options.scale,
        num_inference_steps=options.steps or 1,
        generator=generator,
        tile=options.tile,
        overlap=options.overlap,
        color_fix=options.color_fix,
        progress=progress,
        guidance_scale=options.guidance_scale,
    )
    return map(to_rows, strips)


def to_rows(strip: Tensor) -> NDArray[np.uint8]:
    """(1, 3, rows, W) in [-1, 1] to (rows, W, 3) uint8."""
    return ((strip[0].clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
