"""Files that are not what they should be end in one line, quickly."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest

from polydit.core.errors import PolyditError
from polydit.tasks.compression import coding
from polydit.tasks.compression.container import (
    ALPHA,
    EXIF,
    Container,
    Timing,
    read_container,
    write_container,
)
from polydit.tasks.compression.picture_file import Still, decode_still, encode_still

from .conftest import picture


def plain(**changes) -> Container:
    values = {
        "codec": 0,
        "quality": 77,
        "weights": b"abcd",
        "width": 768,
        "height": 512,
        "data": b"\1\2\3" * 40,
    }
    return Container(**{**values, "symbols": 0x12345678, **changes})


def test_what_was_written_is_read():
    content = plain(flags=5, sections={ALPHA: b"alpha", EXIF: b""})
    found = read_container(write_container(content), "x")
    assert found == Container(**{**vars(content), "symbols": 0x5678})


def test_a_video_has_its_timing():
    content = plain(codec=1, timing=Timing(300, (30000, 1001), 16))
    assert read_container(write_container(content), "x").timing == Timing(300, (30000, 1001), 16)


def test_a_plain_picture_has_at_most_24_bytes_beside_its_data():
    for width, height in ((1, 1), (768, 512), (16383, 12207)):
        content = plain(width=width, height=height)
        assert len(write_container(content)) - len(content.data) <= 24


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: b"\x89PNG" + file[4:], "not a .pdc file"),
        (lambda file: b"", "not a .pdc file"),
        (lambda file: file[:3], "cut short"),
        (lambda file: file[:3] + b"\2" + file[4:], "has layout 2, and this PolyDiT reads 1"),
        (lambda file: file[:4] + b"\xc8" + file[5:], "of codec 200"),
        (lambda file: file[:13] + bytes([file[13] ^ 1]) + file[14:], "its header is damaged"),
        (lambda file: file[:-20], "data is cut short or damaged"),
        (lambda file: file[:40] + bytes([file[40] ^ 8]) + file[41:], "data is cut short or damaged"),
        (lambda file: file + b"\0", "data is cut short or damaged"),
    ],
)
def test_a_bad_file_is_described(change, message: str):
    with pytest.raises(PolyditError, match=message) as caught:
        read_container(change(write_container(plain())), "photo.pdc")
    assert str(caught.value).startswith("photo.pdc: ")
    assert "\n" not in str(caught.value)


def test_damage_in_a_section_is_named():
    file = bytearray(write_container(plain(sections={EXIF: b"x" * 50})))
    file[40] ^= 1
    with pytest.raises(PolyditError, match="its EXIF is damaged"):
        read_container(bytes(file), "x")


def test_a_header_that_asks_for_the_moon_is_refused_before_anything_is_allocated():
    """With right check sums, as somebody with bad intentions would write it."""
    for width, height in ((0, 5), (2**20, 1), (2**19, 2**19)):
        head = struct.pack("<3sBBBB4s", b"PDC", 1, 0, 0, 9, b"abcd")
        for number in (width, height):
            while number > 127:
                head += bytes([number & 127 | 128])
                number >>= 7
            head += bytes([number])
        file = head + struct.pack("<I", zlib.crc32(head))[:2] + b"data" + b"\0\0"
        file += struct.pack("<I", zlib.crc32(file))
        with pytest.raises(PolyditError, match="its header says"):
            read_container(file, "x")
    with pytest.raises(PolyditError, match="cannot hold"):
        write_container(plain(width=2**20))


def test_a_size_that_memory_cannot_hold_is_refused(weights, monkeypatch: pytest.MonkeyPatch):
    """A few bytes may claim 200 megapixels, with check sums that fit."""
    content = Container(**{**vars(plain(width=14000, height=14000)), "weights": weights.identity[:4]})
    monkeypatch.setattr(coding, "free_memory", lambda device: 8_000_000_000)
    with pytest.raises(
        PolyditError, match=r"14000x14000 pixels need 6\d\.\d GB of memory, and 8\.0 GB are free"
    ):
        decode_still(weights, read_container(write_container(content), "x"), "x")


def test_2000_mutations_end_in_one_line(weights):
    """Bits flipped, bytes changed, cut, doubled, left out; a tenth of them with check sums that fit."""
    still = Still(picture(40, 30), alpha=np.full((40, 30), 200, np.uint8), exif=b"exif")
    file = encode_still(weights, still, 60)
    reference = decode_still(weights, read_container(file, "x"), "x").pixels
    rng = np.random.default_rng(1)
    complaints = []
    for number in range(2000):
        bad = bytearray(file)
        kind = rng.integers(5)
        place = int(rng.integers(len(bad)))
        if kind == 0:
            bad[place] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            bad[place : place + 4] = rng.bytes(4)
        elif kind == 2:
            del bad[place:]
        elif kind == 3:
            bad[place:place] = bad[place : place + int(rng.integers(1, 30))]
        else:
            del bad[place : place + int(rng.integers(1, 30))]
        if number % 10 == 0 and len(bad) > 30:
            bad[-4:] = struct.pack("<I", zlib.crc32(bad[:-4]))
        try:
            found = decode_still(weights, read_container(bytes(bad), "x"), "x")
            assert np.array_equal(found.pixels, reference), f"mutation {number} went unnoticed"
        except PolyditError as error:
            complaints.append(str(error))
    assert len(complaints) > 1950
    assert not any("\n" in line for line in complaints)


def test_every_flip_of_a_bit_is_noticed():
    file = write_container(plain(data=b"data"))
    for bit in range(8 * len(file)):
        bad = bytearray(file)
        bad[bit // 8] ^= 1 << bit % 8
        with pytest.raises(PolyditError):
            read_container(bytes(bad), "x")
