"""Reading video files frame by frame."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import ModuleType, TracebackType

import numpy as np
from numpy.typing import NDArray

from ..errors import PolyditError

__all__ = ["Frame", "VideoReader", "is_video"]

UNSPECIFIED = 2  # ffmpeg's AVCOL_SPC_UNSPECIFIED


@dataclass(frozen=True)
class Frame:
    """One frame.

    Attributes:
        pixels: (H, W, 3) uint8, upright.
        time: seconds from the start of the file, as a fraction.
    """

    pixels: NDArray[np.uint8]
    time: Fraction


class VideoReader:
    """Frames of a video file in order, one in memory at a time; a context manager.

    Args:
        path: mp4, mov, mkv, webm, avi: what PyAV reads.

    Attributes:
        width, height: of the upright frames.
        rate: frames per second, on average.
        frames: how many there are by the file's own account or by its duration; 0 if it does not say.
        has_audio: whether there is sound.

    Raises:
        PolyditError: PyAV is not installed; the file is missing, empty, damaged, or has no picture.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.av = import_av(f"{self.path}: reading video")
        if not self.path.is_file():
            raise PolyditError(f"{self.path}: no such file; check the path")
        if self.path.stat().st_size == 0:
            raise PolyditError(f"{self.path}: is empty (0 bytes); replace the file")
        try:
            self.container = self.av.open(str(self.path))
        except (OSError, ValueError, self.av.FFmpegError) as error:
            raise self._damaged(error) from error
        try:
            if not self.container.streams.video:
                raise PolyditError(f"{self.path}: holds no video; give a video file")
            self.stream = self.container.streams.video[0]
            self.stream.thread_type = "AUTO"
            self._frames = self._decode()
            try:
                self._first: Frame | None = next(self._frames)
            except StopIteration:
                raise PolyditError(
                    f"{self.path}: holds no frame that can be read; replace the file"
                ) from None
        except BaseException:
            self.container.close()
            raise
        self.height, self.width = self._first.pixels.shape[:2]
        self.rate = Fraction(self.stream.average_rate or self.stream.guessed_rate or 25)
        self.has_audio = bool(self.container.streams.audio)
        seconds = (self.container.duration or 0) / self.av.time_base
        self.frames: int = self.stream.frames or round(seconds * self.rate)

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(self.av.FFmpegError):
            self.container.close()

    def __iter__(self) -> Iterator[Frame]:
        """The frames, once.

        Raises:
            PolyditError: the file is cut short or damaged.
        """
        if self._first is not None:
            first, self._first = self._first, None
            yield first
        yield from self._frames

    def _decode(self) -> Iterator[Frame]:
        previous: Fraction | None = None
        try:
            for frame in self.container.decode(self.stream):
                # Where nothing is said, players take high-definition pictures for BT.709; swscale would take BT.601.
                untold = int(frame.colorspace) == UNSPECIFIED and min(frame.width, frame.height) >= 720
                pixels = frame.to_ndarray(format="rgb24", **({"src_colorspace": "ITU709"} if untold else {}))
                # Phones store how the camera was held instead of turning the pixels.
                turns = round(getattr(frame, "rotation", 0) / 90) % 4
                step = 1 / Fraction(self.stream.average_rate or 25)
                if frame.pts is not None and frame.time_base is not None:
                    time = frame.pts * Fraction(frame.time_base)
                else:
                    time = previous + step if previous is not None else Fraction(0)
                if previous is not None and time <= previous:
                    time = previous + step  # time runs forward, whatever the file says
                previous = time
                yield Frame(np.ascontiguousarray(np.rot90(pixels, turns)), time)
        except self.av.FFmpegError as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> PolyditError:
        reason = getattr(error, "strerror", None) or str(error)
        return PolyditError(
            f"{self.path}: not a video that can be read, or cut short ({reason}); replace the file"
        )


def is_video(path: Path) -> bool:
    """Whether a file's ending is that of a video."""
    from ..inputs import SUFFIXES

    return path.suffix.lower() in SUFFIXES["video"]


def import_av(what: str) -> ModuleType:
    """PyAV.

    Raises:
        PolyditError: it is not installed; `what` needs it.
    """
    try:
        import av
        import av.logging
    except ImportError as error:
        raise PolyditError(f"{what} needs PyAV; pip install 'polydit[video]'") from error
    av.logging.set_level(av.logging.PANIC)  # what matters comes as an exception
    return av
