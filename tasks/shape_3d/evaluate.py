"""``polydit shape-3d evaluate``: generated shapes against held-out ones, and the training set against the same."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...core.devices import choose_device
from ...core.errors import PolyditError
from ...core.geometry.turntable import View, render_mesh
from ...core.load import load
from ...core.media import OutputWriter
from ...core.metrics.point_sets import distance_matrix, f_score, generation_scores, minimum_matching_distance
from ...core.metrics.volumes import volume_iou
from ...core.open_pipeline import choose_weights
from .cloud_data import read_pc15k
from .cloud_pipeline import PointCloudPipeline
from .pool import VIEWS
from .shapes import LAYOUTS, Shape, find_shapes, procedural_shapes, readable
from .triplane_pipeline import TriplanePipeline

__all__ = ["from_pictures", "generate", "held_out_clouds", "run"]

Array = NDArray[Any]


def run(options: Namespace) -> int:
    """Print the figures, a line for each category, and write them if asked to.

    Raises:
        PolyditError: there is nothing to compare with, or the weights are for something else.
    """
    from . import TASK

    pipe = load(choose_weights(TASK, options.weights), task=TASK.name).to(choose_device(options.device))
    categories = options.categories or pipe.categories
    report: dict[str, Any] = {"settings": {k: str(v) for k, v in vars(options).items() if v is not None}}
    report["categories"] = {}
    for category in categories:
        held = held_out_clouds(
            options.layout, options.path, options.split, category, options.number, options.points
        )
        made = generate(pipe, category, len(held), options)
        train = training_clouds(category, options.train, options.points)
        scores = generation_scores(made, held, options.distance, per_batch=options.per_batch)
        record = {**scores.record(), "held_out": len(held)}
        if train:
            between = distance_matrix(held, train, options.distance)
            record["mmd_of_training"] = minimum_matching_distance(between)
        report["categories"][category] = record
        print(f"{category}: " + told(record), flush=True)  # noqa: T201 - what the user reads
    if options.pictures:
        if not isinstance(pipe, TriplanePipeline):
            raise PolyditError("--pictures: these weights make shapes of a category only; leave it out")
        shapes = held_out_shapes(options.layout, options.path, options.split, categories, options.pictures)
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


def held_out_shapes(
    layout: str, path: Path, split: str, categories: Sequence[str], number: int
) -> list[Shape]:
    """Shapes that nothing was trained on.

    Raises:
        PolyditError: there are none.
    """
    if layout == "procedural":
        return procedural_shapes(categories, -(-number // len(categories)), held_out=True)[:number]
    found = readable(find_shapes(layout, path, split, categories), say)[:number]
    if not found:
        raise PolyditError(f"--path {path}: holds no {split} shapes of {', '.join(categories)}")
    return found


def held_out_clouds(
    layout: str, path: Path, split: str, category: str, number: int, points: int
) -> list[Array]:
    """Clouds (points, 3) that nothing was trained on.

    Raises:
        PolyditError: there are fewer than two.
    """
    if layout not in (*LAYOUTS, "procedural", "pc15k"):
        raise PolyditError(
            f"--layout {layout}: is unknown; choose from procedural, pc15k, {', '.join(LAYOUTS)}"
        )
    if layout == "pc15k":
        clouds = [cloud[:points] for cloud in read_pc15k(path, split, [category], points)[0][:number]]
    else:
        shapes = held_out_shapes(layout, path, split, [category], number)
        clouds = [shape.sample(points, np.random.default_rng(i))[0] for i, shape in enumerate(shapes)]
    if len(clouds) < 2:
        raise PolyditError(
            f"--path {path}: {len(clouds)} held-out shapes of {category}; at least two are needed"
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
    """A mesh from a rendering of each held-out shape: volume IoU and F-score, and those of a training shape at random.

    Both are measured in the box of the true shape, whose longest side is 1.9.
    """
    draw = np.random.default_rng(options.seed)
    places = draw.uniform(-1, 1, (50_000, 3))
    figures: dict[str, list[float]] = {"iou": [], "f_score": [], "random_iou": [], "random_f_score": []}
    hollow = 0
    for number, shape in enumerate(shapes):
        angles = {name: float(draw.uniform(*limits)) for name, limits in VIEWS.items()}
        picture = render_mesh(shape.mesh(64), View(**angles), 128)
        generator = torch.Generator().manual_seed(options.seed + number)
        made = pipe(
            image=picture, steps=options.steps, guidance_scale=options.guidance_scale, generator=generator
        ).meshes[0]
        true, cloud = shape.distance(places) < 0, shape.sample(4096, draw)[0]
        if made.is_empty:
            hollow += 1
            figures["iou"].append(0.0)
            figures["f_score"].append(0.0)
        else:
            from ...core.geometry.solids import solid_of

            found = solid_of(made, 64).contains(places)
            figures["iou"].append(volume_iou(found, true))
            figures["f_score"].append(f_score(made.sample(4096, draw)[0], cloud, 0.001))
        other = procedural_shapes([shape.category], 50)
        if other:
            stranger = other[int(draw.integers(len(other)))]
            figures["random_iou"].append(volume_iou(stranger.distance(places) < 0, true))
            figures["random_f_score"].append(f_score(stranger.sample(4096, draw)[0], cloud, 0.001))
    means = {name: float(np.mean(values)) for name, values in figures.items() if values}
    return {"shapes": len(shapes), "without_surface": hollow, **means}


def say(line: str) -> None:
    """A remark to the user."""
    print(line, file=sys.stderr, flush=True)  # noqa: T201
