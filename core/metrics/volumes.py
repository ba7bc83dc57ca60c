"""How well a reconstructed solid matches the true one: volume IoU and normal consistency."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.spatial import cKDTree

__all__ = ["normal_consistency", "volume_iou"]


def volume_iou(a: ArrayLike, b: ArrayLike) -> float:
    """Intersection over union of two solids, told by whether the same uniform points lie inside.

    Args:
        a: boolean (N,), 50,000 points or more.
        b: boolean (N,).

    Returns:
        In [0, 1]; 1 where both are empty.
    """
    first, second = np.asarray(a, bool), np.asarray(b, bool)
    if first.shape != second.shape:
        raise ValueError(
            f"occupancies of shapes {first.shape} and {second.shape}: ask both at the same points"
        )
    either = int((first | second).sum())
    return 1.0 if either == 0 else float((first & second).sum() / either)


def normal_consistency(
    points_a: ArrayLike, normals_a: ArrayLike, points_b: ArrayLike, normals_b: ArrayLike
) -> float:
    """Mean absolute cosine between the normals of nearest points, of both directions.

    Args:
        points_a: (N, 3) on one surface.
        normals_a: (N, 3), of unit length.
        points_b: (M, 3) on the other.
        normals_b: (M, 3).
    """
    points = [np.asarray(p, np.float64) for p in (points_a, points_b)]
    normals: list[Any] = [np.asarray(n, np.float64) for n in (normals_a, normals_b)]
    means = []
    for own, other in ((0, 1), (1, 0)):
        nearest = cKDTree(points[other]).query(points[own])[1]
        means.append(np.abs((normals[own] * normals[other][nearest]).sum(1)).mean())
    return float(np.mean(means))
