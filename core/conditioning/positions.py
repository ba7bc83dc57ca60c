"""Where the tokens of a group stand: on the target's places, beside it, or stretched over it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..attention.masks import grid_coordinates

__all__ = ["Position"]


@dataclass(frozen=True)
class Position:
    """How the coordinates of a group's own grid become position ids: ``id = coordinate * scale + offset``.

    The default gives every group the places of its own grid, the target's places where the grids agree (a masked
    person, a depth map).

    Attributes:
        group: Coordinate on the group axis, for models that have one (layer k, condition -1).
        offset: Added to the ids, in tokens; one number or one per axis.
        scale: Multiplies the coordinates; one number or one per axis.
    """

    group: float = 0.0
    offset: float | tuple[float, ...] = 0.0
    scale: float | tuple[float, ...] = 1.0

    @classmethod
    def beside(cls, grid: Sequence[int], axis: int = -1, group: float = 0.0) -> Position:
        """Shifted by one whole grid along an axis: -1 is the width, -2 the height (no label is shared then).

        A subject that is not aligned with the target (a garment), OminiControl (arXiv 2411.15098); foreground beside
        background, GenCompositor (arXiv 2509.02460).
        """
        offset = [0.0] * len(grid)
        offset[axis] = float(grid[axis])
        return cls(group, tuple(offset))

    @classmethod
    def interpolated(
        cls, grid: Sequence[int], target: Sequence[int], centred: bool = False, group: float = 0.0
    ) -> Position:
        """Stretched over the target's grid, for an aligned condition at another resolution: fractional ids.

        Args:
            grid: The group's tokens per axis.
            target: The target's.
            centred: False puts token i at ``i S`` with S = target / grid (EasyControl, arXiv 2503.07027), True at the
                middle of the tokens that it covers, ``i S + (S - 1) / 2`` (OminiControl).
            group: Coordinate on the group axis.
        """
        scale = tuple(t / g for t, g in zip(target, grid, strict=True))
        offset = tuple((s - 1) / 2 for s in scale) if centred else 0.0
        return cls(group, offset, scale)

    @property
    def moves(self) -> bool:
        """Whether the ids differ from the grid's own coordinates."""
        return self != Position(self.group)

    def ids(self, grid: Sequence[int], device: torch.device | str | None = None) -> Tensor:
        """(N, 1 + A): the group coordinate, then one per axis; row-major tokens."""
        coordinates = grid_coordinates(grid, device).float()
        axes = coordinates.shape[1]
        scale, offset = (
            torch.tensor((value,) * axes if isinstance(value, (int, float)) else value, device=device)
            for value in (self.scale, self.offset)
        )
        if len(scale) != axes or len(offset) != axes:
            raise ValueError(
                f"a grid of {axes} axes with scale {self.scale} and offset {self.offset}: one per axis"
            )
        ids = coordinates * scale + offset
        return torch.cat([ids.new_full((len(ids), 1), self.group), ids], dim=1)
