"""What went wrong, in one line: the translation of exceptions for the command line."""

from __future__ import annotations

import errno
import os

from ..errors import PolyditError

__all__ = ["explain", "is_disk_full"]

EXTRAS = {
    "av": "video",
    "decord": "video",
    "gradio": "demo",
    "gradio_client": "demo",
    "imageio_ffmpeg": "video",
    "litdata": "streaming",
}
"""Which extra of the distribution brings a module."""

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}


def explain(error: BaseException) -> str | None:
    """One line that says what to do about `error`, or ``None`` if it is no failure that a user can cause."""
    if isinstance(error, PolyditError):
        return " ".join(str(error).split())
    if isinstance(error, MemoryError) or _is_out_of_memory(error):
        return f"out of memory ({_first_line(error)}); use smaller tiles or batches or another --device"
    if isinstance(error, ModuleNotFoundError):
        name = (error.name or "").partition(".")[0]
        if name in EXTRAS:
            return f"{name} is not installed; pip install 'polydit[{EXTRAS[name]}]'"
        return None
    if isinstance(error, OSError):
        return _explain_os_error(error)
    return None


def is_disk_full(error: BaseException | None) -> bool:
    """Whether `error`, or what caused it, says that no space is left."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _NO_SPACE:
            return True
        error = error.__cause__
    return False


def _explain_os_error(error: OSError) -> str | None:
    if error.errno is None:
        return None
    name = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes, os.PathLike)) else None
    place = f"{name}: " if name else ""
    if error.errno in _NO_SPACE:
        return f"{place}the disk is full; free space or choose another --output"
    if error.errno == errno.EADDRINUSE:
        return f"{place}this port is in use; choose another --port"
    if name is None:
        return None
    if isinstance(error, FileNotFoundError):
        return f"{name}: no such file or folder"
    if isinstance(error, PermissionError):
        return f"{name}: permission denied; choose a file or folder that you may use"
    if isinstance(error, IsADirectoryError):
        return f"{name}: is a folder, and a file is needed"
    if isinstance(error, (NotADirectoryError, FileExistsError)):
        return f"{name}: a file is where a folder is needed"
    return f"{name}: {error.strerror or error}"


def _is_out_of_memory(error: BaseException) -> bool:
    # torch raises its own class on accelerators and a plain RuntimeError on the CPU; by name, so as not to import it.
    return type(error).__name__ == "OutOfMemoryError" or (
        isinstance(error, RuntimeError)
        and any(
            words in str(error) for words in ("can't allocate memory", "not enough memory", "out of memory")
        )
    )


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__
