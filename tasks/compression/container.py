"""The file ``.pdc``: a header, optional sections, the coded data; each with its own check sum.

======== ======================================================================================================
bytes    what
======== ======================================================================================================
3        ``PDC``
1        version of the layout
1        codec: which system coded it, see `CODECS`
1        flags: the low half is the number of optional sections, the high half belongs to the codec
1        quality, in the codec's own unit
4        identity of the weights, the first bytes of a SHA-256
1-3 each width, height in pixels; of a video also frames, numerator and denominator of the frame rate, pictures of a
         group, as LEB128
2        low half of the CRC-32 of all before
...      each optional section: type (1), length (LEB128), content, CRC-32 of the three (4)
...      coded data
2        low half of the CRC-32 of the decoded symbols: another arithmetic is found out, not shown as a picture
4        CRC-32 of the whole file before
======== ======================================================================================================

A plain picture of up to 16383 pixels a side has 23 bytes more than its coded data. Numbers are little-endian.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from ...core.errors import PolyditError

__all__ = [
    "ALPHA",
    "AUDIO",
    "CODECS",
    "EXIF",
    "ICC",
    "PRIVATE",
    "Codec",
    "Container",
    "Timing",
    "read_container",
    "read_header",
    "write_container",
    "write_stream",
]

MAGIC = b"PDC"
VERSION = 1
ALPHA, ICC, EXIF, AUDIO, PRIVATE = 1, 2, 3, 4, 5
SECTIONS = {
    ALPHA: "alpha channel",
    ICC: "colour profile",
    EXIF: "EXIF",
    AUDIO: "audio",
    PRIVATE: "side information",
}
"""What optional sections hold; `PRIVATE` is the codec's own."""
LARGEST_SIDE = 2**20 - 1
LARGEST_PICTURE = 200_000_000
"""Pixels of a picture, of a video those of a frame."""
LARGEST_TIMING = 2**31 - 1
PIECE = 2**20


@dataclass(frozen=True)
class Codec:
    """A system that codes.

    Attributes:
        system: its name in the task's list of systems.
        module: of this package, see `systems`.
        video: whether it codes videos.
    """

    system: str
    module: str
    video: bool = False


CODECS: dict[int, Codec] = {
    0: Codec("small", "picture_system"),
    1: Codec("small-video", "video.small_system", video=True),
    2: Codec("DiT-IC", "dit_ic.system"),
    3: Codec("GNVC-VD", "video.gnvc.system", video=True),
}
"""Codecs by their number in the file. A number is never given again."""


@dataclass(frozen=True)
class Timing:
    """Of a video.

    Attributes:
        frames: how many.
        rate: frames per second, as numerator and denominator.
        group: frames that are coded together; each group can be decoded alone.
    """

    frames: int
    rate: tuple[int, int]
    group: int


@dataclass
class Container:
    """What a file holds.

    Attributes:
        codec: number in `CODECS`.
        quality: 0..255, in the codec's unit.
        weights: identity of the weights, 4 bytes.
        width: in pixels.
        height: in pixels.
        data: coded data.
        symbols: CRC-32 of the symbols; the file keeps its low half.
        flags: 0..15, the codec's own.
        sections: contents by type.
        timing: of a video.
    """

    codec: int
    quality: int
    weights: bytes
    width: int
    height: int
    data: bytes
    symbols: int = 0
    flags: int = 0
    sections: dict[int, bytes] = field(default_factory=dict)
    timing: Timing | None = None


def write_container(content: Container) -> bytes:
    """The bytes of a file.

    Raises:
        PolyditError: a side or a duration that a file cannot hold.
    """
    head = _head(content, len(content.sections))
    parts = [head, _crc(head)[:2]]
    for kind, section in sorted(content.sections.items()):
        whole = bytes([kind]) + leb128(len(section)) + section
        parts += [whole, _crc(whole)]
    file = b"".join([*parts, content.data, struct.pack("<H", content.symbols & 0xFFFF)])
    return file + _crc(file)


def write_stream(
    file: IO[bytes], content: Container, sections: Mapping[int, IO[bytes]], data: IO[bytes]
) -> int:
    """Write a file that need not fit into memory; returns its bytes.

    Args:
        file: open for writing.
        content: its header; its own sections and data are not used.
        sections: contents by type, from where they stand.
        data: coded data, from where it stands.

    Raises:
        PolyditError: a side or a duration that a file cannot hold.
    """
    total = check = 0

    def put(part: bytes) -> None:
        nonlocal total, check
        file.write(part)
        total, check = total + len(part), zlib.crc32(part, check)

    head = _head(content, len(sections))
    put(head + _crc(head)[:2])
    for kind, section in sorted(sections.items()):
        begin = bytes([kind]) + leb128(length_of(section))
        put(begin)
        own = zlib.crc32(begin)
        while part := section.read(PIECE):
            put(part)
            own = zlib.crc32(part, own)
        put(struct.pack("<I", own))
    while part := data.read(PIECE):
        put(part)
    put(struct.pack("<H", content.symbols & 0xFFFF))
    file.write(struct.pack("<I", check))
    return total + 4


def length_of(stream: IO[bytes]) -> int:
    """Bytes from where it stands to its end."""
    place = stream.tell()
    end = stream.seek(0, io.SEEK_END)
    stream.seek(place)
    return end - place


def _head(content: Container, sections: int) -> bytes:
    numbers = [content.width, content.height]
    if content.timing is not None:
        numbers += [content.timing.frames, *content.timing.rate, content.timing.group]
    if problem := _problem(numbers):
        raise PolyditError(f"{content.width}x{content.height}: a .pdc file cannot hold {problem}")
    flags = content.flags << 4 | sections
    head = MAGIC + struct.pack("<BBBB4s", VERSION, content.codec, flags, content.quality, content.weights)
    return head + b"".join(map(leb128, numbers))


def read_container(file: bytes | memoryview, name: str | Path) -> Container:
    """Read and check a file; nothing is allocated for the picture.

    Args:
        file: its bytes.
        name: for complaints.

    Raises:
        PolyditError: not such a file, a newer one, of an unknown codec, cut short, or damaged.
    """
    content, reader, count = _read_header(file, name)
    if len(file) < reader.place + 6 or _crc(file[:-4]) != file[-4:]:
        # which part it was, where that can be told
        _read_sections(reader, count)
        raise PolyditError(f"{name}: its data is cut short or damaged; copy the file again")
    content.sections = _read_sections(reader, count)
    content.data = file[reader.place : -6]
    if reader.place > len(file) - 6:
        raise PolyditError(f"{name}: is cut short; copy the file again")
    content.symbols = struct.unpack("<H", file[-6:-4])[0]
    return content


def read_header(file: bytes, name: str | Path) -> Container:
    """What the first bytes of a file say, without sections and data; see `read_container`."""
    return _read_header(file, name)[0]


def _read_header(file: bytes | memoryview, name: str | Path) -> tuple[Container, _Reader, int]:
    if file[: len(MAGIC)] != MAGIC:
        raise PolyditError(f"{name}: not a .pdc file; give one that `polydit compression encode` wrote")
    reader = _Reader(file, len(MAGIC), name)
    version = reader.take(1)[0]
    if version != VERSION:
        raise PolyditError(
            f"{name}: has layout {version}, and this PolyDiT reads {VERSION}; update it, or copy the file again"
        )
    codec, flags, quality, weights = struct.unpack("<BBB4s", reader.take(7))
    if codec not in CODECS:
        raise PolyditError(f"{name}: of codec {codec}, which this PolyDiT does not know; update it")
    width, height = reader.number(), reader.number()
    numbers = [reader.number() for _ in range(4)] if CODECS[codec].video else []
    seen = _crc(file[: reader.place])[:2]
    if reader.take(2) != seen:
        raise PolyditError(f"{name}: its header is damaged; copy the file again")
    if problem := _problem([width, height, *numbers]):
        raise PolyditError(f"{name}: its header says {problem}; it is damaged")
    timing = Timing(numbers[0], (numbers[1], numbers[2]), numbers[3]) if numbers else None
    content = Container(codec, quality, weights, width, height, b"", flags=flags >> 4, timing=timing)
    return content, reader, flags & 15


def _problem(numbers: list[int]) -> str:
    width, height, *timing = numbers
    if not (0 < width <= LARGEST_SIDE and 0 < height <= LARGEST_SIDE and width * height <= LARGEST_PICTURE):
        return f"{width}x{height} pixels"
    if timing and (min(timing) < 1 or max(timing) > LARGEST_TIMING):
        return f"{timing[0]} frames at {timing[1]}/{timing[2]} in groups of {timing[3]}"
    return ""


def _read_sections(reader: _Reader, count: int) -> dict[int, bytes]:
    sections = {}
    for _ in range(count):
        start = reader.place
        kind = reader.take(1)[0]
        content = reader.take(reader.number())
        seen = _crc(reader.file[start : reader.place])
        if reader.take(4) != seen:
            raise PolyditError(
                f"{reader.name}: its {SECTIONS.get(kind, 'section')} is damaged; copy the file again"
            )
        sections[kind] = content
    return sections


class _Reader:
    def __init__(self, file: bytes | memoryview, place: int, name: str | Path) -> None:
        self.file, self.place, self.name = file, place, name

    def take(self, count: int) -> bytes:
        if self.place + count > len(self.file):
            raise PolyditError(f"{self.name}: is cut short; copy the file again")
        self.place += count
        return self.file[self.place - count : self.place]

    def number(self) -> int:
        value = 0
        for shift in range(0, 35, 7):
            byte = self.take(1)[0]
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise PolyditError(f"{self.name}: a number in it has no end; it is damaged")


def leb128(number: int) -> bytes:
    """A whole number in groups of seven bits, the lowest first."""
    digits = bytearray()
    while number > 127:
        digits.append(number & 127 | 128)
        number >>= 7
    digits.append(number)
    return bytes(digits)


def _crc(content: bytes) -> bytes:
    return struct.pack("<I", zlib.crc32(content))
