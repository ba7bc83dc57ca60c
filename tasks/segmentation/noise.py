"""Coloured noise for training, and cut-outs of one sample in another: DiffDIS' two augmentations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["cut_mix", "pyramid_noise"]

Box = tuple[int, int, int, int]  # top, left, height, width


def pyramid_noise(
    noise: Tensor, discount: float = 0.8, levels: int = 10, rng: np.random.Generator | None = None
) -> Tensor:
    """White noise plus enlarged noise of ever coarser grids, scaled to a standard deviation of one.

    Args:
        noise: the finest level, standard normal (B, C, h, w).
        discount: level i counts ``discount ** i``.
        levels: at most; it ends where a grid is down to one cell.
        rng: source of the coarser levels and of the ratios of their sizes, each in [2, 4].

    Returns:
        Like ``noise``; each sample has a standard deviation of one.
    """
    rng = np.random.default_rng() if rng is None else rng
    height, width = noise.shape[-2:]
    total, rows, columns = noise.clone(), float(height), float(width)
    for level in range(1, levels):
        ratio = 2 + 2 * rng.random()
        rows, columns = max(1.0, rows / ratio), max(1.0, columns / ratio)
        drawn = rng.standard_normal((*noise.shape[:2], int(rows), int(columns)), np.float32)
        grid = torch.from_numpy(drawn).to(noise)
        total += discount**level * F.interpolate(grid, (height, width), mode="bilinear", align_corners=False)
        if rows == columns == 1:
            break
    return total / total.flatten(1).std(dim=1).view(-1, 1, 1, 1)


def cut_mix(
    batch: Mapping[str, Tensor],
    probability: float = 0.5,
    rng: np.random.Generator | None = None,
    area: tuple[float, float] = (0.02, 0.4),
    aspect: tuple[float, float] = (0.3, 3.33),
    boxes: Sequence[Box | None] | None = None,
) -> dict[str, Tensor]:
    """In pairs: a box of each sample is replaced, in all its maps, by the same box of its partner.

    Args:
        batch: maps (B, C, H, W) of one size; other tensors pass.
        probability: that a sample gets a box. With an odd number of samples the last one is left alone.
        rng: source of the draws.
        area: least and largest share of the picture.
        aspect: least and largest height over width.
        boxes: (top, left, height, width) in pixels of each sample, or None for no box, instead of drawn ones.

    Returns:
        The batch with new tensors.
    """
    rng = np.random.default_rng() if rng is None else rng
    maps = {name: value for name, value in batch.items() if isinstance(value, Tensor) and value.ndim == 4}
    mixed = {**batch, **{name: value.clone() for name, value in maps.items()}}
    count, _, height, width = next(iter(maps.values())).shape
    paired = count - count % 2
    if boxes is None:
        boxes = [drawn_box(height, width, probability, rng, area, aspect) for _ in range(paired)]
    for row, box in enumerate(boxes[:paired]):
        if box is None:
            continue
        top, left, rows, columns = box
        part = (..., slice(top, top + rows), slice(left, left + columns))
        for name, value in maps.items():
            mixed[name][row][part] = value[row ^ 1][part]
    return mixed


def drawn_box(
    height: int,
    width: int,
    probability: float,
    rng: np.random.Generator,
    area: tuple[float, float],
    aspect: tuple[float, float],
) -> Box | None:
    """A box for :func:`cut_mix`, which tells the arguments; None with the rest of the probability."""
    draws = rng.random(5).tolist()
    if draws[0] >= probability:
        return None
    share = area[0] + (area[1] - area[0]) * draws[1]
    ratio = aspect[0] * (aspect[1] / aspect[0]) ** draws[2]
    rows = min(height, max(1, round((share * height * width * ratio) ** 0.5)))
    columns = min(width, max(1, round((share * height * width / ratio) ** 0.5)))
    return int(draws[3] * (height - rows + 1)), int(draws[4] * (width - columns + 1)), rows, columns
