"""Videos to files and back, group by group: what all systems for videos share."""

from __future__ import annotations

import io
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ....core.data.video import VideoReader
from ....core.errors import PolyditError
from ....core.media.video import video_output
from ....core.media.writer import OutputWriter
from ..container import AUDIO, PRIVATE, Container, Timing
from ..rate import parse_size
from .groups import Group
from .video_file import TICK, Groups, GroupSpool, copy_sound, pack_times, sound_file, times_of

__all__ = ["GROUP", "VideoSystem", "decode_video", "encode_video"]

GROUP = 25
"""Frames of a group: what a player waits for when it jumps."""
SAMPLES = 3
"""Groups by which the quality for a wanted size is searched."""
Pixels = NDArray[np.uint8]


@dataclass
class VideoSystem:
    """What codes groups.

    Attributes:
        number: of the codec in files.
        identity: of its weights.
        last: highest quality index.
        quality_of: what the user calls an index.
        encode: frames and a quality index to a group.
        decode: group, its number, its count of frames, their (height, width), the index: its frames.
        source: where the weights came from, for complaints.
    """

    number: int
    identity: bytes
    last: int
    quality_of: Callable[[int], float]
    encode: Callable[[list[Pixels], int], Group]
    decode: Callable[[Group, int, int, tuple[int, int], int], Iterable[Pixels]]
    source: str

    def check(self, wanted: bytes, name: str | Path) -> None:
        """Refuse a file that was coded with other weights.

        Raises:
            PolyditError: with both identities.
        """
        if self.identity[:4] != wanted:
            raise PolyditError(
                f"{name}: was coded with the weights {wanted.hex()}, and {self.source} holds "
                f"{self.identity[:4].hex()}; give the folder of the right ones with --weights"
            )


def encode_video(
    system: VideoSystem, source: Path, output: OutputWriter, name: str, index: int, options: Namespace
) -> dict[str, Any]:
    """Code a video; no more than one group of it is in memory.

    Args:
        system: what codes.
        source: the video.
        output: where the file goes.
        name: of the file.
        index: quality, unless the options want a size.
        options: with ``target_bpp`` and ``target_size``.
    """
    begin = time.perf_counter()
    limit = _limit(source, options)
    if limit is not None:
        index = _search(system, source, limit)
    while (record := _encode(system, source, output, name, index, limit)) is None:
        if index == 0:
            raise PolyditError(f"{source}: even the lowest quality is larger than was asked for; allow more")
        index = max(0, index - max(1, system.last // 40))
    record["seconds"] = time.perf_counter() - begin
    return record


def _encode(
    system: VideoSystem, source: Path, output: OutputWriter, name: str, index: int, limit: float | None
) -> dict[str, Any] | None:
    """Write the file, unless it is larger than the limit."""
    with ExitStack() as stack:
        spool = stack.enter_context(GroupSpool())
        reader = stack.enter_context(VideoReader(source))
        times: list[int] = []

        def frames() -> Iterator[Pixels]:
            for frame in reader:
                times.append(round(frame.time / TICK))
                yield frame.pixels

        for part in _parts(frames(), GROUP):
            spool.add(system.encode(part, index))
        sections: dict[int, IO[bytes]] = {}
        sound, said = copy_sound(source)
        notes = [note for note in [*reader.notes(), said] if note]
        if sound is not None:
            sections[AUDIO] = stack.enter_context(sound)
        step = 1 / reader.rate / TICK
        if any(abs(at - number * step) > 45 for number, at in enumerate(times)):
            sections[PRIVATE] = stack.enter_context(io.BytesIO(pack_times(times)))
        timing = Timing(len(times), (reader.rate.numerator, reader.rate.denominator), GROUP)
        content = Container(
            system.number, index, system.identity[:4], reader.width, reader.height, b"", timing=timing
        )
        if limit is not None and spool.size(sections) > limit:
            return None
        with output.open(name) as file:
            size = spool.finish(file, content, sections)
    rate = 8 * size / (len(times) * reader.width * reader.height)
    line = f"{output.path(name)}: {size:,} bytes, {rate:.4f} bpp, {len(times)} frames of "
    line += f"{reader.width}x{reader.height}, quality {system.quality_of(index):.2f}"
    if notes:
        line += f" ({'; '.join(notes)})"
    return {
        "bytes": size,
        "bits_per_pixel": rate,
        "quality": system.quality_of(index),
        "width": reader.width,
        "height": reader.height,
        "frames": len(times),
        "notes": notes,
        "line": line,
    }


def decode_video(
    system: VideoSystem, source: Path, content: Container, output: OutputWriter, name: str
) -> dict[str, Any]:
    """Decode a video; no more than one group of it is in memory."""
    system.check(content.weights, source)
    if content.quality > system.last:
        raise PolyditError(
            f"{source}: its header says quality {content.quality} of {system.last}; it is damaged"
        )
    assert content.timing is not None
    groups, timing = Groups(content, source), content.timing
    size, rate = (content.height, content.width), Fraction(*timing.rate)
    begin = time.perf_counter()
    with (
        sound_file(content) as sound,
        video_output(output, name, content.width, content.height, rate, sound_of=sound) as video,
    ):
        times = times_of(content, source)
        for number, group in enumerate(groups):
            count = groups.frames_of(number)
            for pixels in system.decode(group, number, count, size, content.quality):
                video.write(pixels, next(times))
    seconds = time.perf_counter() - begin
    line = f"{output.path(name)}: {timing.frames} frames of {content.width}x{content.height}, "
    line += f"quality {system.quality_of(content.quality):.2f}"
    if video.sound != "none":
        line += f" (sound {video.sound})"
    elif sound is not None:
        line += " (this kind of file holds no sound, so it is left out)"
    return {"frames": timing.frames, "sound": video.sound, "seconds": seconds, "line": line}


def _parts(frames: Iterator[Pixels], count: int) -> Iterator[list[Pixels]]:
    part: list[Pixels] = []
    for frame in frames:
        part.append(frame)
        if len(part) == count:
            yield part
            part = []
    if part:
        yield part


def _limit(source: Path, options: Namespace) -> float | None:
    """Bytes that the file may have, or None."""
    if options.target_size is not None:
        return float(parse_size(options.target_size))
    if options.target_bpp is None:
        return None
    with VideoReader(source) as reader:
        count = sum(1 for _ in reader)
        return options.target_bpp * count * reader.width * reader.height / 8


def _search(system: VideoSystem, source: Path, limit: float) -> int:
    """The quality index whose file should just fit, by a few groups from beginning to end."""
    with VideoReader(source) as reader:
        count = sum(1 for _ in reader)
    groups = -(-count // GROUP)
    chosen = sorted({round(place * (groups - 1) / max(1, SAMPLES - 1)) for place in range(SAMPLES)})
    with VideoReader(source) as reader:
        parts = _parts((frame.pixels for frame in reader), GROUP)
        samples = [part for number, part in enumerate(parts) if number in chosen]
    share = sum(map(len, samples)) / count
    low, high = 0, system.last + 1
    while high - low > max(1, system.last // 80):
        middle = (low + high) // 2
        size = sum(len(system.encode(part, middle).data) + 4 for part in samples) / share + 64
        low, high = (middle, high) if size <= limit else (low, middle)
    return low
