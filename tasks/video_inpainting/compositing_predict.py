"""``predict --composite``: a video into another one, at a size and along a path that the user sets."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...core.data.video import Frame, open_frames
from ...core.errors import PolyditError
from ...core.media.video import video_output
from ...core.time_windows import mirrored, stream_windows
from .compositing import gamma_adjusted, keyed, parse_path, placed
from .compositing_data import cut_elements
from .masks import read_frames_mask
from .predict import even_sides, result_name

if TYPE_CHECKING:
    from ...core.media import OutputWriter
    from .compositing_pipeline import VideoCompositingPipeline

__all__ = ["predict_composite", "read_elements"]

Pixels = NDArray[np.uint8]
MOST = 2000  # frames of a foreground, which is held in memory


def predict_composite(
    pipe: VideoCompositingPipeline,
    source: Path,
    writer: OutputWriter,
    options: Namespace,
    generator: torch.Generator,
) -> dict[str, Any]:
    """Write ``<stem>_composite.mp4``.

    Returns:
        A JSON-ready record.
    """
    elements = read_elements(options.composite, options.mask, options.gamma)
    progress = getattr(options, "progress", None) or (lambda done, total: None)
    notes: list[str] = []
    with open_frames(source) as reader:
        size, length = (reader.height, reader.width), reader.frames or 1
        path = parse_path(options.path, size, max(length, 1))
        rows = options.size_pixels or round(0.4 * size[0])
        largest = max(element.shape[0] for element in elements)
        order = mirrored(list(range(len(elements))), max(length, 1) + 64)
        if len(elements) < length:
            notes.append(f"--composite: has {len(elements)} frames, and is played back and forth")

        def frames() -> Iterator[tuple[int, Frame]]:
            yield from enumerate(reader)

        name, done, handed = result_name(source, "composite", options.format), 0, []
        with video_output(
            writer,
            name,
            reader.width,
            reader.height,
            reader.rate,
            sound_of=source if reader.has_audio else None,
            full_range=reader.full_range,
        ) as video:
            form = pipe.formulation
            for window in stream_windows(frames(), form.frames, form.known):
                pictures = np.stack([frame.pixels for _, frame in window.frames])
                own = [elements[order[number % len(order)]] for number, _ in window.frames]
                layers = np.stack(
                    [
                        placed(
                            element, path[min(number, len(path) - 1)], rows * element.shape[0] / largest, size
                        )
                        for element, (number, _) in zip(own, window.frames, strict=True)
                    ]
                )
                for number, frame in enumerate(handed[: window.known]):
                    pictures[number] = frame
                made = pipe(pictures, layers, own, window.known, options.steps, generator)
                count = len(made) - window.padding
                for number in range(window.known, count):
                    time: Fraction = window.frames[number][1].time
                    video.write(made[number], time)
                    done += 1
                    progress(done, max(done, reader.frames))
                handed = list(made[count - form.known : count]) if form.known else []
        notes += [*reader.notes(), *even_sides(name, size)]
    for note in notes:
        print(f"{source.name}: {note}", file=sys.stderr, flush=True)  # noqa: T201 - what the user reads
    return {
        "files": [name],
        "size": [size[1], size[0]],
        "frames": done,
        "frames_per_second": float(reader.rate),
        "foreground": str(options.composite),
        "sound": video.sound,
        "notes": notes,
    }


def read_elements(file: Path, mask: Path | None, gamma: float = 1.0) -> list[Pixels]:
    """Each frame of a foreground video cut to what it shows, (h, w, 4) with straight alpha.

    Args:
        file: video, or folder of frames.
        mask: of it, see ``--mask``; without one, what differs from the colour of the border.
        gamma: of its luminance.

    Raises:
        PolyditError: it cannot be read, is too long, or shows nothing.
    """
    frames: list[Pixels] = []
    with open_frames(file.expanduser()) as reader:
        masks = read_frames_mask(mask, file, (reader.height, reader.width), reader.frames)
        for frame in reader:
            if len(frames) == MOST:
                raise PolyditError(f"--composite {file}: has more than {MOST} frames; give a shorter clip")
            alpha = keyed(frame.pixels) if masks is None else next(masks).astype(np.float32)
            colour = gamma_adjusted(frame.pixels, gamma) if gamma != 1 else frame.pixels
            frames.append(np.dstack([colour, np.rint(alpha * 255).astype(np.uint8)]))
    if not any(frame[..., 3].any() for frame in frames):
        raise PolyditError(
            f"--composite {file}: shows nothing that stands out from its border; give its mask with --mask"
        )
    return cut_elements(np.stack(frames))
