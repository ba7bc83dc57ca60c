"""From a field on a grid to the mesh of one of its level sets."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .mesh import Mesh

__all__ = ["grid_points", "surface_of_field"]


def grid_points(resolution: int, bound: float = 1.0) -> NDArray[Any]:
    """The (R + 1)^3 corners of a grid of R cells per axis over [-bound, bound]^3: ((R + 1)^3, 3), z fastest."""
    axis = np.linspace(-bound, bound, resolution + 1)
    return np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)


def surface_of_field(
    field: NDArray[Any], level: float = 0.0, bound: float = 1.0, closed: bool = True, released: bool = False
) -> Mesh:
    """Marching cubes (Lewiner's, without ambiguous cases) on a field that is greater inside.

    Args:
        field: (R + 1, R + 1, R + 1), at :func:`grid_points`; occupancy logits, or minus a signed distance.
        level: of the surface.
        bound: half the side of the box.
        closed: close what touches the box, so that the mesh is watertight.
        released: divide by R + 1 where R is right, as the released Direct3D and others do: shrinks and shifts the mesh.

    Returns:
        The mesh, empty where the field does not reach the level; its normals look outwards.
    """
    from skimage.measure import marching_cubes

    values = np.asarray(field, np.float32)
    if values.ndim != 3 or len(set(values.shape)) != 1:
        raise ValueError(f"a field of shape {values.shape}: give the same number of corners on three axes")
    resolution = values.shape[0] - 1
    offset = 0.0
    if closed:
        lowest = min(float(values.min()), level)
        values = np.pad(values, 1, constant_values=lowest - max(1.0, abs(lowest)))
        offset = 1.0
    if not (values.min() < level < values.max()):
        return Mesh.empty()
    # A corner exactly on the level would give faces without area, and holes where they are dropped.
    scale = max(float(np.abs(values - level).max()), 1e-30)
    values = np.where(np.abs(values - level) < 1e-5 * scale, np.float32(level + 1e-5 * scale), values)
    vertices, faces, _, _ = marching_cubes(values, level, method="lewiner", gradient_direction="ascent")
    cells = resolution + 1 if released else resolution
    places = (vertices.astype(np.float64) - offset).clip(0, resolution) / cells * (2 * bound) - bound
    return Mesh(places, faces.astype(np.int64))
