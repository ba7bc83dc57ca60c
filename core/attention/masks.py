"""Boolean attention masks, True = may look. They are the dense references of the sparse kinds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "band_mask",
    "block_mask",
    "circle_mask",
    "grid_coordinates",
    "group_mask",
    "text_joint_mask",
    "window_mask",
]


def grid_coordinates(grid: Sequence[int], device: torch.device | str | None = None) -> Tensor:
    """Integer coordinates (N, A) of the tokens of a grid in row-major order."""
    axes = [torch.arange(size, device=device) for size in grid]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)


def window_mask(grid: Sequence[int], window: Sequence[int]) -> Tensor:
    """(N, N): tokens of the same non-overlapping window."""
    cell = grid_coordinates(grid) // torch.tensor(window)
    return (cell[:, None] == cell[None]).all(-1)


def circle_mask(grid: Sequence[int], radius: float) -> Tensor:
    """(N, N): tokens at a Euclidean distance strictly below ``radius`` (CLEAR, arXiv 2412.16112)."""
    place = grid_coordinates(grid).double()
    return torch.cdist(place, place) < radius


def band_mask(length: int, radius: int) -> Tensor:
    """(N, N): a one-dimensional sliding window, |i - j| <= radius."""
    index = torch.arange(length)
    return (index[:, None] - index[None]).abs() <= radius


def block_mask(sizes: Sequence[int]) -> Tensor:
    """(N, N), block-diagonal: consecutive runs of tokens that see only themselves."""
    owner = _owner(sizes)
    return owner[:, None] == owner[None]


def group_mask(sizes: Sequence[int], allowed: Tensor) -> Tensor:
    """(N, N) from a group-to-group table: ``allowed[i, j]`` says whether group i may look at group j."""
    owner = _owner(sizes)
    return allowed.bool().cpu()[owner[:, None], owner[None]]


def _owner(sizes: Sequence[int]) -> Tensor:
    """(N,): the number of each token's group."""
    return torch.from_numpy(np.repeat(np.arange(len(sizes)), sizes))


def text_joint_mask(image_mask: Tensor, text_tokens: int, text_first: bool = True) -> Tensor:
    """Extend an image mask (N, N) by text tokens that look at everything and are seen by everything."""
    image = image_mask.shape[0]
    mask = torch.ones(image + text_tokens, image + text_tokens, dtype=torch.bool)
    start = text_tokens if text_first else 0
    mask[start : start + image, start : start + image] = image_mask
    return mask
