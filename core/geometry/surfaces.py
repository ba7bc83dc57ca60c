"""From a field on a grid to the mesh of one of its level sets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .mesh import Mesh

__all__ = ["grid_points", "query_cells", "surface_of_field", "surface_of_query"]


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
        released: divide by R + 1 where R is right, as the released Direct3D and others do: shrinks and shifts the mesh;
            and leave corners on the level where they are, so that the mesh is theirs vertex by vertex.

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
    if not released:
        values = _off_level(values, level, _nudge(values, level))
    vertices, faces, _, _ = marching_cubes(values, level, method="lewiner", gradient_direction="ascent")
    cells = resolution + 1 if released else resolution
    places = (vertices.astype(np.float64) - offset).clip(0, resolution) / cells * (2 * bound) - bound
    return Mesh(places, faces.astype(np.int64))


def query_cells(resolution: int, coarse: int = 64) -> int:
    """Cells per axis that :func:`surface_of_query` really takes: the resolution, or the next multiple that it can."""
    times = max(-(-resolution // coarse), 1)
    return -(-resolution // times) * times


def surface_of_query(
    query: Callable[[NDArray[Any]], NDArray[Any]],
    resolution: int,
    level: float = 0.0,
    bound: float = 1.0,
    coarse: int = 64,
    slab: int = 32,
) -> Mesh:
    """The surface of a function that is greater inside, without asking it everywhere or holding its whole grid.

    A coarse grid tells where the surface is; only there is the function asked at the corners of the fine grid, of which
    one slab is in memory at a time. What is thinner than a coarse cell and lies between its corners is not seen.

    Args:
        query: points (N, 3) to values (N,).
        resolution: cells per axis.
        level: of the surface.
        bound: half the side of the box.
        coarse: cells per axis of the coarse grid, at most; above it the fine grid is a multiple of one.
        slab: cells of the fine grid along x that are in memory at a time.

    Returns:
        A watertight mesh, or an empty one.
    """
    times = max(-(-resolution // coarse), 1)
    cells = query_cells(resolution, coarse) // times
    shape = (cells + 1,) * 3
    rough = np.asarray(query(grid_points(cells, bound)), np.float32).reshape(shape)
    if times == 1:
        return surface_of_field(rough, level, bound)
    fine = cells * times
    axis = np.linspace(-bound, bound, fine + 1)
    active = _active_cells(rough, level)
    nudge = _nudge(rough, level)  # the same for all slabs, or their edges would not meet
    vertices: list[NDArray[Any]] = []
    faces: list[NDArray[Any]] = []
    count = 0
    step = max(slab // times, 1)
    for start in range(0, cells, step):
        stop = min(start + step, cells)
        x = axis[start * times : stop * times + 1]
        # Where the surface is not, the nearest coarse corner says on which side.
        corner = [np.rint(np.arange(start * times, stop * times + 1) / times).astype(int)] + [
            np.rint(np.arange(fine + 1) / times).astype(int)
        ] * 2
        values = rough[np.ix_(*corner)].copy()
        wanted = _fine_corners(active, start, stop, times)
        if wanted.any():
            i, j, k = np.nonzero(wanted)
            values[i, j, k] = query(np.stack([x[i], axis[j], axis[k]], 1))
        part = _slab_surface(values, level, nudge, first=start == 0, last=stop == cells)
        if part is None:
            continue
        places, triangles = part
        places[:, 0] += start * times
        vertices.append(places.clip(0, fine) / fine * (2 * bound) - bound)
        faces.append(triangles + count)
        count += len(places)
    if not vertices:
        return Mesh.empty()
    return _welded(np.concatenate(vertices), np.concatenate(faces), 2 * bound / fine)


def _nudge(values: NDArray[Any], level: float) -> float:
    return 1e-5 * max(float(np.abs(values - level).max()), 1e-30)


def _off_level(values: NDArray[Any], level: float, nudge: float) -> NDArray[Any]:
    """Corners exactly on the level moved: they would give faces without area, and holes where those are dropped."""
    return np.where(np.abs(values - level) < nudge, np.float32(level + nudge), values)


def _active_cells(rough: NDArray[Any], level: float) -> NDArray[Any]:
    """Coarse cells that the surface may pass: corners on both sides, and all their neighbours."""
    from scipy.ndimage import binary_dilation

    inside = rough > level
    some = np.zeros(tuple(n - 1 for n in rough.shape), bool)
    every = np.ones_like(some)
    for i, j, k in np.ndindex(2, 2, 2):
        part = inside[i : i + some.shape[0], j : j + some.shape[1], k : k + some.shape[2]]
        some |= part
        every &= part
    return binary_dilation(some & ~every, np.ones((3, 3, 3)))


def _fine_corners(active: NDArray[Any], start: int, stop: int, times: int) -> NDArray[Any]:
    """Corners of the fine grid, in a slab of coarse cells, that belong to an active cell (also of the next slab)."""
    low, high = max(start - 1, 0), min(stop + 1, len(active))
    dense = active[low:high].repeat(times, 0).repeat(times, 1).repeat(times, 2)
    corners = np.zeros(tuple(n + 1 for n in dense.shape), bool)
    for i, j, k in np.ndindex(2, 2, 2):
        corners[i : i + dense.shape[0], j : j + dense.shape[1], k : k + dense.shape[2]] |= dense
    first = (start - low) * times
    return corners[first : first + (stop - start) * times + 1]


def _slab_surface(
    values: NDArray[Any], level: float, nudge: float, first: bool, last: bool
) -> tuple[NDArray[Any], NDArray[Any]] | None:
    """Vertices in cells of the slab, and faces; the box is closed at its own ends but not between slabs."""
    from skimage.measure import marching_cubes

    sides = ((int(first), int(last)), (1, 1), (1, 1))
    padded = np.pad(_off_level(values, level, nudge), sides, constant_values=level - 1e5 * nudge)
    if not padded.min() < level < padded.max():
        return None
    vertices, faces, _, _ = marching_cubes(padded, level, method="lewiner", gradient_direction="ascent")
    return vertices.astype(np.float64) - [int(first), 1, 1], faces.astype(np.int64)


def _welded(vertices: NDArray[Any], faces: NDArray[Any], cell: float) -> Mesh:
    """Vertices in the same place become one, and faces that lose their area go."""
    keys = np.round(vertices / cell * 1e4).astype(np.int64)
    _, chosen, inverse = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    faces = inverse.reshape(-1)[faces]
    proper = (faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 2] != faces[:, 0])
    return Mesh(vertices[chosen], faces[proper])
