"""A video's ``.pdc`` file: groups after each other with an index behind them, sound, times of uneven frames.

The coded data of the container is ``group 0, group 1, ..., index, length of the index (4 bytes)``; the index has, for
each group, the length of its data (LEB128) and the low half of its symbols' CRC-32 (2 bytes). So any group is found
without reading the others. Neither writing nor reading holds more than a group in memory: groups and sound go through
temporary files, and files are read through a map of them.
"""

from __future__ import annotations

import contextlib
import struct
import tempfile
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

from ....core.data.video import import_av
from ....core.errors import PolyditError
from ..container import AUDIO, PRIVATE, Container, leb128, length_of, write_stream
from .groups import Group

__all__ = ["GroupSpool", "Groups", "copy_sound", "pack_times", "sound_file", "times_of"]

TICK = Fraction(1, 90_000)


class GroupSpool:
    """Takes groups as they are coded and writes the file when all are there; a context manager."""

    def __init__(self) -> None:
        self.spool: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__
        self.index = bytearray()
        self.count = 0

    def __enter__(self) -> GroupSpool:
        return self

    def __exit__(self, *failure: object) -> None:
        self.spool.close()

    def add(self, group: Group) -> None:
        """Append a group."""
        self.spool.write(group.data)
        self.index += leb128(len(group.data)) + struct.pack("<H", group.symbols & 0xFFFF)
        self.count += 1

    def size(self, sections: dict[int, IO[bytes]]) -> int:
        """An upper bound of the bytes that the file will have."""
        return self.spool.tell() + len(self.index) + 64 + sum(map(length_of, sections.values()))

    def finish(self, file: Any, content: Container, sections: dict[int, IO[bytes]]) -> int:
        """Write the container; returns its bytes.

        Args:
            file: open for writing bytes.
            content: its header.
            sections: contents of sections, from their beginning.
        """
        self.spool.write(bytes(self.index) + struct.pack("<I", len(self.index)))
        self.spool.seek(0)
        return write_stream(file, content, sections, self.spool)


class Groups(Sequence[Group]):
    """The groups of a file, read one by one.

    Args:
        content: of the file.
        name: for complaints.

    Raises:
        PolyditError: the index does not fit the data or the frames.
    """

    def __init__(self, content: Container, name: str | Path) -> None:
        assert content.timing is not None
        self.data, self.timing = memoryview(content.data), content.timing
        wrong = PolyditError(f"{name}: the index of its groups makes no sense; it is damaged")
        if len(self.data) < 4:
            raise wrong
        (size,) = struct.unpack("<I", self.data[-4:])
        if size > len(self.data) - 4:
            raise wrong
        index = bytes(self.data[len(self.data) - 4 - size : len(self.data) - 4])
        self.places: list[tuple[int, int, int]] = []
        place = offset = 0
        while place < len(index):
            length = shift = 0
            while place < len(index):
                byte = index[place]
                place += 1
                length |= (byte & 127) << shift
                shift += 7
                if byte < 128:
                    break
            if place + 2 > len(index) or shift > 35:
                raise wrong
            (symbols,) = struct.unpack("<H", index[place : place + 2])
            place += 2
            self.places.append((offset, length, symbols))
            offset += length
        groups = -(-self.timing.frames // self.timing.group)
        if offset + size + 4 != len(self.data) or len(self.places) != groups:
            raise wrong

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, number: Any) -> Any:
        offset, length, symbols = self.places[number]
        return Group(bytes(self.data[offset : offset + length]), symbols)

    def frames_of(self, number: int) -> int:
        """How many frames a group has."""
        return min(self.timing.group, self.timing.frames - number * self.timing.group)


def pack_times(times: list[int]) -> bytes:
    """Times of frames in 1/90000 s, as differences in LEB128."""
    before = [0, *times[:-1]]
    return b"".join(leb128(max(0, time - last)) for time, last in zip(times, before, strict=True))


def unpack_times(data: bytes, count: int, name: str | Path) -> list[int]:
    """Counterpart of `pack_times`.

    Raises:
        PolyditError: there are more or fewer than `count`.
    """
    times: list[int] = []
    total = value = shift = 0
    for byte in data:
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            total += value
            times.append(total)
            value = shift = 0
    if len(times) != count or shift:
        raise PolyditError(f"{name}: the times of its frames are damaged; copy the file again")
    return times


def copy_sound(source: Path) -> tuple[IO[bytes] | None, str]:
    """The sound of a video as a file of its own (Matroska, as it is), and what to say of it."""
    av = import_av(f"{source}: reading sound")
    with av.open(str(source)) as container:
        if not container.streams.audio:
            return None, ""
        audio = container.streams.audio[0]
        spool: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
        try:
            with av.open(spool, "w", format="matroska") as out:
                copy = out.add_stream_from_template(audio)
                for packet in container.demux(audio):
                    if packet.dts is not None:
                        packet.stream = copy
                        out.mux(packet)
        except (av.FFmpegError, ValueError) as error:
            spool.close()
            return None, f"its sound ({audio.codec_context.name}) cannot be copied and is left out: {error}"
        spool.seek(0)
        return spool, f"sound copied ({audio.codec_context.name})"


@contextlib.contextmanager
def sound_file(content: Container) -> Iterator[Path | None]:
    """The sound of a file as a temporary file that `VideoWriter` copies from, or None."""
    sound = content.sections.get(AUDIO)
    if sound is None:
        yield None
        return
    with tempfile.NamedTemporaryFile(suffix=".mka") as file:
        file.write(sound)
        file.flush()
        yield Path(file.name)


def times_of(content: Container, name: str | Path) -> Iterator[Fraction]:
    """When each frame is shown, in seconds.

    Raises:
        PolyditError: the times are damaged.
    """
    assert content.timing is not None
    frames, (numerator, denominator) = content.timing.frames, content.timing.rate
    if PRIVATE in content.sections:
        for time in unpack_times(bytes(content.sections[PRIVATE]), frames, name):
            yield time * TICK
    else:
        for number in range(frames):
            yield Fraction(number * denominator, numerator)
