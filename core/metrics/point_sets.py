"""Distances between point clouds, and how well a set of generated clouds matches a set of references.

The protocol is that of PointFlow (arXiv 1906.12320), which DiT-3D follows: Chamfer distance and earth mover's distance,
MMD, COV, 1-NNA, JSD. Over the whole set by default; the released DiT-3D evaluation averages over batches of 64 shapes,
which is another number (``per_batch``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist

from ..errors import PolyditError

__all__ = [
    "GenerationScores",
    "NearestNeighbour",
    "chamfer_distance",
    "coverage",
    "distance_matrix",
    "earth_mover_distance",
    "f_score",
    "generation_scores",
    "jensen_shannon_divergence",
    "minimum_matching_distance",
    "nearest_neighbour_accuracy",
    "nearest_squared",
]

Distance = Literal["cd", "emd"]
Cost = Literal["l2", "l2sq"]
Array = NDArray[Any]


def nearest_squared(a: ArrayLike, b: ArrayLike) -> tuple[Array, Array]:
    """Squared distance of each point of ``a`` (N, 3) to the nearest of ``b`` (M, 3), and the other way round."""
    first, second = _cloud(a), _cloud(b)
    return cKDTree(second).query(first)[0] ** 2, cKDTree(first).query(second)[0] ** 2


def chamfer_distance(a: ArrayLike, b: ArrayLike) -> float:
    """Mean of the squared nearest distances, both directions added (no half, no root)."""
    there, back = nearest_squared(a, b)
    return float(there.mean() + back.mean())


def earth_mover_distance(a: ArrayLike, b: ArrayLike, cost: Cost = "l2") -> float:
    """Mean cost of the exact optimal assignment of two clouds with equally many points.

    Args:
        a: (N, 3).
        b: (N, 3).
        cost: ``"l2"``, the distance of two points: the earth mover's distance. ``"l2sq"``, its square: the scale of the
            approximation that published tables were computed with.

    Raises:
        ValueError: the clouds have different numbers of points, or the cost is unknown.
    """
    first, second = _cloud(a), _cloud(b)
    if len(first) != len(second):
        raise ValueError(
            f"{len(first)} and {len(second)} points: an assignment needs equally many; draw a subset"
        )
    if cost not in ("l2", "l2sq"):
        raise ValueError(f"cost {cost!r}: choose 'l2' or 'l2sq'")
    costs = cdist(first, second, "euclidean" if cost == "l2" else "sqeuclidean")
    return float(costs[linear_sum_assignment(costs)].mean())


def f_score(a: ArrayLike, b: ArrayLike, threshold: float = 0.001) -> float:
    """Harmonic mean of the shares of points that have a neighbour in the other cloud.

    Args:
        a: (N, 3).
        b: (M, 3).
        threshold: of the *squared* distance, as in the released code; 0.001 is a length of 0.0316.
    """
    near_a, near_b = (float((d < threshold).mean()) for d in nearest_squared(a, b))
    return 0.0 if near_a + near_b == 0 else 2 * near_a * near_b / (near_a + near_b)


def distance_matrix(
    rows: Sequence[ArrayLike],
    columns: Sequence[ArrayLike] | None = None,
    distance: Distance = "cd",
    cost: Cost = "l2",
) -> Array:
    """Distances (R, C) between two lists of clouds, or within one list, where each pair is computed once.

    Raises:
        PolyditError: the distance is unknown.
    """
    if distance not in ("cd", "emd"):
        raise PolyditError(f"distance {distance!r}: is unknown; give cd (Chamfer) or emd (earth mover's)")
    own = columns is None
    first = [_cloud(cloud) for cloud in rows]
    second = first if columns is None else [_cloud(cloud) for cloud in columns]
    trees = [cKDTree(c) for c in first] if distance == "cd" else []
    other = trees if own else [cKDTree(c) for c in second] if distance == "cd" else []
    result = np.zeros((len(first), len(second)))
    for i, a in enumerate(first):
        for j in range(i + 1 if own else 0, len(second)):
            if distance == "cd":
                there, back = other[j].query(a)[0], trees[i].query(second[j])[0]
                result[i, j] = (there**2).mean() + (back**2).mean()
            else:
                result[i, j] = earth_mover_distance(a, second[j], cost)
    return result + result.T if own else result


def minimum_matching_distance(between: ArrayLike) -> float:
    """MMD: the mean over references (rows) of the distance to the nearest sample (columns); lower is better."""
    return float(np.asarray(between).min(axis=1).mean())


def coverage(between: ArrayLike) -> float:
    """COV: the share of references (rows) that are the nearest one of some sample (column); higher is better."""
    matrix = np.asarray(between)
    return len(np.unique(matrix.argmin(axis=0))) / matrix.shape[0]


@dataclass(frozen=True)
class NearestNeighbour:
    """What a leave-one-out nearest-neighbour classifier gets right; 0.5 is ideal, 1 is two sets that are apart.

    Attributes:
        accuracy: 1-NNA.
        of_references: the share of references that it calls references.
        of_samples: the share of samples that it calls samples.
    """

    accuracy: float
    of_references: float
    of_samples: float


def nearest_neighbour_accuracy(
    references: ArrayLike, between: ArrayLike, samples: ArrayLike, neighbours: int = 1
) -> NearestNeighbour:
    """1-NNA from three matrices of distances; only the diagonal is left out, so duplicates count.

    Args:
        references: within the references (R, R).
        between: references in rows, samples in columns (R, S).
        samples: within the samples (S, S).
        neighbours: how many vote; a draw is for the references.
    """
    rr, rs, ss = (np.asarray(m, dtype=np.float64) for m in (references, between, samples))
    matrix = np.block([[rr, rs], [rs.T, ss]])
    np.fill_diagonal(matrix, np.inf)
    is_reference = np.arange(len(matrix)) < len(rr)
    nearest = np.argsort(matrix, axis=0, kind="stable")[:neighbours]
    called = is_reference[nearest].sum(axis=0) >= neighbours / 2
    right = called == is_reference
    return NearestNeighbour(
        float(right.mean()), float(right[is_reference].mean()), float(right[~is_reference].mean())
    )


@cache
def _sphere_cells(resolution: int) -> tuple[Any, int]:
    axis = np.linspace(-0.5, 0.5, resolution)
    cells = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    cells = cells[np.linalg.norm(cells, axis=1) <= 0.5]
    return cKDTree(cells), len(cells)


def jensen_shannon_divergence(
    samples: Sequence[ArrayLike], references: Sequence[ArrayLike], resolution: int = 28
) -> float:
    """JSD (base 2) between where the points of two sets of clouds lie.

    Args:
        samples: clouds in [-0.5, 0.5]^3.
        references: likewise.
        resolution: cells per axis; only those within the sphere of radius 0.5 count, and a point is of the nearest.
    """
    tree, cells = _sphere_cells(resolution)
    shares = []
    for clouds in (samples, references):
        places = tree.query(np.concatenate([_cloud(cloud) for cloud in clouds]))[1]
        counts = np.bincount(places, minlength=cells).astype(np.float64)
        shares.append(counts / counts.sum())
    mean = (shares[0] + shares[1]) / 2
    return float(_entropy(mean) - (_entropy(shares[0]) + _entropy(shares[1])) / 2)


def _entropy(share: Array) -> float:
    present = share[share > 0]
    return float(-(present * np.log2(present)).sum())


@dataclass(frozen=True)
class GenerationScores:
    """How well generated clouds match references.

    Attributes:
        distance: that all but ``jsd`` stand on.
        mmd: see :func:`minimum_matching_distance`.
        coverage: see :func:`coverage`.
        accuracy: 1-NNA, see :func:`nearest_neighbour_accuracy`.
        jsd: see :func:`jensen_shannon_divergence`; of clouds divided by twice the greatest distance from the origin.
    """

    distance: str
    mmd: float
    coverage: float
    accuracy: float
    jsd: float

    def record(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def generation_scores(
    samples: Sequence[ArrayLike],
    references: Sequence[ArrayLike],
    distance: Distance = "cd",
    cost: Cost = "l2",
    per_batch: int | None = None,
) -> GenerationScores:
    """All figures of a set of generated clouds.

    Args:
        samples: clouds (N, 3), as many as there are references.
        references: held-out clouds.
        distance: ``"cd"``, or ``"emd"`` (exact; cubic in the number of points).
        cost: of the latter.
        per_batch: None is the published protocol, over all at once. A number averages the figures of batches of so many
            shapes, as the released DiT-3D evaluation does with 64; smaller sets raise COV and move 1-NNA.

    Raises:
        PolyditError: the sets are empty, or of different sizes; or a batch of no shape is asked for.
    """
    if per_batch is not None and per_batch < 1:
        raise PolyditError(f"batches of {per_batch} shapes: give 1 or more, or none for all shapes at once")
    if not len(samples) or len(samples) != len(references):
        raise PolyditError(
            f"{len(samples)} samples and {len(references)} references: give equally many, at least one of each"
        )
    if per_batch is not None:
        starts = range(0, len(samples), per_batch)
        parts = [
            generation_scores(samples[i : i + per_batch], references[i : i + per_batch], distance, cost)
            for i in starts
        ]
        weights = [len(samples[i : i + per_batch]) for i in starts]
        means = {
            name: float(np.average([getattr(part, name) for part in parts], weights=weights))
            for name in ("mmd", "coverage", "accuracy", "jsd")
        }
        return GenerationScores(distance, **means)
    between = distance_matrix(references, samples, distance, cost)
    nearest = nearest_neighbour_accuracy(
        distance_matrix(references, None, distance, cost),
        between,
        distance_matrix(samples, None, distance, cost),
    )
    radius = 2 * max(float(np.linalg.norm(_cloud(c), axis=1).max()) for c in (*samples, *references))
    return GenerationScores(
        distance,
        minimum_matching_distance(between),
        coverage(between),
        nearest.accuracy,
        jensen_shannon_divergence(
            [_cloud(c) / radius for c in samples], [_cloud(c) / radius for c in references]
        ),
    )


def _cloud(points: ArrayLike) -> Array:
    cloud = np.asarray(points, dtype=np.float64)
    if cloud.ndim != 2 or cloud.shape[1] != 3 or not len(cloud):
        raise ValueError(f"a cloud of shape {cloud.shape}: give (N, 3) with at least one point")
    return cloud
