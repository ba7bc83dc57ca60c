"""Following a box through a video by scikit-image's normalised cross-correlation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...core.data.clips import Clip
from ...core.errors import PolyditError

__all__ = ["Box", "follow", "track"]

Box = tuple[float, float, float, float]
"""Left, top, width, height in pixels."""

_LONGEST = 40  # of the template, in pixels: more is slow and no surer
_SCALES = (1.0, 0.96, 1.04)
_SURE, _LOST = 0.6, 0.35  # correlation from which the template is renewed, and below which it is not believed
_CHUNK = 32  # frames in memory


def track(video: Path, box: Box, start: int = 0) -> tuple[list[Box], int]:
    """Boxes in all frames of a video, of what a box shows in one of them.

    Args:
        video: file or folder of frames.
        box: in the frame ``start``; pixels of the upright picture.
        start: number of that frame.

    Returns:
        A box for each frame, and in how many of them it could not be found again.

    Raises:
        PolyditError: the video has no such frame, or cannot be read.
    """
    clip = Clip(video)
    try:
        length = len(clip)
        if start >= length:
            raise PolyditError(
                f"--track: frame {start} is not in {video.name}, which has frames 0 to {length - 1}"
            )
        after, lost_after = follow(_frames(clip, range(start, length)), box)
        before, lost_before = follow(_frames(clip, range(start, -1, -1)), box)
    finally:
        clip.close()
    return [*reversed(before[1:]), *after], lost_after + lost_before


def follow(frames: Iterator[NDArray[np.uint8]], box: Box) -> tuple[list[Box], int]:
    """Boxes in frames (H, W, 3) in the order given, the first being known; and how many are guesses."""
    boxes: list[Box] = []
    template: NDArray[np.float32] | None = None
    x, y, width, height = box
    speed, lost, ratio = np.zeros(2), 0, min(1.0, _LONGEST / max(width, height))
    for frame in frames:
        grey = _grey(frame, ratio)
        if template is None:
            template = _patch(grey, x * ratio, y * ratio, width * ratio, height * ratio)
            boxes.append((x, y, width, height))
            continue
        guess = np.array([x, y]) + speed
        found = _search(grey, template, guess * ratio, (width * ratio, height * ratio))
        if found is None or found[0] < _LOST:
            lost += 1
            speed = speed * 0.8
            x, y = guess
        else:
            score, left, top, scale = found
            middle = np.array([left, top]) / ratio + np.array([width, height]) * scale / 2
            width, height = width * scale, height * scale
            new = middle - np.array([width, height]) / 2
            speed = 0.5 * speed + 0.5 * (new - np.array([x, y]))
            x, y = new
            if score > _SURE:
                fresh = _patch(grey, x * ratio, y * ratio, width * ratio, height * ratio)
                template = 0.9 * template + 0.1 * _sized(fresh, template.shape)
        # Quarters of pixels: another machine's correlations have other last digits.
        boxes.append(tuple(round(4 * float(value)) / 4 for value in (x, y, width, height)))  # type: ignore[arg-type]
    return boxes, lost


def _search(
    grey: NDArray[np.float32],
    template: NDArray[np.float32],
    guess: NDArray[np.float64],
    size: tuple[float, float],
) -> tuple[float, float, float, float] | None:
    """Best correlation, left and top there, and the scale, around a guess."""
    from skimage.feature import match_template

    best: tuple[float, float, float, float] | None = None
    reach = max(6.0, 0.6 * max(size))
    for scale in _SCALES:
        wide, high = (max(3, round(side * scale)) for side in size)
        patch = _sized(template, (high, wide))
        if patch.std() < 1e-3:
            return None
        middle = guess + np.array(size) / 2
        left, top = middle - np.array([wide, high]) / 2
        x0, y0 = int(np.floor(left - reach)), int(np.floor(top - reach))
        area = _cut(grey, x0, y0, int(wide + 2 * reach), int(high + 2 * reach))
        scores = match_template(area, patch)
        row, column = np.unravel_index(int(scores.argmax()), scores.shape)
        score = float(scores[row, column]) - (0.0 if scale == 1.0 else 0.01)  # another size must be worth it
        if best is None or score > best[0]:
            best = (
                score,
                x0 + column + _peak(scores[row], int(column)),
                y0 + row + _peak(scores[:, column], int(row)),
                scale,
            )
    return best


def _peak(values: NDArray[np.float64], at: int) -> float:
    """Where between pixels the top of a parabola through three values lies."""
    if not 0 < at < len(values) - 1:
        return 0.0
    a, b, c = values[at - 1 : at + 2]
    bend = a - 2 * b + c
    return float(np.clip((a - c) / (2 * bend), -0.5, 0.5)) if bend < 0 else 0.0


def _grey(frame: NDArray[np.uint8], ratio: float) -> NDArray[np.float32]:
    picture = Image.fromarray(frame).convert("L")
    if ratio < 1:
        size = (max(1, round(picture.width * ratio)), max(1, round(picture.height * ratio)))
        picture = picture.resize(size, Image.Resampling.BILINEAR, reducing_gap=2)
    return np.asarray(picture, np.float32) / 255


def _cut(grey: NDArray[np.float32], left: int, top: int, width: int, height: int) -> NDArray[np.float32]:
    rows = np.clip(np.arange(top, top + height), 0, grey.shape[0] - 1)
    columns = np.clip(np.arange(left, left + width), 0, grey.shape[1] - 1)
    return grey[rows][:, columns]


def _patch(grey: NDArray[np.float32], x: float, y: float, width: float, height: float) -> NDArray[np.float32]:
    return _cut(grey, round(x), round(y), max(3, round(width)), max(3, round(height)))


def _sized(patch: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
    if patch.shape == shape:
        return patch
    return np.asarray(Image.fromarray(patch).resize((shape[1], shape[0]), Image.Resampling.BILINEAR))


def _frames(clip: Clip, order: range) -> Iterator[NDArray[np.uint8]]:
    """Frames in this order, a few in memory; backwards in pieces, as decoders only go forwards."""
    for begin in range(0, len(order), _CHUNK):
        numbers = list(order[begin : begin + _CHUNK])
        yield from clip.get(numbers)
