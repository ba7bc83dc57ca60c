"""The camera's motion between two frames, found directly on their grey values, without what masks hide."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["camera_motion", "motions", "project", "sample_at", "scenes_of"]

_LEAST_SIDE = 12  # of the coarsest level, in pixels
_STEPS = 12  # of Gauss and Newton on each level
_MOST = 5000  # pixels of a level that are compared
_LOOK = 64  # pixels of the longer side at which scenes are told apart
_ALIKE, _LITTLE = (
    0.6,
    0.05,
)  # correlation below which, and mean difference above which, frames are of two scenes
_FREE = {"shift": 2, "affine": 6, "plane": 8}


def grey_of(frames: Tensor) -> Tensor:
    """(T, 3, H, W) to (T, 1, H, W)."""
    return (frames * frames.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)


def motions(frames: Tensor, hidden: Tensor, longest: int = 256) -> list[Tensor]:
    """Motion of the camera from each frame to the next.

    Args:
        frames: (T, 3, H, W) in [0, 1].
        hidden: (T, 1, H, W) bool, what must not be looked at.
        longest: side in pixels at which motion is estimated.

    Returns:
        T - 1 matrices (3, 3), float64: places (column, row, 1) of a frame to those of the next one, up to scale.
    """
    height, width = frames.shape[-2:]
    ratio = min(1.0, longest / max(height, width))
    grey, seen = grey_of(frames), (~hidden).float()
    if ratio < 1:
        size = (max(1, round(height * ratio)), max(1, round(width * ratio)))
        grey = F.interpolate(grey, size, mode="bilinear", antialias=True)
        seen = F.interpolate(seen, size, mode="bilinear", antialias=True)
    seen = (seen > 0.99).float()
    scale = torch.diag(
        torch.tensor([grey.shape[-1] / width, grey.shape[-2] / height, 1.0], dtype=torch.float64)
    )
    centre = torch.eye(3, dtype=torch.float64)
    centre[0, 2], centre[1, 2] = (
        0.5,
        0.5,
    )  # scaling keeps the pixels' corners, and places count from their middles
    there = torch.linalg.inv(centre) @ scale @ centre
    back = torch.linalg.inv(there)
    levels = [pyramid(g[None], s[None]) for g, s in zip(grey, seen, strict=True)]
    found, last = [], torch.eye(3, dtype=torch.float64)
    for first, second in pairwise(levels):
        last = _best(first, second, (torch.eye(3, dtype=torch.float64), last))
        found.append(_rounded(back @ last @ there))
    return found


def scenes_of(frames: Tensor, hidden: Tensor, steps: Sequence[Tensor]) -> list[int]:
    """Number of the scene that each frame belongs to: 0, and one more behind every cut.

    After a cut neighbours do not look alike, however one of them is moved.

    Args:
        frames: (T, 3, H, W) in [0, 1].
        hidden: (T, 1, H, W) bool, what must not be looked at.
        steps: as :func:`motions` finds them.
    """
    height, width = frames.shape[-2:]
    ratio = min(1.0, _LOOK / max(height, width))
    size = (max(1, round(height * ratio)), max(1, round(width * ratio)))
    grey = F.interpolate(grey_of(frames), size, mode="area")
    seen = F.interpolate((~hidden).float(), size, mode="area")
    rows, columns = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    small = torch.stack([columns.flatten(), rows.flatten()], 1).double()
    scale = small.new_tensor([width / size[1], height / size[0]])
    places = (small + 0.5) * scale - 0.5
    scenes = [0]
    for number, step in enumerate(steps):
        there = (project(step, places) + 0.5) / scale - 0.5
        maps = torch.cat([grey[number + 1], seen[number + 1]])[None]
        found, clear = sample_at(maps, there)
        both = (clear > 0.9) & (seen[number, 0].flatten() > 0.9)
        first, second = grey[number, 0].flatten()[both], found[both]
        scenes.append(scenes[-1] + int(_differ(first, second)))
    return scenes


def _differ(first: Tensor, second: Tensor) -> bool:
    """Whether grey values (N,) at the same places are of two scenes; of few places nothing is said."""
    if len(first) < 64 or float((first - second).abs().mean()) < _LITTLE:
        return False
    one, other = first - first.mean(), second - second.mean()
    return float((one * other).sum() / (one.norm() * other.norm()).clamp(min=1e-6)) < _ALIKE


def _rounded(matrix: Tensor) -> Tensor:
    """A matrix without its last digits, which another machine's sums would give differently.

    Shifts are kept to 1/32 pixel, which is about what estimates are good for; the rest to as much at 256 pixels.
    """
    step = torch.full((3, 3), 2.0**-16, dtype=torch.float64)
    step[:2, 2], step[2, :2] = 2.0**-5, 2.0**-24
    return torch.round(matrix / matrix[2, 2] / step) * step


def pyramid(grey: Tensor, seen: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Grey values and what is seen of them, from fine to coarse, each half as large."""
    levels = [(grey, seen)]
    while min(grey.shape[-2:]) >= 2 * _LEAST_SIDE:
        weight = F.avg_pool2d(seen, 2)
        grey = F.avg_pool2d(grey * seen, 2) / weight.clamp(min=1e-6)
        seen = (weight > 0.5).float()
        levels.append((grey, seen))
    return levels


def camera_motion(
    first: Sequence[tuple[Tensor, Tensor]], second: Sequence[tuple[Tensor, Tensor]], start: Tensor
) -> tuple[Tensor, float]:
    """Align two pyramids, coarse to fine: shifts first, then affine maps, then a plane's.

    Args:
        first: of :func:`pyramid`.
        second: the same.
        start: (3, 3), a guess on the finest level.

    Returns:
        The matrix and the robust mean of what differs; the latter is infinite if too little is seen.
    """
    depth = len(first) - 1
    shrink = torch.diag(torch.tensor([0.5**depth, 0.5**depth, 1.0], dtype=torch.float64))
    matrix = shrink @ start @ torch.linalg.inv(shrink)
    error = math.inf
    for level in range(depth, -1, -1):
        kind = "shift" if level == depth and depth > 1 else "affine" if level else "plane"
        matrix, error = _align(first[level], second[level], matrix, _FREE[kind])
        if level:
            double = torch.diag(torch.tensor([2.0, 2.0, 1.0], dtype=torch.float64))
            matrix = double @ matrix @ torch.linalg.inv(double)
    return matrix, error


def _best(
    first: Sequence[tuple[Tensor, Tensor]], second: Sequence[tuple[Tensor, Tensor]], starts: Sequence[Tensor]
) -> Tensor:
    results = [camera_motion(first, second, starts[0])]
    if not torch.equal(starts[1], starts[0]):
        results.append(camera_motion(first, second, starts[1]))
    matrix, error = min(results, key=lambda result: result[1])
    return matrix if math.isfinite(error) else torch.eye(3, dtype=torch.float64)


def _align(
    first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor], matrix: Tensor, free: int
) -> tuple[Tensor, float]:
    """Gauss and Newton on one level, with a gain and an offset of the brightness and weights that drop outliers."""
    (grey, seen), (other, other_seen) = first, second
    height, width = grey.shape[-2:]
    unit = 2.0 / max(height, width)  # places in about [-1, 1], or the steps are badly scaled
    normal = torch.tensor(
        [[unit, 0, -unit * (width - 1) / 2], [0, unit, -unit * (height - 1) / 2], [0, 0, 1]],
        dtype=torch.float64,
    )
    back = torch.linalg.inv(normal)
    current = normal @ matrix @ back
    current = current / current[2, 2]
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    index = (seen[0, 0] > 0).flatten()
    if int(index.sum()) < 32:
        return matrix, math.inf
    if (stride := int(index.sum()) // _MOST) > 1:  # a part of the pixels says as much
        index = index.nonzero()[:: stride | 1, 0]  # an odd step, which does not stay in some columns
    place = torch.stack([columns.flatten()[index], rows.flatten()[index]], 1).double()
    place = place * unit + normal[:2, 2]
    value = grey[0, 0].flatten()[index].double()
    pad = F.pad(other, (1, 1, 1, 1), mode="replicate")
    slope = (
        torch.cat([pad[..., 1:-1, 2:] - pad[..., 1:-1, :-2], pad[..., 2:, 1:-1] - pad[..., :-2, 1:-1]], 1) / 2
    )
    maps = torch.cat([other, slope / unit, other_seen], 1)
    gain, offset, error = 1.0, 0.0, math.inf
    for _ in range(_STEPS):
        x, y = place.unbind(1)
        top = torch.stack([x, y, torch.ones_like(x)], 1) @ current.T
        z = torch.where(top[:, 2].abs() < 1e-6, torch.full_like(x, 1e-6), top[:, 2])
        u, v = top[:, 0] / z, top[:, 1] / z
        found = sample_at(maps, (torch.stack([u, v], 1) - normal[:2, 2]) / unit).double()
        inside = found[3] > 0.99
        if int(inside.sum()) < 32:
            return matrix, math.inf
        warped, gx, gy = found[0], found[1], found[2]
        residual = gain * warped + offset - value
        spread = 1.4826 * residual[inside].abs().median().clamp(min=1e-3)
        weight = inside.double() / (1 + (residual / (2 * spread)) ** 2) ** 2
        error = float((weight * residual.abs()).sum() / weight.sum())
        jx, jy = gain * gx / z, gain * gy / z
        columns_of = [jx, jy]
        if free >= 6:
            columns_of += [jx * x, jx * y, jy * x, jy * y]
        if free == 8:
            both = -(jx * u + jy * v)
            columns_of += [both * x, both * y]
        jacobian = torch.stack([*columns_of, warped, torch.ones_like(warped)], 1)
        weighted = jacobian * weight[:, None]
        system = weighted.T @ jacobian
        system = system + torch.diag(1e-6 * system.diagonal().mean().clamp(min=1e-9).expand(len(system)))
        change = torch.linalg.solve(system, -(weighted.T @ residual))
        if not torch.isfinite(change).all():
            return matrix, math.inf
        step = torch.zeros(3, 3, dtype=torch.float64)
        step[0, 2], step[1, 2] = change[0], change[1]
        if free >= 6:
            step[0, 0], step[0, 1], step[1, 0], step[1, 1] = change[2:6]
        if free == 8:
            step[2, 0], step[2, 1] = change[6:8]
        current = current + step
        gain, offset = gain + float(change[-2]), offset + float(change[-1])
        if float(step.abs().max()) < 0.002 * unit:
            break
    result = back @ current @ normal
    return result / result[2, 2], error


def project(matrix: Tensor, places: Tensor) -> Tensor:
    """Places (N, 2) as (column, row) under a matrix (3, 3); float64. What lies behind the camera goes far away."""
    top = torch.cat([places, torch.ones_like(places[:, :1])], 1) @ matrix.T
    depth = top[:, 2:]
    return torch.where(depth > 1e-6, top[:, :2] / depth.clamp(min=1e-6), torch.full_like(top[:, :2], -1e6))


def sample_at(maps: Tensor, places: Tensor, mode: str = "bilinear") -> Tensor:
    """Values (C, N) of maps (1, C, H, W) at places (N, 2), (column, row) in pixels; zero outside."""
    height, width = maps.shape[-2:]
    size = places.new_tensor([max(width - 1, 1), max(height - 1, 1)])
    grid = (places / size * 2 - 1).to(maps.dtype)[None, None]
    return F.grid_sample(maps, grid, mode=mode, padding_mode="zeros", align_corners=True)[0, :, 0]
