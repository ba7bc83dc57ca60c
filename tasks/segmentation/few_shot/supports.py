"""Supports as files: which mask belongs to which picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ....core.data.images import list_images
from ....core.errors import PolyditError

__all__ = ["classes_in", "light", "paired", "read_mask"]


def paired(supports: Sequence[Path], masks: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Pictures and their masks.

    Pictures with transparency are their own masks where none are given. Two folders are paired by the names of their
    files without suffix (``_mask`` at the end of a mask's name does not count); files by their order.

    Raises:
        PolyditError: something is missing, or the numbers differ.
    """
    if not supports:
        raise PolyditError(
            "--support: few-shot weights need pictures that show what to find; give some, and --support-mask"
        )
    if not masks and all(_is_cut_out(path) for path in supports):
        return [(path, path) for path in supports]
    if not masks:
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

    Raises:
        PolyditError: there is no folder of pictures in it, or a picture without a mask.
    """
    if not folder.is_dir():
        raise PolyditError(
            f"--support-classes {folder}: no such folder; give one with a folder for each class"
        )
    found = {}
    for inner in sorted(path for path in folder.iterdir() if path.is_dir()):
        pictures = [path for path in list_images(inner) if not path.stem.endswith("_mask")]
        if pictures:
            whole = all(_is_cut_out(path) for path in pictures)
            found[inner.name] = [(path, path) for path in pictures] if whole else _by_name(inner, inner)
    if not found:
        raise PolyditError(
            f"--support-classes {folder}: holds no folder of pictures; make one for each class"
        )
    return found


def _is_cut_out(path: Path) -> bool:
    try:
        with Image.open(path) as file:
            return file.mode in ("RGBA", "LA", "PA") and file.convert("RGBA").getextrema()[3][0] < 128
    except OSError:
        return False  # what reads it will say so


def _by_name(supports: Path, masks: Path) -> list[tuple[Path, Path]]:
    together = masks == supports
    by_stem = {
        path.stem.removesuffix("_mask"): path
        for path in list_images(masks)
        if path.stem.endswith("_mask") or not together
    }
    pictures = [path for path in list_images(supports) if not path.stem.endswith("_mask")]
    lonely = [path for path in pictures if path.stem not in by_stem]
    if lonely:
        raise PolyditError(
            f"{lonely[0]}: has no mask in {masks}; a mask has the name of its picture, with or without _mask"
        )
    if not pictures:
        raise PolyditError(f"--support {supports}: holds no picture")
    return [(path, by_stem[path.stem]) for path in pictures]


def read_mask(path: Path) -> NDArray[np.bool_]:
    """Where a mask's file is light: boolean (H, W).

    Raises:
        PolyditError: it cannot be read.
    """
    try:
        with Image.open(path) as file:
            return light(file)
    except FileNotFoundError as error:
        raise PolyditError(f"{path}: no such file; every support needs a mask") from error
    except Exception as error:  # Pillow has many ways to say that a file is damaged
        raise PolyditError(f"{path}: cannot be read as a mask ({error})") from error


def light(mask: Image.Image) -> NDArray[np.bool_]:
    """Where a mask is light, or a cut-out is opaque: boolean (H, W)."""
    if mask.mode in ("RGBA", "LA", "PA"):
        alpha = np.asarray(mask.convert("RGBA"))[..., 3]
        if alpha.min() < 128:  # a cut-out: what is there is the thing
            return alpha >= 128
    return np.asarray(mask.convert("L")) >= 128
