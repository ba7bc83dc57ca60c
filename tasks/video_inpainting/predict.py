"""``polydit video-inpainting predict``: one video at a time, frame by frame, whatever its length."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...core.data.masks import dilate
from ...core.data.video import Frame, FrameSource, open_frames
from ...core.errors import PolyditError
from ...core.media.video import video_output
from ...core.task import resolve
from .masks import MaskReport, more_than_frames, open_masks, united, watched
from .pipeline import VideoInpaintingPipeline

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from ...core.media import OutputWriter

__all__ = ["ENDINGS", "predict_one", "result_name"]

_HERE = __name__.rpartition(".")[0]
COMPOSITOR = "VideoCompositingPipeline"
ENDINGS = {"mp4": ".mp4", "webm": ".webm", "gif": ".gif", "frames": ""}


def predict_one(
    pipe: DiffusionPipeline,
    source: Path,
    writer: OutputWriter,
    options: Namespace,
    generator: torch.Generator,
) -> dict[str, Any]:
    """Write ``<stem>_inpainted.mp4``, or ``<stem>_composite.mp4`` with ``--composite``.

    Returns:
        A JSON-ready record: files, sizes, frames, what there is to note.

    Raises:
        PolyditError: the weights are of another system, or an option or a file does not fit.
    """
    name = type(pipe).__name__
    if (name == COMPOSITOR) != (options.composite is not None):
        raise PolyditError(
            f"--composite: {name} puts no video into another; leave it out, or choose weights of GenCompositor"
            if options.composite is not None
            else f"--composite: {name} needs the video of what is put in; name it"
        )
    if name == COMPOSITOR:
        record: dict[str, Any] = resolve(f"{_HERE}.compositing_predict:predict_composite")(
            pipe, source, writer, options, generator
        )
        return record
    if not isinstance(pipe, VideoInpaintingPipeline):
        raise PolyditError(f"--weights: a {name} does not inpaint videos; choose other weights")
    return inpaint(pipe, source, writer, options, generator)


def inpaint(
    pipe: VideoInpaintingPipeline,
    source: Path,
    writer: OutputWriter,
    options: Namespace,
    generator: torch.Generator,
) -> dict[str, Any]:
    """Remove what the masks cover; see :func:`predict_one`."""
    report = MaskReport()
    progress = getattr(options, "progress", None) or (lambda done, total: None)
    with open_frames(source) as reader:
        size = (reader.height, reader.width)
        masks = open_masks(options.mask, options.track, source, size, reader.frames, report)
        pairs = united(_paired(reader, watched(masks, report, options.invert)), options.union)
        times: deque[Fraction] = deque()

        def prepared() -> Iterator[tuple[NDArray[np.uint8], NDArray[np.bool_]]]:
            for frame, mask in pairs:
                times.append(frame.time)
                yield frame.pixels, dilate(mask, options.dilate) if mask.any() else mask

        name, done = result_name(source, "inpainted", options.format), 0
        rate = reader.rate
        with _writing(writer, name, reader, source) as video:
            made = pipe.stream(
                prepared(),
                num_inference_steps=options.steps,
                generator=generator,
                windows=options.windows,
                clip=options.clip_frames,
                feather=options.feather,
                adain=options.adain,
                frame_rate=float(rate),
            )
            for frame in made:
                video.write(frame, times.popleft())
                done += 1
                progress(done, max(done, reader.frames))
            if done >= 0.95 * reader.frames - 2:  # of a video that is cut short, masks are left over
                more_than_frames(masks, options.mask, source, done)
        notes = [*reader.notes(), *report.notes]
        if report.covered == 0:
            notes.append("no mask covers anything: the frames were copied")
        notes += even_sides(name, size)
        if reader.has_audio and video.sound != "copied":
            notes.append(f"sound: {video.sound}")
    for note in notes:
        print(f"{source.name}: {note}", file=sys.stderr, flush=True)  # noqa: T201 - what the user reads
    return {
        "files": [name],
        "size": [size[1], size[0]],
        "frames": done,
        "frames_per_second": float(rate),
        "covered": round(report.covered, 4),
        "sound": video.sound,
        "notes": notes,
    }


def result_name(source: Path, what: str, kind: str) -> str:
    """Name of the result; a folder of frames gets none of the endings."""
    stem = source.stem if source.is_file() else source.name
    return f"{stem}_{what}{ENDINGS[kind]}"


def even_sides(name: str, size: tuple[int, int]) -> list[str]:
    """What there is to say of a video (height, width) with an odd side."""
    height, width = size
    kind = Path(name).suffix.lstrip(".")
    if kind not in ("mp4", "webm") or height % 2 == width % 2 == 0:
        return []
    what = " and ".join(word for word, side in (("row", height), ("column", width)) if side % 2)
    return [
        f"{kind} has even sides only: it is {width + width % 2}x{height + height % 2}, with the last {what} repeated"
    ]


def _writing(writer: OutputWriter, name: str, reader: FrameSource, source: Path) -> Any:
    return video_output(
        writer,
        name,
        reader.width,
        reader.height,
        reader.rate,
        sound_of=source if reader.has_audio else None,
        full_range=reader.full_range,
    )


def _paired(
    reader: FrameSource, masks: Iterator[NDArray[np.bool_]]
) -> Iterator[tuple[Frame, NDArray[np.bool_]]]:
    for frame in reader:
        yield frame, next(masks)
