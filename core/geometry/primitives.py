"""Solids with exactly known distances and surfaces: balls, frustums, extrusions, and unions of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .mesh import Mesh
from .surfaces import grid_points, surface_of_field

__all__ = ["Ball", "Extrusion", "Frustum", "Part", "Placed", "Union", "box", "rotation"]

Array = NDArray[Any]


class Part(Protocol):
    """A solid around the origin."""

    def distance(self, points: Array) -> Array:
        """Exact signed distances (N,) at points (N, 3), negative inside."""

    def area(self) -> float:
        """Of its surface."""

    def reach(self) -> float:
        """The radius of a ball around the origin that holds it."""

    def sample(self, count: int, generator: np.random.Generator) -> tuple[Array, Array]:
        """Points (count, 3) spread evenly over its surface, and the normals there."""


@dataclass(frozen=True)
class Ball:
    """All within ``radius``."""

    radius: float

    def distance(self, points: Array) -> Array:  # noqa: D102
        return np.linalg.norm(points, axis=1) - self.radius

    def area(self) -> float:  # noqa: D102
        return 4 * np.pi * self.radius**2

    def reach(self) -> float:  # noqa: D102
        return self.radius

    def sample(self, count: int, generator: np.random.Generator) -> tuple[Array, Array]:  # noqa: D102
        normals = generator.normal(size=(count, 3))
        normals /= np.linalg.norm(normals, axis=1, keepdims=True)
        return normals * self.radius, normals


@dataclass(frozen=True)
class Frustum:
    """A cone along y without its tip: radius ``lower`` at -half, ``upper`` at half; equal radii are a cylinder."""

    lower: float
    upper: float
    half: float

    def distance(self, points: Array) -> Array:  # noqa: D102
        q = np.stack([np.hypot(points[:, 0], points[:, 2]), points[:, 1]], 1)
        # The half profile is a convex polygon in the plane of radius and height; its side on the axis has no surface.
        profile = np.array(
            [[0, -self.half], [self.lower, -self.half], [self.upper, self.half], [0, self.half]]
        )
        return _polygon_distance(profile, q, (False, False, False, True))

    def _sides(self) -> tuple[float, float, float]:
        slant = np.hypot(2 * self.half, self.lower - self.upper)
        return np.pi * (self.lower + self.upper) * slant, np.pi * self.lower**2, np.pi * self.upper**2

    def area(self) -> float:  # noqa: D102
        return float(sum(self._sides()))

    def reach(self) -> float:  # noqa: D102
        return float(np.hypot(max(self.lower, self.upper), self.half))

    def sample(self, count: int, generator: np.random.Generator) -> tuple[Array, Array]:  # noqa: D102
        areas = np.array(self._sides())
        which = generator.choice(3, count, p=areas / areas.sum())
        angle = generator.random(count) * 2 * np.pi
        u = generator.random(count)
        # On the side the radius is drawn in proportion to itself.
        low2, high2 = self.lower**2, self.upper**2
        if abs(self.lower - self.upper) < 1e-9 * max(self.lower, self.upper):
            along, radius = u, np.full(count, self.lower)
        else:
            radius = np.sqrt(low2 + u * (high2 - low2))
            along = (radius - self.lower) / (self.upper - self.lower)
        y = np.where(
            which == 0, along * 2 * self.half - self.half, np.where(which == 1, -self.half, self.half)
        )
        radius = np.where(which == 0, radius, np.sqrt(u) * np.where(which == 1, self.lower, self.upper))
        c, s = np.cos(angle), np.sin(angle)
        slope = np.array([2 * self.half, self.lower - self.upper])
        slope = slope / np.linalg.norm(slope)
        side = np.stack([c * slope[0], np.full(count, slope[1]), s * slope[0]], 1)
        cap = np.stack([np.zeros(count), np.where(which == 1, -1.0, 1.0), np.zeros(count)], 1)
        points = np.stack([radius * c, y, radius * s], 1)
        return points, np.where((which == 0)[:, None], side, cap)


@dataclass(frozen=True)
class Extrusion:
    """A convex polygon in the plane of x and z, counter-clockwise seen with x to the right and z up, over y.

    Attributes:
        polygon: (K, 2) corners (x, z).
        half: half its thickness along y.
    """

    polygon: Array
    half: float

    def distance(self, points: Array) -> Array:  # noqa: D102
        flat = _polygon_distance(self.polygon, points[:, [0, 2]])
        tall = np.abs(points[:, 1]) - self.half
        beyond = np.hypot(flat.clip(0), tall.clip(0))
        return beyond + np.maximum(flat, tall).clip(max=0)

    def _faces(self) -> tuple[float, Array]:
        following = np.roll(self.polygon, -1, axis=0)
        cap = abs(_cross(self.polygon, following).sum()) / 2
        return cap, np.linalg.norm(following - self.polygon, axis=1) * 2 * self.half

    def area(self) -> float:  # noqa: D102
        cap, sides = self._faces()
        return float(2 * cap + sides.sum())

    def reach(self) -> float:  # noqa: D102
        return float(np.hypot(np.linalg.norm(self.polygon, axis=1).max(), self.half))

    def sample(self, count: int, generator: np.random.Generator) -> tuple[Array, Array]:  # noqa: D102
        cap, sides = self._faces()
        areas = np.array([cap, cap, *sides])
        which = generator.choice(len(areas), count, p=areas / areas.sum())
        u, v = generator.random((2, count))
        # The caps, as a fan of triangles.
        first, second = self.polygon[1:-1] - self.polygon[0], self.polygon[2:] - self.polygon[0]
        fan = np.abs(_cross(first, second))
        triangle = generator.choice(len(fan), count, p=fan / fan.sum())
        root = np.sqrt(u)[:, None]
        flat = self.polygon[0] + root * ((1 - v)[:, None] * first[triangle] + v[:, None] * second[triangle])
        top = np.where(which == 0, -1.0, 1.0)
        points = np.stack([flat[:, 0], top * self.half, flat[:, 1]], 1)
        normals = np.stack([np.zeros(count), top, np.zeros(count)], 1)
        # The sides.
        side = which >= 2
        edge = which[side] - 2
        start = self.polygon[edge]
        along = np.roll(self.polygon, -1, axis=0)[edge] - start
        place = start + u[side, None] * along
        points[side] = np.stack([place[:, 0], (2 * v[side] - 1) * self.half, place[:, 1]], 1)
        outward = np.stack([along[:, 1], -along[:, 0]], 1)
        outward /= np.linalg.norm(outward, axis=1, keepdims=True)
        normals[side] = np.stack([outward[:, 0], np.zeros(len(outward)), outward[:, 1]], 1)
        return points, normals


def box(width: float, height: float, depth: float) -> Extrusion:
    """A box of these sides along x, y and z."""
    x, z = width / 2, depth / 2
    return Extrusion(np.array([[-x, -z], [x, -z], [x, z], [-x, z]]), height / 2)


@dataclass(frozen=True)
class Placed:
    """A part somewhere: ``turn @ p + centre``."""

    part: Part
    centre: Array
    turn: Array = field(default_factory=lambda: np.eye(3))

    def distance(self, points: Array) -> Array:
        """Signed distances (N,)."""
        return self.part.distance((points - self.centre) @ self.turn)

    def sample(self, count: int, generator: np.random.Generator) -> tuple[Array, Array]:
        """Points and normals, each (count, 3)."""
        points, normals = self.part.sample(count, generator)
        return points @ self.turn.T + self.centre, normals @ self.turn.T


@dataclass(frozen=True)
class Union:
    """All that is in some part. Outside, its distance is exact; inside its sign is, and the distance a lower bound."""

    parts: Sequence[Placed]
    scale: float = 1.0
    shift: Array = field(default_factory=lambda: np.zeros(3))

    def distance(self, points: Array) -> Array:
        """Signed distances (N,) at points (N, 3)."""
        own = (np.asarray(points, np.float64) - self.shift) / self.scale
        best = np.full(len(own), np.inf)
        for part in self.parts:
            # No part is nearer than the ball around it, so most points ask few parts.
            ask = np.linalg.norm(own - part.centre, axis=1) - part.part.reach() < best
            best[ask] = np.minimum(best[ask], part.distance(own[ask]))
        return best * self.scale

    def contains(self, points: Array) -> Array:
        """Boolean (N,)."""
        return self.distance(points) < 0

    def sample(self, count: int, generator: np.random.Generator) -> tuple[Array, Array]:
        """Points (count, 3) spread evenly over the surface, exactly on it, and the normals there."""
        areas = np.array([part.part.area() for part in self.parts])
        points: list[Array] = []
        normals: list[Array] = []
        found = 0
        while found < count:
            drawn = generator.multinomial(count, areas / areas.sum())
            batch = [part.sample(n, generator) for part, n in zip(self.parts, drawn, strict=True)]
            for index, (p, n) in enumerate(batch):
                hidden = np.zeros(len(p), bool)
                for other, part in enumerate(self.parts):
                    near = np.linalg.norm(p - part.centre, axis=1) <= part.part.reach() + 1e-9
                    if other != index and near.any():
                        # Of two faces in one plane the earlier part's counts.
                        hidden[near] |= part.distance(p[near]) < (1e-9 if other < index else -1e-9)
                points.append(p[~hidden])
                normals.append(n[~hidden])
                found += int((~hidden).sum())
        order = generator.permutation(found)[:count]
        return np.concatenate(points)[order] * self.scale + self.shift, np.concatenate(normals)[order]

    def fitted(self, side: float = 1.9) -> Union:
        """Centred by its box, whose longest side becomes ``side``."""
        points, _ = self.sample(2000, np.random.default_rng(0))
        low, high = points.min(0), points.max(0)
        scale = side / float((high - low).max())
        return Union(self.parts, self.scale * scale, self.shift * scale - (low + high) / 2 * scale)

    def mesh(self, resolution: int = 96) -> Mesh:
        """Its surface on a grid over [-1, 1]^3 of at least so many cells; asked only where the surface can be."""
        block = 4
        cells = -(-resolution // block)
        fine = cells * block
        side = 2 / cells
        middles = (grid_points(cells - 1, 1 - side / 2) if cells > 1 else np.zeros((1, 3))).reshape(
            (cells,) * 3 + (3,)
        )
        coarse = self.distance(middles.reshape(-1, 3)).reshape((cells,) * 3)
        # A block whose middle is farther from the surface than its corners are from the middle has none of it. Inside,
        # a distance is a lower bound, so that this errs towards asking.
        near = np.abs(coarse) <= side / 2 * np.sqrt(3)
        wanted = np.zeros((fine + 1,) * 3, bool)
        dense = near.repeat(block, 0).repeat(block, 1).repeat(block, 2)
        for i, j, k in np.ndindex(2, 2, 2):
            wanted[i : i + fine, j : j + fine, k : k + fine] |= dense
        owner = np.minimum(np.arange(fine + 1) // block, cells - 1)
        values = coarse[np.ix_(owner, owner, owner)]
        places = np.linspace(-1, 1, fine + 1)
        chosen = np.nonzero(wanted)
        values[chosen] = self.distance(np.stack([places[index] for index in chosen], 1))
        return surface_of_field(-values)


def rotation(x: float = 0.0, y: float = 0.0, z: float = 0.0) -> Array:
    """(3, 3): turn by degrees about x, then y, then z."""
    result = np.eye(3)
    for axis, degrees in enumerate((x, y, z)):
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        i, j = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[[i, i, j, j], [i, j, i, j]] = c, -s, s, c
        result = turn @ result
    return result


def _cross(a: Array, b: Array) -> Array:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def _polygon_distance(corners: Array, points: Array, inner: Sequence[bool] | None = None) -> Array:
    """Signed distances (N,) to a convex polygon (K, 2), counter-clockwise; edges marked ``inner`` bound nothing."""
    best = np.full(len(points), np.inf)
    inside = np.ones(len(points), bool)
    for index, start in enumerate(corners):
        if inner is not None and inner[index]:
            continue
        along = corners[(index + 1) % len(corners)] - start
        to = points - start
        share = (to @ along / max(float(along @ along), 1e-30)).clip(0, 1)
        best = np.minimum(best, ((to - share[:, None] * along) ** 2).sum(1))
        inside &= _cross(along, to) >= 0
    return np.sqrt(best) * np.where(inside, -1, 1)
