"""Points in voxels and back, in plain torch: average voxelisation and trilinear devoxelisation.

As DiT-3D (arXiv 2307.01831) uses them, after "Point-Voxel CNN" (arXiv 1907.03739).
"""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

__all__ = ["devoxelize", "voxel_coordinates", "voxelize"]


def voxel_coordinates(points: Tensor, resolution: int) -> Tensor:
    """Where points lie on the voxel grid that just holds their cloud.

    The cloud is centred at its mean and divided by twice its greatest distance from there.

    Args:
        points: (B, 3, N), any scale.
        resolution: voxels per axis, R.

    Returns:
        (B, 3, N) in [0, R - 1], fractional, without gradient; whole numbers are the centres of voxels.
    """
    points = points.detach().float()
    centred = points - points.mean(dim=2, keepdim=True)
    radius = centred.norm(dim=1, keepdim=True).amax(dim=2, keepdim=True)
    unit = centred / (2 * radius).clamp_min(torch.finfo(torch.float32).tiny) + 0.5
    return (unit * resolution).clamp(0, resolution - 1)


def voxelize(features: Tensor, coordinates: Tensor, resolution: int) -> Tensor:
    """The mean of the points' features in each voxel, zero where there is no point.

    Args:
        features: (B, C, N).
        coordinates: (B, 3, N) of :func:`voxel_coordinates`; rounded (half to even) they are the point's voxel.
        resolution: voxels per axis, R.

    Returns:
        (B, C, R, R, R), the axes in the order x, y, z.
    """
    batch, channels, _ = features.shape
    x, y, z = coordinates.round().long().unbind(1)
    place = (x * resolution + y) * resolution + z  # (B, N)
    volume = resolution**3
    values = features.float()
    sums = values.new_zeros(batch, channels, volume).scatter_add(
        2, place[:, None].expand(-1, channels, -1), values
    )
    counts = values.new_zeros(batch, volume).scatter_add(1, place, torch.ones_like(values[:, 0]))
    mean = sums / counts.clamp_min(1)[:, None]
    return mean.to(features.dtype).reshape(batch, channels, resolution, resolution, resolution)


def devoxelize(voxels: Tensor, coordinates: Tensor) -> Tensor:
    """Trilinear interpolation of a voxel grid at points; equal to ``grid_sample`` with ``align_corners=True``.

    Args:
        voxels: (B, C, R, R, R).
        coordinates: (B, 3, N) in [0, R - 1].

    Returns:
        (B, C, N).
    """
    channels, resolution = voxels.shape[1], voxels.shape[2]
    flat = voxels.flatten(2)
    low = coordinates.floor()
    share = coordinates - low
    near = low.long()
    far = (near + 1).clamp_max(resolution - 1)
    corners = (near, far)
    weights = (1 - share, share)
    result: Tensor | None = None
    for i, j, k in product((0, 1), repeat=3):
        place = (corners[i][:, 0] * resolution + corners[j][:, 1]) * resolution + corners[k][:, 2]
        weight = weights[i][:, 0] * weights[j][:, 1] * weights[k][:, 2]
        part = flat.gather(2, place[:, None].expand(-1, channels, -1)) * weight[:, None]
        result = part if result is None else result + part
    assert result is not None
    return result
