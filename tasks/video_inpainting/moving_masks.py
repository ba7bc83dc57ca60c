"""Masks for clips: shapes that stand still or wander, as ProPainter (arXiv 2309.03897) trains and measures with."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

from ...core.data.random_masks import RandomMasks

__all__ = ["moving_masks", "shifted"]

BLOBS = RandomMasks(brush=0.3, blob=1.0, rectangle=0.3, area=(0.01, 0.2))


def moving_masks(
    frames: int,
    size: tuple[int, int],
    rng: np.random.Generator,
    still: float = 0.5,
    speed: float = 0.03,
    shapes: RandomMasks = BLOBS,
) -> NDArray[np.bool_]:
    """One random shape in every frame.

    Args:
        frames: of the clip.
        size: (height, width).
        rng: of all draws.
        still: probability that the shape stands still, as half of the published ones do.
        speed: largest speed, as a share of the shorter side per frame; it turns back at the border.
        shapes: what shapes there are.

    Returns:
        (T, H, W), never empty in the first frame.
    """
    shape = shapes(size, torch.Generator().manual_seed(int(rng.integers(2**62))))
    if rng.random() < still:
        return np.repeat(shape[None], frames, 0)
    angle, pace = rng.uniform(0, 2 * math.pi), rng.uniform(0.2, 1) * speed * min(size)
    velocity = np.array([math.sin(angle), math.cos(angle)]) * pace
    rows, columns = np.flatnonzero(shape.any(1)), np.flatnonzero(shape.any(0))
    # Up to half of the shape may leave the picture.
    spread = np.array([rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1]) / 2
    least = -np.array([rows[0], columns[0]]) - spread
    most = np.array(size) - np.array([rows[-1], columns[-1]]) - 1 + spread
    place, masks = np.zeros(2), []
    for _ in range(frames):
        masks.append(shifted(shape, *np.rint(place).astype(int)))
        velocity += rng.normal(0, 0.15 * pace, 2)
        place = place + velocity
        for axis in range(2):
            if not least[axis] <= place[axis] <= most[axis]:
                velocity[axis] = -velocity[axis]
                place[axis] = np.clip(place[axis], least[axis], most[axis])
    return np.stack(masks)


def shifted(mask: NDArray[np.bool_], down: int, right: int) -> NDArray[np.bool_]:
    """A mask moved by whole pixels; nothing comes in from outside."""
    height, width = mask.shape
    moved = np.zeros_like(mask)
    down, right = (int(np.clip(by, -side, side)) for by, side in ((down, height), (right, width)))
    source = mask[max(-down, 0) : height - max(down, 0), max(-right, 0) : width - max(right, 0)]
    moved[max(down, 0) : height - max(-down, 0), max(right, 0) : width - max(-right, 0)] = source
    return moved
