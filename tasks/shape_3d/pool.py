"""What training reads of a shape, worked out once and kept in memory, and on the disk if a folder is given."""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.data.corpus.manifest import write_atomically
from ...core.errors import PolyditError
from ...core.geometry.turntable import View, render_mesh
from .shapes import MeshShape, ProceduralShape, Shape

__all__ = ["VIEWS", "Entry", "PoolOptions", "build_pool", "make_entry", "query_points"]

Array = NDArray[Any]
VIEWS = {"azimuth": (10.0, 50.0), "elevation": (12.0, 28.0)}
"""Degrees between which shapes are looked at."""


@dataclass(frozen=True)
class PoolOptions:
    """How much of each shape is kept.

    Attributes:
        points: on the surface, with normals.
        queries: in the box, with signed distances: half anywhere, half near the surface.
        near: standard deviation of the distance of the latter from the surface.
        views: pictures of it.
        size: their side in pixels.
    """

    points: int = 4096
    queries: int = 0
    near: float = 0.04
    views: int = 0
    size: int = 64


@dataclass(frozen=True)
class Entry:
    """A shape as it is trained on.

    Attributes:
        points: (P, 3) float16 on the surface.
        normals: (P, 3) float16.
        queries: (Q, 3) float16, first those anywhere, then those near the surface.
        distances: (Q,) float16.
        pictures: (V, S, S, 4) uint8.
    """

    points: Array
    normals: Array
    queries: Array
    distances: Array
    pictures: Array


def query_points(
    shape: Shape, count: int, near: float, generator: np.random.Generator
) -> tuple[Array, Array]:
    """Points (count, 3) in the box, half anywhere and half near the surface, and signed distances there."""
    anywhere = generator.uniform(-1, 1, (count // 2, 3))
    surface, _ = shape.sample(count - count // 2, generator)
    close = (surface + generator.normal(size=surface.shape) * near).clip(-1, 1)
    # Rounded first: a distance must be that of the point that is kept.
    points = np.concatenate([anywhere, close]).astype(np.float16)
    return points, shape.distance(points.astype(np.float64)).astype(np.float16)


def make_entry(shape: Shape, options: PoolOptions, seed: int = 0) -> Entry:
    """Work a shape out; a pure function of its arguments."""
    generator = np.random.default_rng(
        [seed, int.from_bytes(hashlib.sha256(shape.name.encode()).digest()[:4], "big")]
    )
    points, normals = shape.sample(options.points, generator)
    queries, distances = np.zeros((0, 3), np.float16), np.zeros(0, np.float16)
    if options.queries:
        queries, distances = query_points(shape, options.queries, options.near, generator)
    pictures = np.zeros((options.views, options.size, options.size, 4), np.uint8)
    if options.views:
        mesh = shape.mesh(56)
        for number in range(options.views):
            angles = {name: float(generator.uniform(*limits)) for name, limits in VIEWS.items()}
            pictures[number] = render_mesh(mesh, View(**angles), options.size)
    return Entry(points.astype(np.float16), normals.astype(np.float16), queries, distances, pictures)


def build_pool(
    shapes: Sequence[Shape],
    options: PoolOptions,
    cache: str | Path | None = None,
    say: Callable[[str], None] | None = None,
) -> tuple[list[Entry], list[str]]:
    """Entries of shapes, and their categories; what cannot be used is left out and told.

    Args:
        shapes: many.
        options: how much of each.
        cache: folder to keep them in; None works them out each time.
        say: where lines for the user go; standard error if None.

    Raises:
        PolyditError: none can be used.
    """
    tell = say or (lambda line: print(line, file=sys.stderr, flush=True))  # noqa: T201
    file = None if cache is None else Path(cache).expanduser() / f"shapes-{_digest(shapes, options)}.npz"
    if file is not None and file.is_file():
        with np.load(file) as content:
            columns = {field.name: content[field.name] for field in fields(Entry)}
            categories = [str(name) for name in content["categories"]]
        return [
            Entry(**dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)
        ], categories
    entries, categories = [], []
    done: Counter[str] = Counter()
    for number, shape in enumerate(shapes):
        try:
            entries.append(make_entry(shape, options))
            categories.append(shape.category)
        except PolyditError as error:
            tell(f"left out: {error}")
        if (number + 1) % 500 == 0:
            tell(f"shapes: {number + 1} of {len(shapes)} worked out")
        if isinstance(shape, MeshShape):
            done.update(note.partition(":")[0] if ":" in note else "removed faces" for note in shape.notes)
        # Solids are large, and not needed again.
        vars(shape).pop("solid", None)
        vars(shape).pop("surface", None)
    if done:
        tell("meshes: " + ", ".join(f"{count} {what}" for what, count in done.most_common()))
    if not entries:
        raise PolyditError("data: none of the shapes can be used; see the lines above")
    if file is not None:
        import io

        buffer = io.BytesIO()
        np.savez(
            buffer,
            categories=np.array(categories),
            **{field.name: np.stack([getattr(e, field.name) for e in entries]) for field in fields(Entry)},
        )
        write_atomically(file, buffer.getvalue())
    return entries, categories


def _digest(shapes: Sequence[Shape], options: PoolOptions) -> str:
    """Of what the entries depend on: names and parameters of shapes, sizes and times of files, options."""
    told: list[Any] = [asdict(options), VIEWS, 1]
    for shape in shapes:
        if isinstance(shape, MeshShape):
            state = shape.file.stat()
            told.append(
                [
                    str(shape.file),
                    state.st_size,
                    int(state.st_mtime),
                    shape.category,
                    shape.resolution,
                    shape.up,
                    *([shape.variation] if shape.variation else []),
                ]
            )
        elif isinstance(shape, ProceduralShape):
            told.append([shape.name, shape.category])
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]
