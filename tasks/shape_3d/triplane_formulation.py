"""What Direct3D asks of its data: numbers that training and inference share."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from ...core.errors import PolyditError

__all__ = ["TriplaneFormulation"]


@dataclass(frozen=True)
class TriplaneFormulation:
    """What the network is told, and how its answer becomes a surface.

    Attributes:
        categories: by label, for use without a picture; none as published.
        size: side of the pictures in pixels.
        guidance_scale: that predictions use by default.
        picture_guidance: the same for those from a picture; None is ``guidance_scale``.
        steps: sampling steps by default.
        level: logit of the surface; the released one is -1.
    """

    categories: list[str] = field(default_factory=list)
    size: int = 64
    guidance_scale: float = 4.0
    steps: int = 50
    level: float = 0.0
    picture_guidance: float | None = None

    def __post_init__(self) -> None:
        if len(set(self.categories)) != len(self.categories):
            raise PolyditError(f"formulation.categories {self.categories}: name each category once")
        if self.size < 16:
            raise PolyditError(f"formulation.size {self.size}: pictures of 16 pixels or more")

    def config(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)
