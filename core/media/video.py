"""Writing video frame by frame: mp4, webm, GIF, and folders of pictures."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from ..data.video import import_av
from ..errors import PolyditError
from .writer import OutputWriter

__all__ = ["FrameSink", "GifWriter", "VideoWriter", "video_output"]

Pixels = NDArray[np.uint8]
TIME_BASE = Fraction(1, 90_000)  # divides by every common frame rate, 30000/1001 among them
BT709, LIMITED, FULL = 1, 1, 2  # ffmpeg's numbers
SOUND = {
    "mp4": ("aac", "mp3", "ac3", "eac3", "alac", "opus", "flac"),
    "webm": ("opus", "vorbis"),
}
RECODED = {"mp4": "aac", "webm": "libopus"}  # what other sound becomes


class FrameSink(Protocol):
    """What takes frames.

    Attributes:
        sound: ``"copied"``, ``"none"``, or what became of it.
    """

    sound: str

    def write(self, pixels: Pixels, time: Fraction) -> None:
        """Append a frame (H, W, 3) uint8; the time is in seconds and greater than that of the frame before."""


class VideoWriter:
    """Encodes frames to mp4 (H.264) or webm (VP9), 4:2:0 at 8 bits, which players and browsers show; a context manager.

    Frames with an odd side are continued by one row or column, which the format demands. An mp4 begins with its index
    (faststart), so that a browser plays it while it loads.

    Args:
        file: open for writing bytes, as `OutputWriter.open` gives it.
        width: of the frames.
        height: of the frames.
        rate: frames per second.
        sound_of: a file whose sound is copied as it is if the format can hold it, and coded anew if not.
        quality: H.264's constant rate factor; 0 is lossless, 18 looks like it, 51 is worst. VP9 is given 12 more,
            which looks alike.
        kind: ``"mp4"`` or ``"webm"``.
        full_range: store levels as 0..255, as cameras of phones often do, instead of 16..235.

    Attributes:
        sound: ``"copied"``, ``"none"``, or what became of it.

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
        kind: Literal["mp4", "webm"] = "mp4",
        full_range: bool = False,
    ) -> None:
        self.av = import_av("writing video")
        self.padding = ((0, height % 2), (0, width % 2), (0, 0))
        self.kind, self.range = kind, "JPEG" if full_range else "MPEG"
        self.sound = "none"
        self._source: Any = None
        self.container = self._open(file)
        try:
            stream = self.container.add_stream(*self._codec(rate), options=self._options(quality))
            stream.width, stream.height = width + width % 2, height + height % 2
            stream.pix_fmt = "yuv420p"
            stream.codec_context.time_base = TIME_BASE
            # What readers assume of pictures of this size, said explicitly.
            for name in ("color_primaries", "color_trc", "colorspace"):
                setattr(stream.codec_context, name, BT709)
            stream.codec_context.color_range = FULL if full_range else LIMITED
            self.stream = stream
            self._packets = self._open_sound(sound_of) if sound_of is not None else iter(())
            self._waiting = next(self._packets, None)
        except BaseException:
            self._close()
            raise

    def write(self, pixels: Pixels, time: Fraction) -> None:
        """Append a frame.

        Args:
            pixels: (H, W, 3) uint8.
            time: seconds, greater than that of the frame before.
        """
        padded = np.pad(pixels, self.padding, mode="edge")
        frame = self.av.VideoFrame.from_ndarray(padded, format="rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range=self.range)
        frame.pts, frame.time_base = round(time / TIME_BASE), TIME_BASE
        self._write_sound(time)
        self.container.mux(self.stream.encode(frame))

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *failure: object) -> None:
        try:
            if kind is None:
                self.container.mux(self.stream.encode(None))
                self._write_sound(None)
        finally:
            self._close(quietly=kind is not None)

    def _open(self, file: BinaryIO) -> Any:
        name = getattr(file, "name", None)
        # The index is moved to the front by reading the finished file again, which must have a name for it.
        if self.kind == "mp4" and isinstance(name, str | os.PathLike):
            return self.av.open(os.fspath(name), "w", format="mp4", options={"movflags": "+faststart"})
        return self.av.open(file, "w", format=self.kind)

    def _codec(self, rate: Fraction) -> tuple[str, Fraction]:
        return ("libx264" if self.kind == "mp4" else "libvpx-vp9"), rate

    def _options(self, quality: float) -> dict[str, str]:
        if self.kind == "mp4":
            return {"crf": str(quality), **_same_bytes()}
        return {"crf": str(round(min(quality + 12, 63))), "b": "0", "deadline": "good", "cpu-used": "4"}

    def _open_sound(self, path: Path) -> Iterator[Any]:
        self._source = self.av.open(str(path))
        if not self._source.streams.audio:
            return iter(())
        audio = self._source.streams.audio[0]
        name = audio.codec_context.name
        if name.removeprefix("lib") not in SOUND[self.kind]:
            return self._recoded(audio, name)
        copy = self.container.add_stream_from_template(audio)
        self.sound = "copied"

        def packets() -> Iterator[Any]:
            for packet in self._source.demux(audio):
                if packet.dts is not None:
                    packet.stream = copy
                    yield packet

        return packets()

    def _recoded(self, audio: Any, name: str) -> Iterator[Any]:
        """Sound that the format does not hold, coded anew."""
        codec = RECODED[self.kind]
        rate = 48000 if codec == "libopus" else audio.codec_context.sample_rate
        layout = "mono" if audio.codec_context.layout.nb_channels == 1 else "stereo"
        out = self.container.add_stream(codec, rate=rate, layout=layout)
        self.sound = f"coded anew as {codec.removeprefix('lib')}: {self.kind} does not hold {name}"
        resampler = self.av.AudioResampler(format=out.codec_context.format.name, layout=layout, rate=rate)

        def packets() -> Iterator[Any]:
            for frame in self._source.decode(audio):
                for piece in resampler.resample(frame):
                    yield from out.encode(piece)
            for piece in resampler.resample(None):
                yield from out.encode(piece)
            yield from out.encode(None)

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


def _same_bytes() -> dict[str, str]:
    """What x264 needs to make the same file of the same frames.

    Its macroblock tree in AVX-512 reads beyond the ends of rows, where widths are no multiples of 128 pixels: what lay
    in memory there decides about bits. Its code for AVX2 does not; every machine with the one has the other.
    """
    import torch

    return {"x264-params": "asm=avx2"} if torch.backends.cpu.get_cpu_capability() == "AVX512" else {}


class GifWriter:
    """Writes an animated GIF, frame by frame: 256 colours per frame, no sound, times in hundredths of a second.

    Args:
        file: open for writing bytes.
        width: of the frames.
        height: of the frames.
        rate: frames per second.

    Raises:
        PolyditError: PyAV is not installed.
    """

    def __init__(self, file: BinaryIO, width: int, height: int, rate: Fraction) -> None:
        self.av = import_av("writing GIF")
        self.sound = "none"
        self.container = self.av.open(file, "w", format="gif")
        self.stream = self.container.add_stream("gif", rate=rate)
        self.stream.width, self.stream.height, self.stream.pix_fmt = width, height, "pal8"
        self.stream.codec_context.time_base = Fraction(1, 100)
        self._last = -1

    def write(self, pixels: Pixels, time: Fraction) -> None:
        """Append a frame; see `FrameSink`."""
        from PIL import Image

        reduced = Image.fromarray(pixels).quantize(256, dither=Image.Dither.FLOYDSTEINBERG)
        colours = np.asarray(reduced.getpalette(), np.uint8).reshape(-1, 3)
        palette = np.full((256, 4), 255, np.uint8)
        palette[: len(colours), 1:] = colours
        frame = self.av.VideoFrame.from_ndarray((np.asarray(reduced), palette), format="pal8")
        self._last = max(round(time * 100), self._last + 1)
        frame.pts, frame.time_base = self._last, Fraction(1, 100)
        self.container.mux(self.stream.encode(frame))

    def __enter__(self) -> GifWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *failure: object) -> None:
        with contextlib.suppress(Exception) if kind is not None else contextlib.nullcontext():
            if kind is None:
                self.container.mux(self.stream.encode(None))
            self.container.close()


class _FolderWriter:
    sound = "none"

    def __init__(self, writer: OutputWriter, name: str) -> None:
        self.writer, self.name, self.count = writer, name.rstrip("/"), 0

    def write(self, pixels: Pixels, time: Fraction) -> None:
        self.writer.image(f"{self.name}/{self.count:05d}.png", pixels)
        self.count += 1


@contextlib.contextmanager
def video_output(
    writer: OutputWriter,
    name: str,
    width: int,
    height: int,
    rate: Fraction,
    *,
    sound_of: Path | None = None,
    quality: float = 16,
    full_range: bool = False,
) -> Iterator[FrameSink]:
    """What takes the frames of an output; the file appears when the block ends without an error.

    Args:
        writer: of the command.
        name: ``x.mp4``, ``x.webm``, ``x.gif``, or a name without ending for a folder of ``00000.png``, ...
        width: of the frames.
        height: of the frames.
        rate: frames per second.
        sound_of: see `VideoWriter`; GIF and folders hold none, which `sound` says.
        quality: see `VideoWriter`.
        full_range: see `VideoWriter`.

    Raises:
        PolyditError: another ending, or what `OutputWriter.open` and `VideoWriter` raise.
    """
    suffix = Path(name).suffix.lower()
    if suffix not in ("", ".mp4", ".webm", ".gif"):
        raise PolyditError(
            f"{writer.path(name)}: video is not written under this ending; use .mp4, .webm, .gif or no ending, "
            "for a folder of frames"
        )
    if suffix == "":
        yield _FolderWriter(writer, name)
        return
    with writer.open(name) as file:
        if suffix == ".gif":
            with GifWriter(file, width, height, rate) as gif:
                yield gif
            return
        with VideoWriter(
            file,
            width,
            height,
            rate,
            sound_of,
            quality,
            "mp4" if suffix == ".mp4" else "webm",
            full_range,
        ) as video:
            yield video
