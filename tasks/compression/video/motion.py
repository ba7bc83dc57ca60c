"""Motion-compensated prediction with integers: block vectors in quarter pixels, overlapped blocks.

Frames are whole numbers in 1/16 of a level, (3, H, W). Between pixels a frame is interpolated by eight-tap filters
(those of H.265, G. J. Sullivan et al. 2012); each pixel's prediction blends those of the four nearest blocks' vectors
(overlapped block motion compensation, M. T. Orchard and G. J. Sullivan 1994), so that it has no block edges.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["BLOCK", "LEVEL", "WHITE", "Reference", "predict", "search"]

BLOCK = 16
LEVEL = 16
"""Frames count in 1/16 of a level."""
WHITE = 255 * LEVEL
FILTERS = (
    (0, 0, 0, 64, 0, 0, 0, 0),
    (-1, 4, -10, 58, 17, -5, 1, 0),
    (-1, 4, -11, 40, 40, -11, 4, -1),
    (0, 1, -5, 17, 58, -10, 4, -1),
)
"""At 0, 1/4, 1/2 and 3/4 between the fourth and the fifth pixel, in 1/64."""


class Reference:
    """A frame at four times its size, to predict from.

    Args:
        frame: (3, H, W) whole numbers 0..`WHITE`, int32.
    """

    def __init__(self, frame: Tensor) -> None:
        self.frame = frame
        self.height, self.width = frame.shape[-2:]
        wide = _between(frame, -1)
        self.fine = _between(wide, -2).to(torch.int16).flatten(1)

    def take(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Values (3, H, W) int32 at places in quarter pixels; beyond the border the border's."""
        rows = rows.clamp(0, 4 * self.height - 4)
        columns = columns.clamp(0, 4 * self.width - 4)
        place = (rows * (4 * self.width) + columns).flatten()
        return self.fine[:, place].view(3, *rows.shape).to(torch.int32)


def _between(frame: Tensor, axis: int) -> Tensor:
    """Four times as many samples along an axis."""
    frame = frame.transpose(axis, -1).to(torch.int32)
    around = torch.cat([frame[..., :1]] * 3 + [frame] + [frame[..., -1:]] * 4, -1)
    size = frame.shape[-1]
    phases = [frame]
    for taps in FILTERS[1:]:
        total = sum(tap * around[..., i : i + size] for i, tap in enumerate(taps) if tap)
        phases.append(((total + 32) >> 6).clamp(0, WHITE))
    return torch.stack(phases, -1).flatten(-2).transpose(axis, -1)


def predict(reference: Reference, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """The prediction of a frame.

    Args:
        reference: the frame before.
        vectors: (H / 16, W / 16, 2) int32, rounded up: rows down and columns to the right, in quarter pixels, of where
            a block comes from.

    Returns:
        (3, H, W) int32 in 1/16 of a level; and by how much the four blocks' predictions disagree, (H, W) int32.
    """
    height, width = reference.height, reference.width
    grid = vectors.shape[:2]
    rows, columns = torch.arange(height), torch.arange(width)
    sides = []
    for places, count in ((rows, grid[0]), (columns, grid[1])):
        first = (places - BLOCK // 2).div(BLOCK, rounding_mode="floor")
        weight = 2 * (places - BLOCK * first - BLOCK // 2) + 1  # of the second block, in 1/32
        sides.append(
            [
                (first.clamp(0, count - 1), 2 * BLOCK - weight),
                ((first + 1).clamp(0, count - 1), weight),
            ]
        )
    total = torch.zeros(3, height, width, dtype=torch.int32)
    least = torch.full((height, width), WHITE, dtype=torch.int32)
    most = torch.zeros(height, width, dtype=torch.int32)
    for row, row_weight in sides[0]:
        for column, column_weight in sides[1]:
            vector = vectors[row][:, column]
            value = reference.take(
                4 * rows.view(-1, 1) + vector[..., 0], 4 * columns.view(1, -1) + vector[..., 1]
            )
            total += value * (row_weight.view(-1, 1) * column_weight).to(torch.int32)
            least, most = torch.minimum(least, value[1]), torch.maximum(most, value[1])
    return (total + 512) >> 10, most - least


def search(reference: Reference, frame: Tensor, before: Tensor | None, price: float) -> Tensor:
    """Find vectors. This is the encoder's own business: nothing here has to be exact.

    A coarse full search at a quarter of the size, then ever finer steps around the best, vectors of the neighbours and
    of the frame before; each vector costs what it takes to say how it differs from its left neighbour.

    Args:
        reference: the frame before, as decoded.
        frame: (3, H, W) float levels 0..255.
        before: vectors of the frame before, or None.
        price: absolute difference, summed over a block, that a bit is worth.
    """
    height, width = reference.height, reference.width
    grid = (-(-height // BLOCK), -(-width // BLOCK))
    weights = torch.tensor([0.3, 0.5, 0.2])
    target = torch.einsum("c,chw->hw", weights, frame.float())
    grey = torch.einsum("c,cn->n", weights, reference.fine.float()) / LEVEL
    below, right = grid[0] * BLOCK - height, grid[1] * BLOCK - width
    target = F.pad(target[None, None], (0, right, 0, below), mode="replicate")[0, 0]
    rows = 4 * torch.arange(height + below).view(-1, 1).clamp(max=height - 1)
    columns = 4 * torch.arange(width + right).view(1, -1).clamp(max=width - 1)

    row_of = rows.view(grid[0], BLOCK, 1, 1)
    column_of = columns.view(1, 1, grid[1], BLOCK)
    blocks = target.view(grid[0], BLOCK, grid[1], BLOCK)

    def error(vectors: Tensor) -> Tensor:
        y = (row_of + vectors[:, None, :, None, 0]).clamp(0, 4 * height - 4)
        x = (column_of + vectors[:, None, :, None, 1]).clamp(0, 4 * width - 4)
        return (grey[y * (4 * width) + x] - blocks).abs().sum((1, 3))

    def cost(vectors: Tensor, around: Tensor) -> Tensor:
        bits = _bits(vectors - _left(around)) + _bits(_right(around) - vectors)
        return error(vectors) + price * bits

    vectors = _coarse(grey.view(4 * height, 4 * width), target, grid)
    best = cost(vectors, vectors)

    def consider(candidates: Tensor) -> None:
        nonlocal vectors, best
        found = cost(candidates, vectors)
        better = found < best
        vectors = torch.where(better[..., None], candidates, vectors)
        best = torch.where(better, found, best)

    consider(torch.zeros_like(vectors))
    if before is not None:
        consider(before)
    for step in (8, 4, 2, 1):
        for _ in range(2 if step == 4 else 1):
            for down, over in ((-1, 0), (1, 0), (0, -1), (0, 1), (-1, -1), (1, 1), (-1, 1), (1, -1)):
                consider(vectors + torch.tensor([down * step, over * step]))
        best = cost(vectors, vectors)
        for neighbour in (_left(vectors), _right(vectors), _left(vectors, 0), _right(vectors, 0)):
            consider(neighbour)
    return vectors.to(torch.int32)


def _coarse(grey: Tensor, target: Tensor, grid: tuple[int, int], reach: int = 7) -> Tensor:
    """The best whole vectors of a search at a quarter of the size, up to 4 x `reach` pixels."""
    small = F.avg_pool2d(grey[None, None], BLOCK)  # 16 samples are 4 pixels
    wanted = F.avg_pool2d(target[None, None], 4)
    below, right = (wanted.shape[i] - small.shape[i] for i in (2, 3))
    padded = F.pad(small, (reach, reach + right, reach, reach + below), mode="replicate")
    best, vectors = torch.full(grid, float("inf")), torch.zeros(*grid, 2, dtype=torch.long)
    for down in range(-reach, reach + 1):
        for over in range(-reach, reach + 1):
            moved = padded[
                ...,
                reach + down : reach + down + wanted.shape[2],
                reach + over : reach + over + wanted.shape[3],
            ]
            # Windows of twice the block: single blocks find motion where there is none.
            apart = F.avg_pool2d((moved - wanted).abs(), 8, 4, padding=2, count_include_pad=False)[0, 0]
            apart = apart + 0.02 * (abs(down) + abs(over))
            better = apart < best
            best = torch.where(better, apart, best)
            vectors[better] = torch.tensor([16 * down, 16 * over])
    return vectors


def _left(vectors: Tensor, axis: int = 1) -> Tensor:
    """Each block's neighbour to the left, or above; the first ones are their own."""
    return torch.cat([vectors.narrow(axis, 0, 1), vectors.narrow(axis, 0, vectors.shape[axis] - 1)], axis)


def _right(vectors: Tensor, axis: int = 1) -> Tensor:
    count = vectors.shape[axis]
    return torch.cat([vectors.narrow(axis, 1, count - 1), vectors.narrow(axis, count - 1, 1)], axis)


def _bits(difference: Tensor) -> Tensor:
    return (1 + 2 * torch.log2(1 + difference.abs().float())).sum(-1)
