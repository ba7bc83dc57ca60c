"""``polydit shape-3d evaluate``: generated shapes against held-out ones, and the training set against the same."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...core.devices import choose_device
from ...core.errors import PolyditError
from ...core.geometry.solids import solid_of
from ...core.geometry.turntable import View, render_mesh
from ...core.load import load
from ...core.media import OutputWriter
from ...core.metrics.point_sets import (
    Cost,
    distance_matrix,
    f_score,
    generation_scores,
    minimum_matching_distance,
)
from ...core.metrics.volumes import normal_consistency, volume_iou
from ...core.open_pipeline import choose_weights
from .cloud_data import read_pc15k
from .cloud_formulation import category_number
from .cloud_pipeline import PointCloudPipeline
from .pool import VIEWS
from .procedural import FAMILIES
from .shapes import LAYOUTS, Shape, check_up, find_shapes, procedural_shapes, readable
from .triplane_pipeline import TriplanePipeline

__all__ = ["from_pictures", "generate", "held_out_clouds", "run"]

Array = NDArray[Any]


def run(options: Namespace) -> int:
    """Print the figures, a line for each category, and write them if asked to.

    Raises:
        PolyditError: an option is wrong, there is nothing to compare with, or the weights are for something else.
    """
    from . import TASK

    check_options(options)
    pipe = load(choose_weights(TASK, options.weights), task=TASK.name).to(choose_device(options.device))
    categories = options.categories or pipe.categories
    check_categories(categories, pipe, options)
    cost: Cost = options.cost or "l2"
    report: dict[str, Any] = {"settings": {k: str(v) for k, v in vars(options).items() if v is not None}}
    report["categories"] = {}
    for category in categories:
        held = held_out_clouds(category, options)
        made = generate(pipe, category, len(held), options)
        train = training_clouds(category, options.train, options.points)
        scores = generation_scores(made, held, options.distance, cost, options.per_batch)
        record = {**scores.record(), "held_out": len(held)}
        if train:
            between = distance_matrix(held, train, options.distance, cost)
            record["mmd_of_training"] = minimum_matching_distance(between)
        report["categories"][category] = record
        print(f"{category}: " + told(record), flush=True)  # noqa: T201 - what the user reads
    if options.pictures:
        shapes = held_out_shapes(categories, options.pictures, options)
        figures = from_pictures(pipe, shapes, options)
        report["pictures"] = figures
        print("from pictures: " + told(figures), flush=True)  # noqa: T201
    if options.output is not None:
        writer = OutputWriter(options.output.parent, overwrite=options.overwrite)
        with writer.open(options.output.name) as file:
            file.write((json.dumps(report, indent=2) + "\n").encode())
    return 0


def told(record: dict[str, Any]) -> str:
    """A record as a line."""
    return ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in record.items())


def check_options(options: Namespace) -> None:
    """Refuse what cannot go together before the weights are read.

    Raises:
        PolyditError: a layout or an axis is unknown, a folder is missing, or an option has no use beside another.
    """
    layout = options.layout
    if layout not in (*LAYOUTS, "procedural", "pc15k"):
        raise PolyditError(
            f"--layout {layout}: is unknown; choose from procedural, pc15k, {', '.join(LAYOUTS)}"
        )
    check_up(options.up, layout, "--")
    if layout != "procedural" and not options.path.is_dir():
        raise PolyditError(f"--path {options.path}: no such folder; give the data set's")
    if options.pictures and layout == "pc15k":
        raise PolyditError("--pictures: needs solids, and the layout pc15k has points only; leave it out")
    if options.cost is not None and options.distance != "emd":
        raise PolyditError(f"--cost {options.cost}: is of the earth mover's distance; add --distance emd")


def check_categories(categories: Sequence[str], pipe: Any, options: Namespace) -> None:
    """Refuse categories that the weights do not know, or that no held-out shape can be of.

    Raises:
        PolyditError: there is one; or pictures are asked of weights that see none.
    """
    if not pipe.categories:
        raise PolyditError(
            "--weights: these make shapes from pictures only, and what is compared is of categories; give others"
        )
    for category in categories:
        category_number(pipe.categories, category, "--categories")
        if options.layout == "procedural" and category not in FAMILIES:
            raise PolyditError(
                f"--categories {category}: there are no procedural shapes of it, but of {', '.join(FAMILIES)}; "
                "give another --layout"
            )
    if options.pictures and not isinstance(pipe, TriplanePipeline):
        raise PolyditError("--pictures: these weights make shapes of a category only; leave it out")


def held_out_shapes(categories: Sequence[str], number: int, options: Namespace) -> list[Shape]:
    """So many shapes that nothing was trained on.

    Raises:
        PolyditError: there are none.
    """
    layout, path, split = options.layout, options.path, options.split
    if layout == "procedural":
        return procedural_shapes(categories, -(-number // len(categories)), held_out=True)[:number]
    found = readable(find_shapes(layout, path, split, categories, options.up, "--"), say)[:number]
    if not found:
        raise PolyditError(
            f"--path {path}: the layout {layout} holds no {split} shapes of {', '.join(categories)} there; "
            "give another --split, or other --categories"
        )
    return found


def held_out_clouds(category: str, options: Namespace) -> list[Array]:
    """Clouds (points, 3) that nothing was trained on.

    Raises:
        PolyditError: there are fewer than two.
    """
    path, split, number, points = options.path, options.split, options.number, options.points
    if options.layout == "pc15k":
        read = read_pc15k(path, split, [category], points, "--")[0]
        clouds = [cloud[:points] for cloud in read[:number]]
    else:
        shapes = held_out_shapes([category], number, options)
        clouds = [shape.sample(points, np.random.default_rng(i))[0] for i, shape in enumerate(shapes)]
    if len(clouds) < 2:
        raise PolyditError(
            f"--path {path}: {len(clouds)} {split} shapes of {category}; at least two are needed, give another "
            "--split, or other --categories"
        )
    return clouds


def training_clouds(category: str, number: int, points: int) -> list[Array]:
    """Procedural shapes of the training set; none of a category that is no family."""
    shapes = procedural_shapes([category], number)
    return [shape.sample(points, np.random.default_rng(10_000 + i))[0] for i, shape in enumerate(shapes)]


def generate(pipe: Any, category: str, number: int, options: Namespace) -> list[Array]:
    """So many clouds of a category; of meshes, points on them."""
    generator = torch.Generator().manual_seed(options.seed)
    common = {"steps": options.steps, "guidance_scale": options.guidance_scale, "generator": generator}
    if isinstance(pipe, PointCloudPipeline):
        return list(pipe(category, num=number, num_points=options.points, **common).points)
    clouds: list[Array] = []
    draw = np.random.default_rng(options.seed)
    while len(clouds) < number:
        meshes = [
            m for m in pipe(category=category, num=number - len(clouds), **common).meshes if not m.is_empty
        ]
        if not meshes:
            raise PolyditError(f"{category}: the weights make nothing solid; train them longer")
        clouds += [mesh.sample(options.points, draw)[0] for mesh in meshes]
    return clouds


def from_pictures(pipe: TriplanePipeline, shapes: Sequence[Shape], options: Namespace) -> dict[str, Any]:
    """A mesh from a rendering of each held-out shape: volume IoU, F-score and normal consistency.

    Beside them those of a training shape at random. All are measured in the box of the true shape, whose longest side
    is 1.9; of a mesh without a surface they are 0.
    """
    draw = np.random.default_rng(options.seed)
    places = draw.uniform(-1, 1, (50_000, 3))
    made_figures: list[tuple[float, float, float]] = []
    random_figures: list[tuple[float, float, float]] = []
    hollow = 0
    for number, shape in enumerate(shapes):
        angles = {name: float(draw.uniform(*limits)) for name, limits in VIEWS.items()}
        picture = render_mesh(shape.mesh(64), View(**angles), 128)
        generator = torch.Generator().manual_seed(options.seed + number)
        made = pipe(
            image=picture, steps=options.steps, guidance_scale=options.guidance_scale, generator=generator
        ).meshes[0]
        true = (shape.distance(places) < 0, *shape.sample(4096, draw))
        if made.is_empty:
            hollow += 1
            made_figures.append((0.0, 0.0, 0.0))
        else:
            inside = solid_of(made, 64).contains(places)
            made_figures.append(likeness((inside, *made.sample(4096, draw)), true))
        other = procedural_shapes([shape.category], 50)
        if other:
            stranger = other[int(draw.integers(len(other)))]
            inside = stranger.distance(places) < 0
            random_figures.append(likeness((inside, *stranger.sample(4096, draw)), true))
    record: dict[str, Any] = {"shapes": len(shapes), "without_surface": hollow}
    for start, figures in (("", made_figures), ("random_", random_figures)):
        if figures:
            means = np.mean(figures, axis=0).tolist()
            record |= {start + name: mean for name, mean in zip(LIKENESS, means, strict=True)}
    return record


LIKENESS = ("iou", "f_score", "normal_consistency")
"""What :func:`likeness` returns."""


def likeness(
    found: tuple[Array, Array, Array], true: tuple[Array, Array, Array]
) -> tuple[float, float, float]:
    """How alike two solids are, each as whether places are inside, points on its surface, and their normals."""
    return (
        volume_iou(found[0], true[0]),
        f_score(found[1], true[1], 0.001),
        normal_consistency(found[1], found[2], true[1], true[2]),
    )


def say(line: str) -> None:
    """A remark to the user."""
    print(line, file=sys.stderr, flush=True)  # noqa: T201
