"""Noise that depends on the place, so that a picture can be made in tiles of any size."""

from __future__ import annotations

import torch
from torch import Tensor

from ...core.tiling import Tile

__all__ = ["NoiseField"]


class NoiseField:
    """Standard normal noise that belongs to places of the picture, so that tiles agree where they overlap.

    The output plane is cut into cells, each drawn from its own seed; any window of it can be had without
    drawing the whole.

    Args:
        generator: gives the seed of the whole field with one draw; None takes torch's own state.
        channels: of the noise.
        cell: side of a cell in pixels of the input.
    """

    def __init__(self, generator: torch.Generator | None, channels: int, cell: int = 32) -> None:
        device = generator.device if generator is not None else "cpu"
        self.seed = int(torch.randint(2**62, (), generator=generator, device=device))
        self.channels, self.cell = channels, cell

    def crop(self, tile: Tile) -> Tensor:
        """Noise over a tile of the input, (1, channels, height, width)."""
        cell = self.cell
        rows = range(tile.top // cell, (tile.top + tile.height - 1) // cell + 1)
        columns = range(tile.left // cell, (tile.left + tile.width - 1) // cell + 1)
        field = torch.cat([torch.cat([self._draw(r, c) for c in columns], dim=2) for r in rows], dim=1)
        top, left = tile.top - rows[0] * cell, tile.left - columns[0] * cell
        return field[None, :, top : top + tile.height, left : left + tile.width]

    def _draw(self, row: int, column: int) -> Tensor:
        # Distinct for every cell of any picture that fits in memory.
        generator = torch.Generator().manual_seed((self.seed + row * 1_000_003 + column) % 2**63)
        return torch.randn(self.channels, self.cell, self.cell, generator=generator)
