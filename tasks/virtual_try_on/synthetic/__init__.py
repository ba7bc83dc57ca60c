"""Drawn people and garments: a posed body, a garment laid flat, and the same garment worn, with masks.

Everything is drawn by NumPy, SciPy and Pillow from one seed and the number of the sample.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .scene import Scene, draw_scene

__all__ = ["Scene", "draw_scene"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module(".scene", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
