"""Options that need a library which is not installed by default."""

from __future__ import annotations

import importlib.metadata

from ..errors import PolyditError

__all__ = ["require"]


def require(package: str, option: str, extra: str = "quant") -> None:
    """Refuse an option whose library is not installed.

    Raises:
        PolyditError: it is not; names the extra that brings it.
    """
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise PolyditError(f"{option}: {package} is not installed; pip install 'polydit[{extra}]'") from None
