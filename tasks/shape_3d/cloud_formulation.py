"""What DiT-3D asks of point clouds: numbers that training and inference share."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from ...core.errors import PolyditError
from ...core.task import nearest

__all__ = ["CloudFormulation", "category_number"]


def category_number(categories: tuple[str, ...] | list[str], name: str, option: str = "--category") -> int:
    """The label of a category.

    Args:
        categories: that the weights know.
        name: of one of them.
        option: that named it, for the message.

    Raises:
        PolyditError: it is unknown; names those that are known.
    """
    if name not in categories:
        raise PolyditError(
            f"{option} {name}: these weights do not know it{nearest(name, categories)}; "
            f"they know {', '.join(categories)}"
        )
    return list(categories).index(name)


@dataclass(frozen=True)
class CloudFormulation:
    """How clouds are normalised, and which there are.

    Attributes:
        categories: by label.
        points: of a cloud.
        mean: of all training points, by axis.
        std: one number for all axes, of all training points.
        guidance_scale: that predictions use by default; 1 is none, as published.
        steps: sampling steps by default; as published 1000.
        guidance_range: least and greatest guidance scale of a distilled network, which reads it and is asked once a
            step (:mod:`.cloud_distillation`); None is a network that is guided by a second call.
        only_steps: the one number of steps that a distilled network can do; None is any.
    """

    categories: list[str] = field(default_factory=lambda: ["chair"])
    points: int = 2048
    mean: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    std: float = 1.0
    guidance_scale: float = 1.0
    steps: int = 1000
    guidance_range: list[float] | None = None
    only_steps: int | None = None

    def __post_init__(self) -> None:
        if not self.categories or len(set(self.categories)) != len(self.categories):
            raise PolyditError(f"formulation.categories {self.categories}: name each category once")
        if len(self.mean) != 3 or not self.std > 0:
            raise PolyditError("formulation: mean has three numbers, and std is greater than 0")
        if self.guidance_range is not None and (
            len(self.guidance_range) != 2 or not 0 <= self.guidance_range[0] < self.guidance_range[1]
        ):
            raise PolyditError(
                f"formulation.guidance_range {self.guidance_range}: give the least and the greatest scale, such as "
                "[1.0, 5.0]"
            )
        self.check_guidance(self.guidance_scale, "formulation.guidance_scale")

    def check_guidance(self, scale: float, option: str = "--guidance-scale") -> None:
        """Refuse a guidance scale that a distilled network has never read.

        Raises:
            PolyditError: it is outside of ``guidance_range``.
        """
        if self.guidance_range is not None and not self.guidance_range[0] <= scale <= self.guidance_range[1]:
            least, greatest = self.guidance_range
            raise PolyditError(
                f"{option} {scale:g}: the network was distilled for {least:g} to {greatest:g}; stay within"
            )

    def config(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    def normalise(self, points: Tensor) -> Tensor:
        """Clouds (B, 3, N) as the network sees them."""
        return (points - points.new_tensor(self.mean)[:, None]) / self.std

    def restore(self, points: Tensor) -> Tensor:
        """The inverse of :meth:`normalise`."""
        return points * self.std + points.new_tensor(self.mean)[:, None]
