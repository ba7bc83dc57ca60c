"""Supports as files: which mask belongs to which picture."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ....core.data.images import ImageInfo, list_images, read_image, to_uint8
from ....core.data.masks import counted
from ....core.data.pillow import from_pillow
from ....core.errors import PolyditError

__all__ = ["classes_in", "light", "paired", "read_mask"]


def paired(supports: Sequence[Path], masks: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Pictures and their masks.

    Pictures with transparency, or a folder of them, are their own masks where none are given. Two folders are paired
    by the names of their files without suffix (``_mask`` at the end of a mask's name does not count); files by their
    order.

    Raises:
        PolyditError: something is missing or damaged, or the numbers differ.
    """
    if not supports:
        raise PolyditError(
            "--support: few-shot weights need pictures that show what to find; give some, and --support-mask"
        )
    for path in supports:
        if not path.exists():
            raise PolyditError(f"--support {path}: no such file or folder")
    if not masks:
        pictures = [file for path in supports for file in list_images(path)]
        if all(_is_cut_out(path) for path in pictures):
            return [(path, path) for path in pictures]
        raise PolyditError(
            "--support-mask: the supports need masks that mark the thing in white; give one for each, or cut-outs"
        )
    if len(supports) == 1 and supports[0].is_dir():
        if len(masks) != 1 or not masks[0].is_dir():
            raise PolyditError(f"--support-mask: {supports[0]} is a folder, so give the folder of its masks")
        return _by_name(supports[0], masks[0])
    for option, files in (("--support", supports), ("--support-mask", masks)):
        for file in files:
            if not file.is_file():
                what = (
                    "a folder beside files; give one folder, or files only"
                    if file.is_dir()
                    else "no such file"
                )
                raise PolyditError(f"{option} {file}: {what}")
    if len(supports) != len(masks):
        raise PolyditError(
            f"--support-mask: {len(supports)} supports and {len(masks)} masks; give one for each"
        )
    return list(zip(supports, masks, strict=True))


def classes_in(folder: Path) -> dict[str, list[tuple[Path, Path]]]:
    """Pictures and their masks by class: a folder for each, with cut-outs, or with ``<name>_mask`` beside ``<name>``.

    Folders without pictures, and hidden ones, are no classes.

    Raises:
        PolyditError: there is no folder of pictures in it, or a picture without a mask.
    """
    if not folder.is_dir():
        raise PolyditError(
            f"--support-classes {folder}: no such folder; give one with a folder for each class"
        )
    found = {}
    for inner in sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != "."):
        try:
            pictures = [path for path in list_images(inner) if not path.stem.endswith("_mask")]
        except PolyditError:  # there are none
            continue
        if pictures:
            whole = all(_is_cut_out(path) for path in pictures)
            found[inner.name] = [(path, path) for path in pictures] if whole else _by_name(inner, inner)
    if not found:
        raise PolyditError(
            f"--support-classes {folder}: holds no folder of pictures; make one for each class"
        )
    return found


def _is_cut_out(path: Path) -> bool:
    stat = path.stat()
    return _shows_through(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=1024)
def _shows_through(path: Path, time: int, size: int) -> bool:
    """Asked again for each picture that is segmented, and a support is the same until its file changes."""
    return opaque(read_image(path)[1]) is not None


def _by_name(supports: Path, masks: Path) -> list[tuple[Path, Path]]:
    together = masks == supports
    by_stem = {
        path.stem.removesuffix("_mask"): path
        for path in list_images(masks)
        if path.stem.endswith("_mask") or not together
    }
    # Masks may lie in a folder within that of the pictures.
    own = set() if together else set(by_stem.values())
    pictures = [path for path in list_images(supports) if not path.stem.endswith("_mask") and path not in own]
    lonely = [path for path in pictures if path.stem not in by_stem]
    if lonely:
        raise PolyditError(
            f"{lonely[0]}: has no mask in {masks}; a mask has the name of its picture, with or without _mask"
        )
    if not pictures:
        raise PolyditError(f"--support {supports}: holds no picture")
    return [(path, by_stem[path.stem]) for path in pictures]


def read_mask(path: Path) -> NDArray[np.bool_]:
    """Where a mask's file is light (1, where it counts in 0 and 1), or a cut-out is opaque: boolean (H, W), upright.

    Raises:
        PolyditError: it cannot be read.
    """
    return _marked(*read_image(path, background=None))


def light(mask: Image.Image) -> NDArray[np.bool_]:
    """Where a mask is light, or a cut-out is opaque: boolean (H, W)."""
    return _marked(*from_pillow(mask, background=None))


def opaque(info: ImageInfo) -> NDArray[np.bool_] | None:
    """Where a cut-out is opaque, boolean (H, W); None of a picture that shows everywhere."""
    if info.alpha is None:
        return None
    alpha = to_uint8(info.alpha)
    return alpha >= 128 if alpha.min() < 128 else None


def _marked(pixels: NDArray[Any], info: ImageInfo) -> NDArray[np.bool_]:
    thing = opaque(info)
    if thing is not None:
        return thing
    return counted(np.asarray(Image.fromarray(to_uint8(pixels)).convert("L"))) >= 128
