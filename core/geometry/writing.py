"""Meshes and clouds as the bytes of a file."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import PolyditError
from .mesh import Mesh
from .reading import need_trimesh

__all__ = ["MESH_FORMATS", "height_colours", "mesh_bytes", "points_bytes"]

MESH_FORMATS = ("glb", "obj", "ply", "stl")
LOW, MIDDLE, HIGH = (np.array(c, np.float64) for c in ((59, 76, 192), (221, 221, 221), (180, 4, 38)))


def mesh_bytes(mesh: Mesh, kind: str) -> bytes:
    """A mesh with normals, and with its colours where the format has them.

    Args:
        mesh: not empty.
        kind: of :data:`MESH_FORMATS`. STL, of printers, is turned to stand along z.

    Raises:
        PolyditError: the format is unknown, or there is no face.
    """
    if kind not in MESH_FORMATS:
        raise PolyditError(f"mesh format {kind!r}: choose one of {', '.join(MESH_FORMATS)}")
    if mesh.is_empty:
        raise PolyditError("there is no surface to write; lower the level, or take another seed")
    trimesh = need_trimesh()
    vertices = mesh.vertices
    if kind == "stl":
        vertices = vertices @ np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])
    whole = trimesh.Trimesh(
        vertices,
        mesh.faces,
        vertex_normals=None if kind == "stl" else mesh.vertex_normals,
        vertex_colors=mesh.colours,
        process=False,
    )
    if kind == "stl":
        content: Any = whole.export(file_type="stl")
    elif kind == "glb":
        content = whole.export(file_type="glb", include_normals=True)
    elif kind == "obj":
        content = whole.export(file_type="obj", include_normals=True, include_color=mesh.colours is not None)
    else:
        content = whole.export(file_type="ply", vertex_normal=True)
    return content if isinstance(content, bytes) else content.encode()


def points_bytes(points: NDArray[Any], colours: NDArray[Any] | None = None) -> bytes:
    """A cloud (N, 3) as a binary PLY file, coloured by height unless colours (N, 3) uint8 are given."""
    if points.ndim != 2 or points.shape[1] != 3:
        raise ValueError(f"a cloud of shape {points.shape}: give (N, 3)")
    colours = height_colours(points) if colours is None else np.asarray(colours, np.uint8)
    rows = np.empty(
        len(points),
        dtype=[(axis, "<f4") for axis in "xyz"] + [(c, "u1") for c in ("red", "green", "blue")],
    )
    for index, axis in enumerate("xyz"):
        rows[axis] = points[:, index]
    for index, name in enumerate(("red", "green", "blue")):
        rows[name] = colours[:, index]
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {len(points)}"]
    lines += [f"property float {axis}" for axis in "xyz"]
    lines += [f"property uchar {name}" for name in ("red", "green", "blue")]
    return ("\n".join([*lines, "end_header"]) + "\n").encode() + rows.tobytes()


def height_colours(points: NDArray[Any]) -> NDArray[np.uint8]:
    """Colours (N, 3) of points (N, 3) by their height y: blue below, red above."""
    y = points[:, 1].astype(np.float64)
    share = ((y - y.min()) / max(float(np.ptp(y)), 1e-12))[:, None]
    below, above = (1 - 2 * share).clip(0, 1), (2 * share - 1).clip(0, 1)
    return np.rint(LOW * below + HIGH * above + MIDDLE * (1 - below - above)).astype(np.uint8)
