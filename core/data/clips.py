"""Random access to the frames of short clips, for training: by decord where it has a wheel, by PyAV everywhere.

decord is quicker but unmaintained, and its memory grows with the length of a clip; what reads a whole video in order
uses `open_frames`, which does not.
"""

from __future__ import annotations

import gc
import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import PolyditError
from .video import FolderReader, VideoReader, import_av

__all__ = ["Clip", "Reader", "open_clip"]

Reader = Literal["auto", "decord", "pyav"]
REOPEN_AFTER = 2000  # frames; decord keeps what it decoded
_of_parents: list[Any] = []

# Nor is anything else that the parent has thrown away for a child's garbage collection to close.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=gc.freeze)


class Clip:
    """The frames of a video file or of a folder of pictures, by number.

    Nothing is open until the first frame is asked for, and each process opens the file for itself: a clip can be held
    by a data set whose loader starts workers, by forking or by spawning.

    Args:
        path: a video file, or a folder of pictures.
        reader: ``"decord"``, ``"pyav"``, or ``"auto"``: decord if it is installed.

    Raises:
        PolyditError: an unknown reader; when it is opened: what reads it is not installed, or it cannot be read.
    """

    def __init__(self, path: str | Path, reader: Reader = "auto") -> None:
        if reader not in ("auto", "decord", "pyav"):
            raise PolyditError(f"reader {reader!r}: unknown; choose auto, decord or pyav")
        self.path, self.reader = Path(path), reader
        self._opened: _Opened | None = None
        self._process = 0

    def __len__(self) -> int:
        """How many frames can be read."""
        return self._open().frames

    @property
    def rate(self) -> Fraction:
        """Frames per second, on average."""
        return self._open().rate

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the upright frames."""
        return self._open().size

    def get(self, numbers: Sequence[int]) -> NDArray[np.uint8]:
        """Frames (T, H, W, 3) uint8, in the order asked for; numbers may repeat.

        Raises:
            IndexError: a number is not of the clip.
            PolyditError: a frame cannot be read.
        """
        opened = self._open()
        for number in numbers:
            if not 0 <= number < opened.frames:
                raise IndexError(f"{self.path}: has frames 0 to {opened.frames - 1}, not {number}")
        return opened.get(list(numbers))

    def close(self) -> None:
        """Let go of the file; the next access opens it again."""
        if self._opened is not None and self._process == os.getpid():
            self._opened.close()
        self._opened = None

    def _open(self) -> _Opened:
        if self._opened is None or self._process != os.getpid():
            # After a fork the parent's decoder is ours neither to use nor to close: it would wait for threads
            # that were not copied.
            _of_parents.append(self._opened)
            self._opened, self._process = self._make(), os.getpid()
        return self._opened

    def _make(self) -> _Opened:
        if self.path.is_dir():
            return _Folder(self.path)
        with VideoReader(self.path, threads=False):  # says plainly what is wrong with a file
            pass
        if self.reader == "pyav":
            return _PyAV(self.path)
        try:
            return _Decord(self.path)
        except ImportError as error:
            if self.reader == "decord":
                raise PolyditError(
                    f"{self.path}: reader 'decord' is not installed (it has wheels for Linux and Windows on x86-64); "
                    "pip install 'polydit[video]', or use 'pyav'"
                ) from error
        except PolyditError:
            if self.reader == "decord":
                raise
        return _PyAV(
            self.path
        )  # which also reads what decord does not, frames narrower than 64 pixels for one

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}


def open_clip(path: str | Path, reader: Reader = "auto") -> Clip:
    """A clip that has been opened, so that what is wrong with it is said now; see `Clip`."""
    clip = Clip(path, reader)
    len(clip)
    return clip


class _Opened(Protocol):
    frames: int
    rate: Fraction
    size: tuple[int, int]

    def get(self, numbers: list[int]) -> NDArray[np.uint8]: ...

    def close(self) -> None: ...


class _Decord:
    def __init__(self, path: Path) -> None:
        import decord

        self.decord, self.path = decord, path
        self._reopen()
        # The container's own count can be too large: what cannot be decoded at the end does not count.
        self.frames = len(self.video)
        while self.frames > 0:
            try:
                last = self.video.get_batch([self.frames - 1]).asnumpy()
                break
            except (decord.DECORDError, IndexError):
                self.frames -= 1
        else:
            raise PolyditError(f"{path}: holds no frame that decord can read; use the reader 'pyav'")
        self.rate = Fraction(self.video.get_avg_fps()).limit_denominator(1001)
        self.size = (last.shape[1], last.shape[2])

    def _reopen(self) -> None:
        self.video = self.decord.VideoReader(str(self.path), ctx=self.decord.cpu(0), num_threads=1)
        self._read = 0

    def get(self, numbers: list[int]) -> NDArray[np.uint8]:
        self._read += len(numbers)
        if self._read > REOPEN_AFTER:
            self._reopen()
        try:
            frames: NDArray[np.uint8] = self.video.get_batch(numbers).asnumpy()
        except self.decord.DECORDError as error:
            raise _unreadable(self.path, numbers) from error
        return frames

    def close(self) -> None:
        del self.video


class _PyAV:
    def __init__(self, path: Path) -> None:
        self.path, self.av = path, import_av(f"{path}: reading video")
        with self.av.open(str(path)) as container:
            stream = container.streams.video[0]
            self.rate = Fraction(stream.average_rate or stream.guessed_rate or 25)
            # The packets' times, without decoding: frames have uneven times, and come stored out of order.
            self.times = sorted(p.pts for p in container.demux(stream) if p.pts is not None)
        self.frames = len(self.times)
        self.container = self.av.open(str(path))
        self.stream = self.container.streams.video[0]
        self.stream.thread_type, self.stream.codec_context.thread_count = "NONE", 1
        self._decoded: Iterator[tuple[int, Any]] = iter(())
        self._next = self.frames  # number of the frame that comes next
        self._held: tuple[int, NDArray[np.uint8]] | None = None
        self.size = (0, 0)
        first = self.get([0])
        self.size = (first.shape[1], first.shape[2])

    def get(self, numbers: list[int]) -> NDArray[np.uint8]:
        found = {number: self._one(number) for number in sorted(set(numbers))}
        return np.stack([found[number] for number in numbers])

    def _one(self, number: int) -> NDArray[np.uint8]:
        if self._held is not None and self._held[0] == number:
            return self._held[1]
        if not self._next <= number < self._next + 64:
            self.container.seek(self.times[number], stream=self.stream, backward=True)
            self._decoded = _numbered(self.container, self.stream, self.times)
        try:
            for place, frame in self._decoded:
                self._next = place + 1
                if place >= number:
                    turns = round(getattr(frame, "rotation", 0) / 90) % 4
                    pixels = np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), turns))
                    self._held = (number, pixels)
                    return pixels
        except self.av.FFmpegError as error:
            raise _unreadable(self.path, [number]) from error
        raise _unreadable(self.path, [number])

    def close(self) -> None:
        self.container.close()


def _numbered(container: Any, stream: Any, times: list[int]) -> Iterator[tuple[int, Any]]:
    # No method: a generator that holds its owner is freed by the garbage collector, which may run in a forked child.
    for frame in container.decode(stream):
        if frame.pts is not None:
            yield bisect_right(times, frame.pts) - 1, frame


class _Folder:
    def __init__(self, path: Path) -> None:
        self.reader = FolderReader(path)
        self.frames, self.rate = self.reader.frames, self.reader.rate
        self.size = (self.reader.height, self.reader.width)

    def get(self, numbers: list[int]) -> NDArray[np.uint8]:
        return np.stack([self.reader.frame(number) for number in numbers])

    def close(self) -> None:
        pass


def _unreadable(path: Path, numbers: list[int]) -> PolyditError:
    which = f"frame {numbers[0]}" if len(numbers) == 1 else "a frame"
    return PolyditError(f"{path}: {which} cannot be read; the file is damaged, replace it")
