"""Writing video files frame by frame."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..data.video import import_av

__all__ = ["VideoWriter"]

TIME_BASE = Fraction(1, 90_000)  # divides by every common frame rate, 30000/1001 among them
MP4_SOUND = ("aac", "mp3", "ac3", "eac3", "alac", "opus", "flac")


class VideoWriter:
    """Encodes frames to an mp4 (H.264, yuv420p), which every player and browser shows; a context manager.

    Frames with an odd side are continued by one row or column, which the format demands.

    Args:
        file: open for writing bytes, as `OutputWriter.open` gives it.
        width: of the frames.
        height: of the frames.
        rate: frames per second.
        sound_of: a file whose sound is copied as it is, if mp4 can hold it.
        quality: H.264's constant rate factor; 0 is lossless, 18 looks like it, 51 is worst.

    Attributes:
        sound: ``"copied"``, ``"none"``, or why it was left out.

    Raises:
        PolyditError: PyAV is not installed.
    """

    def __init__(
        self,
        file: BinaryIO,
        width: int,
        height: int,
        rate: Fraction,
        sound_of: Path | None = None,
        quality: float = 16,
    ) -> None:
        self.av = import_av("writing video")
        self.padding = ((0, height % 2), (0, width % 2), (0, 0))
        self.sound = "none"
        self._source: Any = None
        self.container = self.av.open(file, "w", format="mp4")
        try:
            stream = self.container.add_stream("libx264", rate=rate, options={"crf": str(quality)})
            stream.width, stream.height = width + width % 2, height + height % 2
            stream.pix_fmt = "yuv420p"
            stream.codec_context.time_base = TIME_BASE
            # What readers assume of pictures of this size, said explicitly.
            for name in ("color_primaries", "color_trc", "colorspace"):
                setattr(stream.codec_context, name, 1)  # BT.709
            self.stream = stream
            self._packets = self._open_sound(sound_of) if sound_of is not None else iter(())
            self._waiting = next(self._packets, None)
        except BaseException:
            self._close()
            raise

    def write(self, pixels: NDArray[np.uint8], time: Fraction) -> None:
        """Append a frame.

        Args:
            pixels: (H, W, 3) uint8.
            time: seconds, greater than that of the frame before.
        """
        padded = np.pad(pixels, self.padding, mode="edge")
        frame = self.av.VideoFrame.from_ndarray(padded, format="rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
        frame.pts, frame.time_base = round(time / TIME_BASE), TIME_BASE
        self._write_sound(time)
        self.container.mux(self.stream.encode(frame))

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.container.mux(self.stream.encode(None))
                self._write_sound(None)
        finally:
            self._close(quietly=error is not None)

    def _open_sound(self, path: Path) -> Iterator[Any]:
        self._source = self.av.open(str(path))
        if not self._source.streams.audio:
            return iter(())
        audio = self._source.streams.audio[0]
        if audio.codec_context.name not in MP4_SOUND:
            self.sound = f"left out: mp4 does not hold {audio.codec_context.name}"
            return iter(())
        copy = self.container.add_stream_from_template(audio)
        self.sound = "copied"

        def packets() -> Iterator[Any]:
            for packet in self._source.demux(audio):
                if packet.dts is not None:
                    packet.stream = copy
                    yield packet

        return packets()

    def _write_sound(self, until: Fraction | None) -> None:
        """The packets of sound up to a time, so that sound and picture lie side by side in the file."""
        while self._waiting is not None:
            if until is not None and self._waiting.dts * Fraction(self._waiting.time_base) > until:
                return
            self.container.mux(self._waiting)
            self._waiting = next(self._packets, None)

    def _close(self, quietly: bool = False) -> None:
        # After a failure the container can no longer be finished, and the reason is on its way already.
        with contextlib.suppress(Exception) if quietly else contextlib.nullcontext():
            self.container.close()
        if self._source is not None:
            self._source.close()
