"""``polydit compression encode`` and ``decode``."""

from __future__ import annotations

import mmap
import sys
from argparse import Namespace
from pathlib import Path

from ...core.devices import check_device_name
from ...core.errors import PolyditError
from ...core.media.writer import OutputWriter
from .container import CODECS, read_container
from .rate import check_rate
from .systems import module_of, system_for

__all__ = ["decode", "encode"]

LONGEST_FILE = 2**31


def encode(options: Namespace) -> int:
    """Write a ``.pdc`` file of a picture or a video.

    Raises:
        PolyditError: an option is out of its range, the input cannot be read, or the output not be written.
    """
    _check(options)
    check_rate(options)
    if options.output.suffix.lower() != ".pdc":
        raise PolyditError(f"{options.output}: a coded file is named .pdc; call it {options.output.stem}.pdc")
    writer = _writer(options)
    module = module_of(system_for(options.source, options.system))
    return _say(module.encode_file(options.source, writer, options.output.name, options))


def decode(options: Namespace) -> int:
    """Write the picture or video of a ``.pdc`` file.

    Raises:
        PolyditError: the file is none, is damaged or of other weights, or the output cannot be written.
    """
    _check(options)
    writer = _writer(options)
    content = read_container(_read(options.source), options.source)
    module = module_of(content.codec)
    return _say(module.decode_file(options.source, content, writer, options.output.name, options))


def _check(options: Namespace) -> None:
    check_device_name(options.device)
    if not options.source.is_file():
        what = "is a folder; give a file" if options.source.is_dir() else "no such file; check the path"
        raise PolyditError(f"{options.source}: {what}")
    if options.output.is_dir():
        raise PolyditError(f"{options.output}: is a folder; give the name of a file")
    if options.output.exists() and not options.overwrite:
        raise PolyditError(f"{options.output}: exists already; pass --overwrite or choose another name")


def _writer(options: Namespace) -> OutputWriter:
    return OutputWriter(options.output.parent, overwrite=options.overwrite)


def _read(path: Path) -> bytes | memoryview:
    """The bytes of a file; of a video a view of them, which takes no memory."""
    try:
        with path.open("rb") as file:
            begin = file.read(5)
            if len(begin) == 5 and begin[4] in CODECS and CODECS[begin[4]].video:
                return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        if path.stat().st_size > LONGEST_FILE:
            raise PolyditError(f"{path}: {path.stat().st_size:,} bytes are more than a .pdc file holds")
        return path.read_bytes()
    except OSError as error:
        raise PolyditError(
            f"{path}: cannot be read ({error.strerror or error}); check its permissions"
        ) from error


def _say(record: dict) -> int:
    sys.stderr.write(f"{record['line']}\n")
    return 0
