"""A triangle mesh, and what is asked of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Mesh", "low_discrepancy"]

Array = NDArray[Any]


@dataclass(frozen=True)
class Mesh:
    """Vertices and triangles; counter-clockwise seen from outside.

    Attributes:
        vertices: (V, 3) float64.
        faces: (F, 3) int64.
        colours: (V, 3) uint8, or None.
    """

    vertices: Array
    faces: Array
    colours: Array | None = None

    @staticmethod
    def empty() -> Mesh:
        """No vertices, no faces."""
        return Mesh(np.zeros((0, 3)), np.zeros((0, 3), np.int64))

    @property
    def is_empty(self) -> bool:
        """Whether there is no face."""
        return len(self.faces) == 0

    @cached_property
    def crosses(self) -> Array:
        """(F, 3): normals of the faces, as long as twice their area."""
        a, b, c = (self.vertices[self.faces[:, i]] for i in range(3))
        return np.cross(b - a, c - a)

    @cached_property
    def areas(self) -> Array:
        """(F,)."""
        return np.linalg.norm(self.crosses, axis=1) / 2

    @property
    def volume(self) -> float:
        """The volume inside, where the mesh is closed; negative if its faces look inwards."""
        a, b, c = (self.vertices[self.faces[:, i]] for i in range(3))
        return float((a * np.cross(b, c)).sum() / 6)

    @cached_property
    def edges(self) -> tuple[Array, Array]:
        """Undirected edges (E, 2), and how many faces have each."""
        pairs = np.concatenate([self.faces[:, [0, 1]], self.faces[:, [1, 2]], self.faces[:, [2, 0]]])
        edges, counts = np.unique(np.sort(pairs, axis=1), axis=0, return_counts=True)
        return edges, counts

    @property
    def is_watertight(self) -> bool:
        """Whether every edge has exactly two faces."""
        return not self.is_empty and bool((self.edges[1] == 2).all())

    @property
    def is_manifold(self) -> bool:
        """Whether no edge has more than two faces."""
        return bool((self.edges[1] <= 2).all())

    @property
    def euler_number(self) -> int:
        """Vertices in use minus edges plus faces: 2 for each closed surface without handles."""
        return len(np.unique(self.faces)) - len(self.edges[0]) + len(self.faces)

    @cached_property
    def vertex_normals(self) -> Array:
        """(V, 3) of unit length, faces weighted by area; zero for vertices without one."""
        sums = np.zeros_like(self.vertices)
        for corner in range(3):
            np.add.at(sums, self.faces[:, corner], self.crosses)
        return sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-30)

    @property
    def bounds(self) -> Array:
        """(2, 3): least and greatest coordinates of the faces."""
        used = self.vertices[np.unique(self.faces)]
        return np.stack([used.min(0), used.max(0)])

    def moved(self, scale: float, shift: Array) -> Mesh:
        """The mesh with vertices ``v * scale + shift``."""
        return Mesh(self.vertices * scale + shift, self.faces, self.colours)

    def turned(self, rotation: Array) -> Mesh:
        """The mesh with vertices ``rotation @ v``."""
        return Mesh(self.vertices @ np.asarray(rotation, np.float64).T, self.faces, self.colours)

    def fitted(self, side: float = 1.9) -> Mesh:
        """Centred by its box, whose longest side becomes ``side``."""
        low, high = self.bounds
        scale = side / max(float((high - low).max()), 1e-30)
        return self.moved(scale, -(low + high) / 2 * scale)

    def painted(self, colours: Array) -> Mesh:
        """With colours (V, 3) uint8 for the vertices."""
        return replace(self, colours=np.asarray(colours, np.uint8))

    def sample(self, count: int, generator: np.random.Generator) -> tuple[Array, Array]:
        """Points (count, 3) spread evenly over the surface, and the normals of their faces.

        Raises:
            ValueError: the surface has no area.
        """
        total = self.areas.sum()
        if not total > 0:
            raise ValueError("this mesh has no area to sample from")
        # Stratified along the faces: fewer clumps than independent draws.
        places = (np.arange(count) + generator.random(count)) / count * total
        chosen = np.searchsorted(np.cumsum(self.areas), places).clip(max=len(self.faces) - 1)
        return self.at(chosen, *generator.random((2, count)))

    def at(self, faces: Array, u: Array, v: Array) -> tuple[Array, Array]:
        """Points of faces by two numbers in [0, 1] that are uniform for points that are; and their normals."""
        root = np.sqrt(u)[:, None]
        share = v[:, None]
        a, b, c = (self.vertices[self.faces[faces, i]] for i in range(3))
        points = (1 - root) * a + root * (1 - share) * b + root * share * c
        normals = self.crosses[faces] / np.maximum(2 * self.areas[faces, None], 1e-30)
        return points, normals

    def components(self) -> Array:
        """(F,): the number of the connected part that each face is of, the largest by faces first."""
        from scipy.sparse import coo_matrix
        from scipy.sparse.csgraph import connected_components

        edges = self.edges[0]
        graph = coo_matrix((np.ones(len(edges)), edges.T), shape=(len(self.vertices),) * 2)
        owner = connected_components(graph, directed=False)[1][self.faces[:, 0]]
        names, inverse, counts = np.unique(owner, return_inverse=True, return_counts=True)
        rank = np.empty(len(names), np.int64)
        rank[np.argsort(-counts, kind="stable")] = np.arange(len(names))
        return rank[inverse]

    def without_floaters(self, least: float = 0.01) -> Mesh:
        """Only the connected parts with at least this share of the faces."""
        if self.is_empty:
            return self
        owner = self.components()
        counts = np.bincount(owner)
        return self.keep(counts[owner] >= least * len(self.faces))

    def keep(self, faces: Array) -> Mesh:
        """Only some faces, and the vertices that they use."""
        kept = self.faces[faces]
        used, renumbered = np.unique(kept, return_inverse=True)
        colours = None if self.colours is None else self.colours[used]
        return Mesh(self.vertices[used], renumbered.reshape(-1, 3), colours)


def low_discrepancy(count: int) -> tuple[Array, Array]:
    """Two sequences (count,) in [0, 1) that fill the square evenly (the R2 sequence)."""
    steps = np.arange(count)
    golden = 1.32471795724474602596  # the root of x^3 = x + 1
    return (0.5 + steps / golden) % 1.0, (0.5 + steps / golden**2) % 1.0
