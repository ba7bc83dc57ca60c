"""PolyDiT: one diffusion-transformer core and seven vision tasks.

``import polydit`` is light: torch is imported only when something that needs it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "load"]

if TYPE_CHECKING:
    from .core.load import load


def __getattr__(name: str) -> Any:
    if name == "load":
        from .core.load import load

        return load
    raise AttributeError(f"module 'polydit' has no attribute {name!r}")
