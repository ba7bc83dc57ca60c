"""Masks of a video from what users have: a picture, a folder, a video, boxes, or one box to be followed.

1 is what is removed. Every source gives one mask (H, W) bool per frame, in order, and is read as the frames are.
"""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...core.data.images import list_images, read_image, to_uint8
from ...core.data.video import FolderReader, VideoReader, is_video
from ...core.errors import PolyditError
from .tracking import Box, track

__all__ = [
    "MaskReport",
    "more_than_frames",
    "open_masks",
    "read_frames_mask",
    "read_mask",
    "united",
    "watched",
]

Mask = NDArray[np.bool_]
Item = TypeVar("Item")
MUCH = 0.8  # of the picture: more is asked about
THRESHOLD = 128  # of 255: codecs leave grey rings around what was white


@dataclass
class MaskReport:
    """What was seen of the masks of a video.

    Attributes:
        frames: so far.
        covered: mean share of the picture.
        notes: what the user should know.
    """

    frames: int = 0
    covered: float = 0.0
    notes: list[str] = field(default_factory=list)


def open_masks(
    mask: Path | None, follow: str | None, video: Path, size: tuple[int, int], frames: int, report: MaskReport
) -> Iterator[Mask]:
    """The masks that the options name.

    Args:
        mask: picture, folder of pictures, video, or CSV file of boxes.
        follow: ``x,y,w,h@frame`` instead: a box that is followed through the video.
        video: what the masks are of.
        size: (height, width) of its frames.
        frames: how many it has, by its own account; 0 is not known.
        report: gets notes.

    Raises:
        PolyditError: neither or both are given; a file is missing or unreadable; sizes or numbers differ.
    """
    if (mask is None) == (follow is None):
        raise PolyditError(
            "--mask: give what is to be removed (picture, folder, video or CSV of boxes), or a box to follow with "
            "--track x,y,w,h@frame; one of the two"
        )
    if follow is not None:
        box, start = parse_track(follow, size)
        boxes, lost = track(video, box, start)
        if lost:
            report.notes.append(
                f"--track: lost sight of it in {lost} of {len(boxes)} frames, and went on as before"
            )
        return _of_boxes(dict(enumerate(boxes)), size)
    assert mask is not None
    mask = mask.expanduser()
    if mask.is_dir():
        return _folder(mask, video, size, frames)
    if not mask.is_file():
        raise PolyditError(f"--mask {mask}: no such file or folder")
    if mask.suffix.lower() == ".csv":
        return _of_boxes(parse_boxes(mask), size)
    if is_video(mask) or mask.suffix.lower() == ".gif":
        return _video(mask, video, size, frames)
    return _still(read_mask(mask), mask, video, size)


def read_frames_mask(
    mask: Path | None, video: Path, size: tuple[int, int], frames: int
) -> Iterator[Mask] | None:
    """The masks of a foreground, or None where there are none."""
    return None if mask is None else open_masks(mask, None, video, size, frames, MaskReport())


def watched(masks: Iterable[Mask], report: MaskReport, inverted: bool) -> Iterator[Mask]:
    """Count what is covered; tell where nearly everything is, which is what masks of the other polarity look like."""
    for mask in masks:
        mask = ~mask if inverted else mask
        report.covered = (report.covered * report.frames + float(mask.mean())) / (report.frames + 1)
        report.frames += 1
        if report.frames == 1 and report.covered > MUCH:
            report.notes.append(
                f"--mask: covers {100 * report.covered:.0f} % of the first frame, and white is what is removed; if "
                "white is what to keep, pass --invert"
            )
        yield mask


def united(pairs: Iterable[tuple[Item, Mask]], radius: int) -> Iterator[tuple[Item, Mask]]:
    """Frames with their masks, each joined with those of so many frames before and after it."""
    if not radius:
        yield from pairs
        return
    masks: deque[Mask] = deque(maxlen=2 * radius + 1)
    waiting: deque[Item] = deque()
    for item, mask in pairs:
        masks.append(mask)
        waiting.append(item)
        if len(waiting) > radius:
            yield waiting.popleft(), np.logical_or.reduce(masks)
    while waiting:  # fewer and fewer frames come after these
        near = list(masks)[-(len(waiting) + radius) :]
        yield waiting.popleft(), np.logical_or.reduce(near)


def read_mask(file: Path) -> Mask:
    """A mask of a picture: a palette's colours but the first (DAVIS), alpha where there is one, else what is bright.

    Raises:
        PolyditError: it cannot be read.
    """
    if file.suffix.lower() in (".png", ".gif"):
        try:
            with Image.open(file) as picture:
                if picture.mode == "P" and "transparency" not in picture.info:
                    return np.asarray(picture) > 0
        except (OSError, ValueError):
            pass  # told below
    pixels, info = read_image(file)
    if info.alpha is not None and info.alpha.min() < info.alpha.max():
        return to_uint8(info.alpha) >= THRESHOLD
    return to_uint8(pixels).max(-1) >= THRESHOLD


# -- boxes -------------------------------------------------------------------------------------------------


def parse_track(text: str, size: tuple[int, int]) -> tuple[Box, int]:
    """``x,y,w,h@frame``, the frame 0 where it is left out.

    Raises:
        PolyditError: it is something else, or lies outside of the picture.
    """
    place, _, number = text.replace(" ", "").partition("@")
    try:
        x, y, width, height = (float(part) for part in place.split(","))
        frame = int(number or 0)
    except ValueError:
        raise PolyditError(f"--track {text}: give x,y,w,h@frame in pixels, such as 120,60,40,80@0") from None
    if width < 2 or height < 2 or frame < 0:
        raise PolyditError(
            f"--track {text}: the box needs 2 pixels or more to each side, and a frame from 0 on"
        )
    if x + width <= 0 or y + height <= 0 or x >= size[1] or y >= size[0]:
        raise PolyditError(f"--track {text}: lies outside of the picture, which is {size[1]}x{size[0]}")
    return (x, y, width, height), frame


def parse_boxes(file: Path) -> dict[int, Box]:
    """A CSV file with the columns frame, x, y, w, h; frames between two that are named get boxes between theirs.

    Raises:
        PolyditError: it cannot be read as that.
    """
    found: dict[int, Box] = {}
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            for row in csv.DictReader(stream, skipinitialspace=True):
                found[int(row["frame"])] = (
                    float(row["x"]),
                    float(row["y"]),
                    float(row["w"]),
                    float(row["h"]),
                )
    except (OSError, UnicodeDecodeError, csv.Error, KeyError, ValueError, TypeError) as error:
        raise PolyditError(
            f"{file}: not a table of boxes ({type(error).__name__}: {error}); its first line is frame,x,y,w,h"
        ) from error
    if not found:
        raise PolyditError(
            f"{file}: has no boxes; its first line is frame,x,y,w,h, and a line follows for each box"
        )
    numbers = sorted(found)
    for before, after in pairwise(numbers):
        for number in range(before + 1, after):
            share = (number - before) / (after - before)
            a, b = found[before], found[after]
            found[number] = tuple((1 - share) * p + share * q for p, q in zip(a, b, strict=True))  # type: ignore[assignment]
    return found


def box_mask(box: Box, size: tuple[int, int]) -> Mask:
    """A box as a mask of (height, width); parts of pixels count."""
    mask = np.zeros(size, bool)
    left, top = (max(0, int(np.floor(value))) for value in box[:2])
    right, bottom = (max(0, int(np.ceil(box[n] + box[n + 2]))) for n in (0, 1))
    mask[top:bottom, left:right] = True
    return mask


def _of_boxes(boxes: dict[int, Box], size: tuple[int, int]) -> Iterator[Mask]:
    number = 0
    while True:
        yield box_mask(boxes[number], size) if number in boxes else np.zeros(size, bool)
        number += 1


# -- files -------------------------------------------------------------------------------------------------


def _still(mask: Mask, file: Path, video: Path, size: tuple[int, int]) -> Iterator[Mask]:
    _check_size(mask, file, video, size)

    def masks() -> Iterator[Mask]:
        while True:
            yield mask

    return masks()


def _folder(folder: Path, video: Path, size: tuple[int, int], frames: int) -> Iterator[Mask]:
    files = FolderReader(folder).files if len(list_images(folder, recursive=False)) else []
    _check_count(len(files), frames, folder, video)
    _check_size(read_mask(files[0]), files[0], video, size)

    def masks() -> Iterator[Mask]:
        for file in files:
            mask = read_mask(file)
            _check_size(mask, file, video, size)
            yield mask

    return _counted(masks(), folder, video)


def _video(file: Path, video: Path, size: tuple[int, int], frames: int) -> Iterator[Mask]:
    reader = VideoReader(file)
    try:
        if (reader.height, reader.width) != size:
            raise _wrong_size(file, (reader.height, reader.width), video, size)
        _check_count(reader.frames, frames, file, video)
    except BaseException:
        reader.__exit__()
        raise

    def masks() -> Iterator[Mask]:
        with reader:
            for frame in reader:
                yield frame.pixels.max(-1) >= THRESHOLD

    return _counted(masks(), file, video)


def more_than_frames(masks: Iterator[Mask], mask: Path | None, video: Path, frames: int) -> None:
    """Refuse masks that are left over when the frames are over; pictures and boxes do for any number.

    Raises:
        PolyditError: there are.
    """
    if mask is None or not (mask.is_dir() or is_video(mask) or mask.suffix.lower() == ".gif"):
        return
    try:
        next(masks)
    except PolyditError:  # none is left
        return
    raise PolyditError(f"{mask}: holds more masks than {video.name} has frames, {frames}; give one for each")


def _counted(masks: Iterator[Mask], source: Path, video: Path) -> Iterator[Mask]:
    """Masks, and a line instead of one too few; see :func:`more_than_frames` for one too many."""
    count = 0
    for mask in masks:
        count += 1
        yield mask
    raise PolyditError(
        f"{source}: holds {count} masks, and {video.name} has more frames; give one mask for each"
    )


def _check_size(mask: Mask, file: Path, video: Path, size: tuple[int, int]) -> None:
    if mask.shape != size:
        raise _wrong_size(file, mask.shape, video, size)


def _wrong_size(file: Path, found: tuple[int, ...], video: Path, size: tuple[int, int]) -> PolyditError:
    return PolyditError(
        f"{file}: is {found[1]}x{found[0]} and {video.name} {size[1]}x{size[0]}; give masks of the video's size"
    )


def _check_count(masks: int, frames: int, source: Path, video: Path) -> None:
    """Refuse at once what cannot fit; containers miscount by a few, which shows at the end."""
    if masks and frames and abs(masks - frames) > max(2, frames // 50):
        raise PolyditError(
            f"{source}: holds {masks} masks, and {video.name} has {frames} frames; give one mask for each, or one "
            "picture for all"
        )
