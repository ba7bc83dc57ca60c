"""Output files that are there completely or not at all."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import io
import json
import math
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import PolyditError
from .png import PngStream

__all__ = ["OutputWriter"]

# What else Pillow writes, with settings that do not throw quality away unasked.
_PILLOW_OPTIONS: dict[str, dict[str, Any]] = {
    ".jpg": {"quality": 95, "subsampling": 0},
    ".jpeg": {"quality": 95, "subsampling": 0},
    ".webp": {"lossless": True},
    ".tif": dict(compression="tiff_deflate"),  # noqa: C408 - as a string it would name a task
    ".tiff": dict(compression="tiff_deflate"),  # noqa: C408
    ".gif": {},
}
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_PNG_MODES = ("L", "LA", "RGB", "RGBA")


class OutputWriter:
    """Writes the files of one command into one folder.

    Every file is written under a temporary name (hidden, ending in ``.partial``) beside its final one and
    renamed when it is complete; on any failure, Ctrl-C included, the temporary file is removed. A file that
    is there already is kept unless ``overwrite``. Within :meth:`together` the files of one input appear at once.
    """

    def __init__(self, output_dir: str | Path, overwrite: bool = False) -> None:
        """Create the folder.

        Args:
            output_dir: the folder; made with its parents if it is missing.
            overwrite: replace files that exist.

        Raises:
            PolyditError: the folder cannot be made, or a file has its name.
        """
        self.output_dir = Path(output_dir)
        self.overwrite = overwrite
        self._written: set[Path] = set()
        self._held: list[tuple[Path, Path]] | None = None
        with _explained(self.output_dir, "make this folder"):
            self.output_dir.mkdir(parents=True, exist_ok=True)

    def path(self, stem: str, suffix: str = "") -> Path:
        """Return the path of an output, ``<output_dir>/<stem><suffix>``; a stem may name a subfolder.

        Raises:
            PolyditError: the name leads out of the folder.
        """
        name = f"{stem}{suffix}"
        if not name or Path(name).is_absolute() or ".." in Path(name).parts or "\0" in name:
            raise PolyditError(f"output name {name!r} leads out of {self.output_dir}; give a plain file name")
        return self.output_dir / name

    def exists(self, name: str) -> bool:
        """Tell whether ``name`` is there already and will be kept (never, when ``overwrite`` is set)."""
        return not self.overwrite and os.path.lexists(self.path(name))

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Let the files that are written in the block appear when it ends, in their order, or none of them.

        What is cut short by an error, Ctrl-C or a full disk leaves nothing that looks like a result.
        """
        self._held = held = []
        try:
            yield
            while held:
                partial, path = held[0]
                with _explained(path, "write it"):
                    os.replace(partial, path)
                del held[0]
        except BaseException:
            for partial, path in held:
                self._written.discard(path)
                with contextlib.suppress(OSError):
                    partial.unlink()
            raise
        finally:
            self._held = None

    @contextlib.contextmanager
    def open(self, name: str, *, overwrite: bool | None = None) -> Iterator[BinaryIO]:
        """Open an output for writing bytes; it appears under its name when the block ends without an error.

        In a block of :meth:`together` it appears at the end of that one.

        Args:
            name: file name inside the folder.
            overwrite: for this file only, instead of the writer's own setting.

        Raises:
            PolyditError: the file exists, was written before by this writer, or cannot be written
                (disk full, no permission).
        """
        path = self.path(name)
        if overwrite is None and path in self._written:
            raise PolyditError(f"{path}: two inputs want this name; rename one or use another --output")
        if not (self.overwrite if overwrite is None else overwrite) and os.path.lexists(path):
            raise PolyditError(f"{path}: exists already; pass --overwrite or choose another --output")
        # The random part lets two commands share a folder.
        partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
        with _explained(path, "write it"):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = open(partial, "xb")  # noqa: SIM115 - closed below, in the same breath as its removal
        try:
            with _explained(path, "write it", only=_NO_SPACE), file:
                yield file
                file.flush()
                _settle(file.fileno())
            if self._held is None:
                with _explained(path, "write it"):
                    os.replace(partial, path)
            else:
                self._held.append((partial, path))
        except BaseException:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise
        self._written.add(path)

    def image(
        self, name: str, image: NDArray[np.uint8] | Image.Image, *, overwrite: bool | None = None
    ) -> Path:
        """Write a picture.

        Args:
            name: ends in .png, or in another type that Pillow writes (.jpg, .webp lossless, .tiff, .gif).
            image: 8-bit (H, W), (H, W, C) with 1 to 4 channels, or a Pillow picture.
            overwrite: see `open`.

        Returns:
            The path written.
        """
        path = self.path(name)
        suffix = path.suffix.lower()
        if suffix == ".png" and (not isinstance(image, Image.Image) or image.mode in _PNG_MODES):
            array = np.asarray(image)
            return self.image_strips(name, [array], array.shape[0], array.shape[1], overwrite=overwrite)
        if suffix != ".png" and suffix not in _PILLOW_OPTIONS:
            known = ", ".join([".png", *_PILLOW_OPTIONS])
            raise PolyditError(f"{path}: a picture cannot be written under this ending; use one of {known}")
        if not isinstance(image, Image.Image):
            image = Image.fromarray(image[..., 0] if image.shape[2:] == (1,) else image)
        # In memory first: libtiff writes to the descriptor itself and swallows why it failed.
        encoded = io.BytesIO()
        kind = Image.registered_extensions()[suffix]
        image.save(encoded, format=kind, **_PILLOW_OPTIONS.get(suffix, {}))
        with self.open(name, overwrite=overwrite) as file:
            file.write(encoded.getbuffer())
        return path

    def image_strips(
        self,
        name: str,
        strips: Iterable[NDArray[np.uint8]],
        height: int,
        width: int,
        *,
        overwrite: bool | None = None,
    ) -> Path:
        """Write a PNG from strips of rows, top to bottom, without ever holding the whole picture.

        Args:
            name: ends in .png.
            strips: 8-bit (rows, width) or (rows, width, C) each, ``height`` rows in all.
            height: rows of the picture.
            width: columns of the picture.
            overwrite: see `open`.

        Returns:
            The path written.
        """
        path = self.path(name)
        if path.suffix.lower() != ".png":
            raise PolyditError(f"{path}: a picture in strips is written as PNG; name it .png")
        with self.open(name, overwrite=overwrite) as file:
            png: PngStream | None = None
            for strip in strips:
                if png is None:
                    png = PngStream(file, height, width, channels=1 if strip.ndim == 2 else strip.shape[2])
                png.write(strip)
            if png is None:
                raise ValueError(f"{path}: no strips were given")
            png.close()
        return path

    def text(self, name: str, text: str, *, overwrite: bool | None = None) -> Path:
        """Write UTF-8 text and return its path."""
        with self.open(name, overwrite=overwrite) as file:
            file.write(text.encode())
        return self.path(name)

    def json(self, name: str, content: Any, *, overwrite: bool | None = None) -> Path:
        """Write indented JSON and return its path.

        Paths become strings, dataclasses objects, numpy and torch values numbers or lists. JSON has no
        infinity and no NaN (the PSNR of two equal pictures is infinite): they become "inf", "-inf", "nan".
        """
        text = json.dumps(_plain(content), indent=2, ensure_ascii=False, allow_nan=False)
        return self.text(name, text + "\n", overwrite=overwrite)


def _settle(descriptor: int) -> None:
    """Wait until the bytes are on the disk: some file systems find out only now that it is full."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
            raise


@contextlib.contextmanager
def _explained(path: Path, action: str, only: set[int] | None = None) -> Iterator[None]:
    """Turn what the operating system refuses into one line for the user.

    ``only`` names the error numbers to explain; inside a caller's block others may be about another file.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or (only is not None and error.errno not in only):
            raise
        if error.errno == errno.EFBIG:
            raise PolyditError(f"{path}: too large for this file system; choose another --output") from error
        if error.errno in _NO_SPACE:
            raise PolyditError(f"{path}: the disk is full; free space or choose another --output") from error
        reason = (error.strerror or str(error)).lower()
        raise PolyditError(f"{path}: cannot {action} ({reason}); choose another --output") from error


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if hasattr(value, "tolist"):  # numpy scalars and arrays, torch tensors
        return _plain(value.tolist())
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
