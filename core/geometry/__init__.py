"""Surfaces, points and signed distance fields: reading, repairing, sampling, meshing, writing and showing them.

NumPy and SciPy; reading and writing of mesh files is trimesh's, from the extra ``polydit[shape]``. Coordinates are
Y-up, as in glTF and ShapeNet.
"""

from __future__ import annotations

from .mesh import Mesh
from .surfaces import surface_of_field

__all__ = ["Mesh", "surface_of_field"]
