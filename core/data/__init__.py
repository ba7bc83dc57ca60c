"""Data: readers of pictures, replayable degradations, training crops and pairs, the open corpus, built-in samples.

The names below are imported when they are first asked for, so that ``polydit corpus`` needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .degradation import Degradation
    from .images import list_images, read_image
    from .pairs import PairedPictures, find_pairs
    from .pictures import CropSampler, PictureCrops
    from .samples import load_sample, sample_path

__all__ = [
    "CropSampler",
    "Degradation",
    "PairedPictures",
    "PictureCrops",
    "find_pairs",
    "list_images",
    "load_sample",
    "read_image",
    "sample_path",
]

_HOMES = {
    "CropSampler": "pictures",
    "Degradation": "degradation",
    "PairedPictures": "pairs",
    "PictureCrops": "pictures",
    "find_pairs": "pairs",
    "list_images": "images",
    "load_sample": "samples",
    "read_image": "images",
    "sample_path": "samples",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
