"""Mesh files of any format that trimesh reads, repaired or refused with the reason."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..errors import PolyditError
from .mesh import Mesh

__all__ = ["MAX_FACES", "MESH_SUFFIXES", "SIDE", "ReadMesh", "Up", "need_trimesh", "read_mesh", "repaired"]

MESH_SUFFIXES = (".glb", ".gltf", ".obj", ".off", ".ply", ".stl", ".3mf")
MAX_FACES = 2_000_000
MAX_BYTES = 400_000_000
Up = Literal["auto", "y", "z"]
Z_UP = (".stl", ".3mf")
"""Formats of printing, whose files stand along z as a rule."""
SIDE = 1.9
"""The longest side of a fitted mesh."""
SAME_SIDE = 0.01
"""By how much of it a file's may differ without that being told."""
FROM_Z = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])


@dataclass(frozen=True)
class ReadMesh:
    """A mesh, and what was done to it.

    Attributes:
        mesh: repaired; centred, its longest side 1.9, where that was asked for.
        notes: what was repaired, scaled or turned, a line each.
    """

    mesh: Mesh
    notes: tuple[str, ...] = field(default=())


def need_trimesh() -> Any:
    """The module trimesh.

    Raises:
        PolyditError: it is not installed.
    """
    try:
        import trimesh
    except ImportError as error:
        raise PolyditError(
            "trimesh: not installed, and mesh files need it; pip install polydit[shape]"
        ) from error
    logging.getLogger("trimesh").setLevel(logging.ERROR)
    return trimesh


def read_mesh(path: str | Path, up: Up = "auto", fit: bool = True, max_faces: int = MAX_FACES) -> ReadMesh:
    """Read a mesh; the parts of a scene become one.

    Args:
        path: GLB, glTF, OBJ, OFF, PLY, STL or 3MF.
        up: the file's upward axis; ``"auto"`` takes z for STL and 3MF and y for all others.
        fit: centre it, and scale its longest side to 1.9.
        max_faces: refuse more.

    Raises:
        PolyditError: no such file, no mesh, nothing in it, too many faces, or nothing solid is left after repair.
    """
    trimesh, path = need_trimesh(), Path(path)
    if not path.is_file():
        raise PolyditError(f"{path}: no such file")
    suffix = path.suffix.lower()
    if suffix not in MESH_SUFFIXES:
        raise PolyditError(f"{path}: not a mesh that can be read; give one of {', '.join(MESH_SUFFIXES)}")
    if path.stat().st_size == 0:
        raise PolyditError(f"{path}: an empty file; export the mesh again")
    if path.stat().st_size > MAX_BYTES or (suffix == ".stl" and _stl_faces(path) > max_faces):
        raise PolyditError(f"{path}: more than {max_faces:,} faces; reduce it in a mesh editor first")
    try:
        loaded = trimesh.load_scene(path, process=False, skip_materials=True)
        whole = loaded.to_geometry() if loaded.geometry else None
    except Exception as error:  # trimesh's readers raise whatever their parsers meet
        line = " ".join(str(error).split())[:120]
        raise PolyditError(
            f"{path}: cannot be read as a mesh ({type(error).__name__}: {line}); export it again"
        ) from error
    if whole is None or not isinstance(whole, trimesh.Trimesh) or len(whole.faces) == 0:
        raise PolyditError(f"{path}: holds no faces; a mesh is needed, not points or curves")
    if len(whole.faces) > max_faces:
        raise PolyditError(
            f"{path}: {len(whole.faces):,} faces, at most {max_faces:,} are read; reduce it in a mesh editor first"
        )
    mesh, notes = repaired(
        Mesh(np.asarray(whole.vertices, np.float64), np.asarray(whole.faces, np.int64)), path
    )
    if up == "z" or (up == "auto" and suffix in Z_UP):
        mesh = mesh.turned(FROM_Z)
        notes.append(
            "turned: z was up, y is now"
            + (f" ({suffix[1:].upper()} files mostly are)" if up == "auto" else "")
        )
    if fit:
        side = float((mesh.bounds[1] - mesh.bounds[0]).max())
        mesh = mesh.fitted(SIDE)
        if abs(side / SIDE - 1) > SAME_SIDE:
            notes.append(f"scaled: its longest side was {side:.4g} units, it is {SIDE:g} now")
    return ReadMesh(mesh, tuple(notes))


def repaired(mesh: Mesh, name: str | Path = "mesh") -> tuple[Mesh, list[str]]:
    """Without what is not finite, double or degenerate; closed parts face outwards.

    Args:
        mesh: as it was read.
        name: of the file, for messages.

    Returns:
        The mesh, and a line for each thing that was done.

    Raises:
        PolyditError: too little is left.
    """
    notes = []
    finite: Any = np.isfinite(mesh.vertices).all(axis=1)
    known: Any = ((mesh.faces >= 0) & (mesh.faces < len(mesh.vertices))).all(1)
    good: Any = known & finite[np.where(known[:, None], mesh.faces, 0)].all(axis=1)
    if not good.all():
        notes.append(f"removed {int((~good).sum())} faces with vertices that are missing or not finite")
    if not good.any():
        raise PolyditError(f"{name}: all its vertices are NaN or infinite; export the mesh again")
    mesh = mesh.keep(good)
    extent = float((mesh.bounds[1] - mesh.bounds[0]).max())
    if extent == 0:
        raise PolyditError(f"{name}: all its vertices are in one place; export the mesh again")
    places = np.round(mesh.vertices / extent * 1e6).astype(np.int64)
    _, first, inverse = np.unique(places, axis=0, return_index=True, return_inverse=True)
    faces = inverse.reshape(-1)[mesh.faces]
    proper = (faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 2] != faces[:, 0])
    _, single = np.unique(np.sort(faces, axis=1), axis=0, return_index=True)
    unique = np.zeros(len(faces), bool)
    unique[single] = True
    kept = proper & unique
    if not kept.all():
        notes.append(f"removed {int((~kept).sum())} double or degenerate faces")
    mesh = Mesh(mesh.vertices[first], faces[kept])
    mesh = mesh.keep(mesh.areas > 1e-14 * extent**2) if len(mesh.faces) else mesh
    if len(mesh.faces) < 4:
        raise PolyditError(
            f"{name}: {len(mesh.faces)} usable face{'s' * (len(mesh.faces) != 1)}; a solid has at least four"
        )
    if not mesh.is_manifold:
        notes.append(
            "not manifold: some edges have more than two faces; what it encloses is taken as its inside"
        )
    elif not mesh.is_watertight:
        notes.append("not watertight: it has holes or open sheets; what it encloses is taken as its inside")
    elif mesh.volume < 0:
        mesh = Mesh(mesh.vertices, mesh.faces[:, ::-1].copy())
        notes.append("turned inside out: its faces looked inwards")
    return mesh, notes


def _stl_faces(path: Path) -> int:
    """The number of faces of a binary STL by its header, 0 for a textual one."""
    with path.open("rb") as file:
        header = file.read(84)
    if len(header) < 84 or header[:5].lower() == b"solid":
        return 0
    return int.from_bytes(header[80:84], "little")
