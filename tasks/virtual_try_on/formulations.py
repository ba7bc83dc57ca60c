"""Which formulation a saved pipeline has."""

from __future__ import annotations

from typing import Any

from ...core.errors import PolyditError
from .concatenation import ConcatenationFormulation
from .formulation import Formulation, TokenGroupFormulation

__all__ = ["formulation_from"]

KINDS: dict[str, Any] = {kind.kind: kind for kind in (TokenGroupFormulation, ConcatenationFormulation)}


def formulation_from(config: dict[str, Any]) -> Formulation:
    """Inverse of a formulation's ``config``.

    Raises:
        PolyditError: a kind that this version does not have.
    """
    settings = dict(config)
    kind = settings.pop("kind", TokenGroupFormulation.kind)
    if kind not in KINDS:
        raise PolyditError(f"formulation {kind!r} is not known; there are {', '.join(KINDS)}")
    made: Formulation = KINDS[kind](**settings)
    return made
