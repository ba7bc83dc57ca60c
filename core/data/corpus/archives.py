"""Archives inside packages: Qt resource files (.rcc) and zip files."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Iterator

__all__ = ["expand", "is_archive", "read_rcc"]

_COMPRESSED, _DIRECTORY = 1, 2


def is_archive(path: str) -> bool:
    """Whether `expand` can look inside."""
    return path.endswith((".rcc", ".sh3f", ".zip"))


def expand(path: str, data: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield (path/inner path, content) of the files in an archive; nothing for a damaged one."""
    if path.endswith(".rcc"):
        for name, content in read_rcc(data):
            yield f"{path}/{name}", content
        return
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for info in archive.infolist():
                if not info.is_dir():
                    yield f"{path}/{info.filename}", archive.read(info)
    except (zipfile.BadZipFile, NotImplementedError, zlib.error):
        return


def read_rcc(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Read Qt's binary resource format: a tree of nodes, a table of names, and length-prefixed contents.

    Entries that are compressed with zstd are left out (pictures are stored as they are).
    """
    if data[:4] != b"qres":
        return
    version, tree, contents, names = struct.unpack(">4I", data[4:20])
    node_size = 14 if version == 1 else 22

    def node(index: int, folder: str) -> Iterator[tuple[str, bytes]]:
        start = tree + index * node_size
        name_at, flags = struct.unpack(">IH", data[start : start + 6])
        (length,) = struct.unpack(">H", data[names + name_at : names + name_at + 2])
        text = names + name_at + 6  # two bytes of length, four of hash
        name = data[text : text + 2 * length].decode("utf-16-be", "replace") if index else ""
        path = f"{folder}/{name}".strip("/")
        if flags & _DIRECTORY:
            count, first = struct.unpack(">II", data[start + 6 : start + 14])
            for child in range(first, first + count):
                yield from node(child, path)
            return
        (offset,) = struct.unpack(">I", data[start + 10 : start + 14])
        (size,) = struct.unpack(">I", data[contents + offset : contents + offset + 4])
        raw = data[contents + offset + 4 : contents + offset + 4 + size]
        if flags & _COMPRESSED:
            raw = zlib.decompress(raw[4:])
        elif flags:
            return
        yield path, raw

    yield from node(0, "")
