"""Reading video frame by frame: files, folders of frames, animated pictures, all as one kind of source."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import PolyditError
from .high_dynamic_range import TRANSFERS, to_standard

__all__ = ["FolderReader", "Frame", "FrameSource", "VideoReader", "is_video", "open_frames"]

UNSPECIFIED = 2  # ffmpeg's AVCOL_SPC_UNSPECIFIED
FULL_RANGE = 2  # and AVCOL_RANGE_JPEG


@dataclass(frozen=True)
class Frame:
    """One frame.

    Attributes:
        pixels: (H, W, 3) uint8, upright.
        time: seconds from the start of the file, as a fraction.
    """

    pixels: NDArray[np.uint8]
    time: Fraction


class FrameSource(Protocol):
    """What every reader of frames offers; a context manager that is iterated once, one frame in memory at a time.

    Attributes:
        path: what it reads.
        width: of the upright frames.
        height: of the upright frames.
        rate: frames per second, on average.
        frames: how many there are by the source's own account; 0 if it does not say.
        has_audio: whether there is sound.
        full_range: whether the picture's levels are stored as 0..255 instead of 16..235.
    """

    path: Path
    width: int
    height: int
    rate: Fraction
    frames: int
    has_audio: bool
    full_range: bool

    def __iter__(self) -> Iterator[Frame]:
        """The frames, in order."""

    def __enter__(self) -> FrameSource:
        """Itself."""

    def __exit__(self, *failure: object) -> None:
        """Close what is open."""

    def notes(self) -> list[str]:
        """What the user should know of what has been read so far, a clause each; often nothing."""


class VideoReader:
    """Frames of a video file in order, one in memory at a time; a `FrameSource`.

    Turned phone videos are set upright. Pictures of more than 8 bits are rounded to 8; those in PQ or HLG (high
    dynamic range) are mapped to what a common screen shows. `notes` says so.

    Args:
        path: mp4, mov, mkv, webm, avi, gif: what PyAV reads.
        threads: decode with several.

    Attributes:
        width, height: of the upright frames.
        rate: frames per second, on average.
        frames: how many there are by the file's own account or by its duration; 0 if it does not say.
        has_audio: whether there is sound.
        full_range: whether its levels are stored as 0..255.
        bits: of a stored level.
        done: frames read so far.
        variable_rate: whether the frames read so far came at uneven times.

    Raises:
        PolyditError: PyAV is not installed; the file is missing, empty, damaged, or has no picture.
    """

    def __init__(self, path: str | Path, threads: bool = True) -> None:
        self.path = Path(path)
        self.av = import_av(f"{self.path}: reading video")
        if not self.path.is_file():
            raise PolyditError(f"{self.path}: no such file; check the path")
        if self.path.stat().st_size == 0:
            raise PolyditError(f"{self.path}: is empty (0 bytes); replace the file")
        self.done, self.variable_rate, self._ended = 0, False, False
        self.transfer: str | None = None
        self.bits, self.full_range = 8, False
        try:
            self.container = self.av.open(str(self.path))
        except (OSError, ValueError, self.av.FFmpegError) as error:
            raise self._damaged(error) from error
        try:
            if not self.container.streams.video:
                raise PolyditError(f"{self.path}: holds no video; give a video file")
            self.stream = self.container.streams.video[0]
            self.stream.thread_type = "AUTO" if threads else "NONE"
            if not threads:
                self.stream.codec_context.thread_count = 1
            self.rate = Fraction(self.stream.average_rate or self.stream.guessed_rate or 25)
            seconds = (self.container.duration or 0) / self.av.time_base
            self.frames: int = self.stream.frames or round(seconds * self.rate)
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
        self.has_audio = bool(self.container.streams.audio)

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *failure: object) -> None:
        # The generator holds the reader that holds it: what the garbage collector frees later, in a forked process
        # perhaps, would wait for the decoder's threads, which are not there.
        self._frames = iter(())
        with contextlib.suppress(self.av.FFmpegError):
            self.container.close()

    def __iter__(self) -> Iterator[Frame]:
        """The frames, once.

        Raises:
            PolyditError: the file is cut short or damaged; it says how many frames were read before.
        """
        if self._first is not None:
            first, self._first = self._first, None
            yield first
        yield from self._frames

    def notes(self) -> list[str]:
        """What the user should know of what has been read so far, a clause each."""
        said = []
        if self.transfer is not None:
            said.append(f"high dynamic range ({self.transfer}) was mapped to a common screen's")
        elif self.bits > 8:
            said.append(f"{self.bits}-bit levels were rounded to 8 bits")
        if self.variable_rate:
            said.append("its frame rate varies")
        # Where the container does not count, its duration only says about how many there are.
        guess = 0 if self.variable_rate else 0.95 * self.frames - 2
        if self._ended and self.done < (self.stream.frames or guess):
            said.append(f"it announces {self.frames} frames and ends after {self.done}")
        return said

    def _decode(self) -> Iterator[Frame]:
        previous: Fraction | None = None
        step = 1 / self.rate
        try:
            for frame in self.container.decode(self.stream):
                pixels = self._pixels(frame)
                # Phones store how the camera was held instead of turning the pixels.
                turns = round(getattr(frame, "rotation", 0) / 90) % 4
                if frame.pts is not None and frame.time_base is not None:
                    time = frame.pts * Fraction(frame.time_base)
                else:
                    time = previous + step if previous is not None else Fraction(0)
                if previous is not None and time <= previous:
                    time = previous + step  # time runs forward, whatever the file says
                if previous is not None and abs(time - previous - step) > step / 4:
                    self.variable_rate = True
                previous = time
                self.done += 1
                yield Frame(np.ascontiguousarray(np.rot90(pixels, turns)), time)
            self._ended = True
        except self.av.FFmpegError as error:
            raise self._damaged(error) from error

    def _pixels(self, frame: Any) -> NDArray[np.uint8]:
        if not self.done:
            self.bits = frame.format.components[0].bits
            self.full_range = int(frame.color_range) == FULL_RANGE
            self.transfer = TRANSFERS.get(int(frame.color_trc))
        if self.transfer is not None:
            return to_standard(frame.to_ndarray(format="rgb48le"), self.transfer)
        # Where nothing is said, players take high-definition pictures for BT.709; swscale would take BT.601.
        untold = int(frame.colorspace) == UNSPECIFIED and min(frame.width, frame.height) >= 720
        pixels: NDArray[np.uint8] = frame.to_ndarray(
            format="rgb24", **({"src_colorspace": "ITU709"} if untold else {})
        )
        return pixels

    def _damaged(self, error: Exception) -> PolyditError:
        reason = getattr(error, "strerror", None) or str(error)
        read = ""
        if self.done:
            read = f" after {self.done} frames" + (f" of {self.frames}" if self.frames else "")
        return PolyditError(
            f"{self.path}: not a video that can be read, or cut short{read} ({reason}); replace the file"
        )


class FolderReader:
    """Frames of a folder of pictures, in the order of their names; a `FrameSource`.

    Args:
        path: the folder; ``00000.png``, ``00001.png``, ... as data sets have them.
        rate: frames per second to assume.

    Raises:
        PolyditError: the folder holds no pictures; while iterating: one is unreadable or of another size.
    """

    has_audio = False
    full_range = False

    def __init__(self, path: str | Path, rate: Fraction | int = 25) -> None:
        from .images import image_size, list_images

        self.path, self.rate = Path(path), Fraction(rate)
        self.files = sorted(list_images(self.path, recursive=False), key=_by_number)
        self.frames = len(self.files)
        self.width, self.height = image_size(self.files[0])

    def __enter__(self) -> FolderReader:
        return self

    def __exit__(self, *failure: object) -> None:
        pass

    def __iter__(self) -> Iterator[Frame]:
        """The frames, in order."""
        for number in range(self.frames):
            yield Frame(self.frame(number), number / self.rate)

    def frame(self, number: int) -> NDArray[np.uint8]:
        """One frame, (H, W, 3) uint8."""
        from .images import read_image, to_uint8

        pixels = to_uint8(read_image(self.files[number])[0])
        if pixels.shape[:2] != (self.height, self.width):
            raise PolyditError(
                f"{self.files[number]}: is {pixels.shape[1]}x{pixels.shape[0]} and the first frame of its folder "
                f"{self.width}x{self.height}; a folder of frames has one size"
            )
        return pixels

    def notes(self) -> list[str]:
        """Nothing."""
        return []


def _by_number(file: Path) -> list[tuple[int, str]]:
    """So that frame 10 comes after frame 9 where names have no leading zeros."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", file.name)]


def open_frames(path: str | Path, rate: Fraction | int = 25) -> FrameSource:
    """A reader of a video file or of a folder of frames.

    Args:
        path: file or folder.
        rate: frames per second of a folder, which has none.

    Raises:
        PolyditError: see `VideoReader` and `FolderReader`.
    """
    return FolderReader(path, rate) if Path(path).is_dir() else VideoReader(path)


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
    # Off, or a thread of a decoder that has something to log waits for the interpreter, which waits for it at the end.
    av.logging.set_level(None)
    return av
