"""``polydit segmentation predict``: one picture or video at a time, by the kind of pipeline that was loaded."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...core.data.images import read_image, to_uint8
from ...core.data.video import VideoReader, is_video
from ...core.errors import PolyditError
from ...core.media import OutputWriter
from ...core.task import resolve
from .cutout import cut_out, overlay, piece_at
from .pipeline import Box, checked_box

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

__all__ = ["SEGMENTERS", "Segmented", "check_options", "predict_one"]

_HERE = __name__.rpartition(".")[0]
SEGMENTERS = {
    "SegmentationPipeline": f"{_HERE}.segment:segment",
    "PDFNetPipeline": f"{_HERE}.pdfnet_pipeline:segment",
    "FewShotPipeline": f"{_HERE}.few_shot.pipeline:segment",
}
"""Class of a pipeline -> ``segment(pipe, picture, source, options, generator) -> Segmented``.

``picture`` is (H, W, 3) uint8 (a file, or a frame of a video), ``source`` the file that it is from.
"""

USES = {
    "SegmentationPipeline": {"edges", "min_max", "looks", "box", "detail_side"},
    "PDFNetPipeline": {"min_max", "box", "depth"},
    "FewShotPipeline": {"support", "support_mask", "support_classes"},
}
"""Class of a pipeline -> those of the options that are for some of the systems only that it uses."""

FOR = {
    "edges": "DiffDIS and the small weights",
    "looks": "DiffDIS and the small weights",
    "detail_side": "DiffDIS and the small weights",
    "min_max": "all but few-shot weights",
    "box": "all but few-shot weights",
    "depth": "PDFNet's weights",
    "support": "few-shot weights (--system few-shot)",
    "support_mask": "few-shot weights (--system few-shot)",
    "support_classes": "few-shot weights (--system few-shot)",
}
"""Option -> whom it is for."""

PICTURES_ONLY = ("point", "edges", "overlay", "support_classes")
"""Options that do nothing for a video."""

THRESHOLD = 0.5
"""Of the hard mask, of systems that have none of their own."""

Segment = Callable[["DiffusionPipeline", NDArray[np.uint8], Path, Namespace, torch.Generator], "Segmented"]


@dataclass
class Segmented:
    """What a system says of one picture.

    Attributes:
        alpha: (H, W) float32 in [0, 1].
        edges: (H, W) float32 in [0, 1], of systems that predict them.
        threshold: where its hard mask is cut, if it has a measure of its own; None is ``--threshold``, or 0.5.
        record: JSON-ready, added to the input's record.
        pictures: more to write, (H, W) uint8 by what stands behind the stem.
    """

    alpha: NDArray[np.float32]
    edges: NDArray[np.float32] | None = None
    threshold: float | None = None
    record: dict[str, Any] = field(default_factory=dict)
    pictures: dict[str, NDArray[np.uint8]] = field(default_factory=dict)


def predict_one(
    pipe: DiffusionPipeline,
    source: Path,
    writer: OutputWriter,
    options: Namespace,
    generator: torch.Generator,
) -> dict[str, Any]:
    """Write ``<stem>_alpha.png``, ``<stem>_mask.png`` and ``<stem>_cutout.png``; of a video, one of grey frames.

    Returns:
        A JSON-ready record: files, sizes, share of the picture that is object.

    Raises:
        PolyditError: the weights are of another task, or an option does not fit them or the picture.
    """
    segment = segmenter(pipe)
    check_options(pipe, options)
    if options.threshold is not None and not 0 < options.threshold < 1:
        raise PolyditError(f"--threshold {options.threshold:g}: must lie between 0 and 1")
    if is_video(source):
        if unused := [name for name in PICTURES_ONLY if getattr(options, name, None)]:
            raise PolyditError(
                f"{source.name}: of a video only masks are written, without {flag(unused[0])}; leave it out"
            )
        return predict_video(pipe, segment, source, writer, options, generator)
    picture = to_uint8(read_image(source)[0])
    point = parse_numbers(options.point, "--point", 2)
    found = segment(pipe, picture, source, options, generator)
    if point is not None:
        keep_piece_of(found, *point)
    alpha = to_bytes(found.alpha)
    mask = hard_mask(found, options.threshold)
    stem, outputs = source.stem, {"alpha": alpha, "mask": mask, "cutout": cut_out(picture, found.alpha)}
    if options.edges and found.edges is not None:
        outputs["edges"] = to_bytes(found.edges)
    if options.overlay:
        outputs["overlay"] = overlay(picture, found.alpha)
    outputs |= found.pictures
    # By the soft mask a later run knows what is done, so it is there only when all else is.
    for name in [*(name for name in outputs if name != "alpha"), "alpha"]:
        writer.image(f"{stem}_{name}.png", outputs[name])
    height, width = picture.shape[:2]
    return {
        "files": [f"{stem}_{name}.png" for name in outputs],
        "size": [width, height],
        "foreground": round(float(mask.mean()) / 255, 4),
        **found.record,
    }


def predict_video(
    pipe: DiffusionPipeline,
    segment: Segment,
    source: Path,
    writer: OutputWriter,
    options: Namespace,
    generator: torch.Generator,
) -> dict[str, Any]:
    """Write ``<stem>_alpha.mp4`` or ``<stem>_mask.mp4``: the mask of each frame as a grey frame."""
    from ...core.media.video import VideoWriter

    name, seed = f"{source.stem}_{options.video}.mp4", int(torch.randint(2**62, (), generator=generator))
    progress = getattr(options, "progress", None) or (lambda done, total: None)
    options = Namespace(**{**vars(options), "progress": None})
    with VideoReader(source) as reader:
        with (
            writer.open(name) as file,
            VideoWriter(file, reader.width, reader.height, reader.rate) as video,
        ):
            frames = 0
            for frame in reader:
                same = torch.Generator().manual_seed(seed)  # noise of its own would flicker
                found = segment(pipe, frame.pixels, source, options, same)
                grey = (
                    to_bytes(found.alpha) if options.video == "alpha" else hard_mask(found, options.threshold)
                )
                video.write(np.repeat(grey[..., None], 3, axis=2), frame.time)
                frames += 1
                progress(frames, max(frames, reader.frames))
        return {
            "files": [name],
            "size": [reader.width, reader.height],
            "frames": frames,
            "frames_per_second": float(reader.rate),
        }


def segmenter(pipe: DiffusionPipeline) -> Segment:
    """The function that runs this kind of pipeline on a picture.

    Raises:
        PolyditError: it does not segment.
    """
    name = type(pipe).__name__
    if name not in SEGMENTERS:
        raise PolyditError(f"--weights: {name} does not segment; choose one of {', '.join(SEGMENTERS)}")
    segment: Segment = resolve(SEGMENTERS[name])
    return segment


def check_options(pipe: DiffusionPipeline, options: Namespace) -> None:
    """Nothing that was asked for is left undone.

    Raises:
        PolyditError: an option is given that this kind of pipeline does not use.
    """
    name = type(pipe).__name__
    for option, whom in FOR.items():
        value = getattr(options, option, None)
        if value not in (None, False, []) and option not in USES[name]:
            raise PolyditError(f"{flag(option)}: {name} does not use it, it is for {whom}; leave it out")
    if options.detail == "tiles" and "detail_side" not in USES[name]:
        raise PolyditError(
            f"--detail tiles: {name} sees no tiles, they are for {FOR['detail_side']}; guided and none are for all"
        )
    side = getattr(options, "detail_side", None)
    if options.detail in ("guided", "none") and side is not None:
        raise PolyditError(
            f"--detail-side {side}: is of tiles, and --detail {options.detail} has none; leave one of them out"
        )
    if (options.steps or 1) != 1:
        raise PolyditError(f"--steps {options.steps}: masks are predicted in one step; leave it out")


def flag(option: str) -> str:
    """How an option is written on the command line."""
    return "--" + option.replace("_", "-")


def parse_numbers(text: str | None, option: str, count: int) -> tuple[int, ...] | None:
    """``"10,20"`` as numbers.

    Raises:
        PolyditError: it is something else.
    """
    if text is None:
        return None
    try:
        numbers = tuple(int(part) for part in text.replace(" ", "").split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != count:
        example = ",".join(str(10 * (number + 1)) for number in range(count))
        raise PolyditError(f"{option} {text}: give {count} whole numbers, such as {example}")
    return numbers


def parse_box(text: str | None, picture: NDArray[np.uint8], source: Path) -> Box | None:
    """``"10,20,30,40"`` as a box in a picture (H, W, 3).

    Raises:
        PolyditError: it is something else, or nothing of it lies in the picture, whose file is then named.
    """
    numbers = parse_numbers(text, "--box", 4)
    if numbers is None:
        return None
    left, top, right, bottom = numbers
    try:
        checked_box((left, top, right, bottom), *picture.shape[:2])
    except PolyditError as error:
        # Not of the option alone: other pictures may be large enough.
        raise PolyditError(f"{source.name}: {error}") from error
    return left, top, right, bottom


def keep_piece_of(found: Segmented, x: int, y: int) -> None:
    """Leave only the piece at, or nearest to, a pixel of all that was found."""
    piece, around = piece_at(found.alpha, x, y)
    found.alpha = np.where(piece, found.alpha, 0).astype(np.float32)
    if found.edges is not None:  # they lie on both sides of a rim
        found.edges = np.where(around, found.edges, 0).astype(np.float32)
    found.pictures = {
        name: np.where(piece, pixels, 0).astype(np.uint8) for name, pixels in found.pictures.items()
    }
    labels = found.pictures.get("classes")
    for entry in found.record.get("classes", {}).values() if labels is not None else ():
        entry["share"] = round(float((labels == entry["label"]).mean()), 4)


def hard_mask(found: Segmented, threshold: float | None) -> NDArray[np.uint8]:
    """(H, W) of 0 and 255; ``threshold`` is what the user asked for, if anything."""
    limit = THRESHOLD if threshold is None else threshold
    if found.threshold is not None:
        limit = found.threshold
    return np.where(found.alpha > limit, 255, 0).astype(np.uint8)


def to_bytes(soft: NDArray[np.float32]) -> NDArray[np.uint8]:
    """[0, 1] to 0..255."""
    return np.rint(soft.clip(0, 1) * 255).astype(np.uint8)
