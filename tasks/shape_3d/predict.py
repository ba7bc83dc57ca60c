"""``polydit shape-3d predict``: shapes of a category, or the shape of what a picture shows."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ...core.errors import PolyditError
from ...core.geometry.mesh import Mesh
from ...core.geometry.solids import solid_of_points
from ...core.geometry.surfaces import query_cells
from ...core.geometry.turntable import View, render_mesh, render_points
from ...core.geometry.writing import height_colours, mesh_bytes, points_bytes
from ...core.media import OutputWriter
from .cloud_pipeline import PointCloudPipeline
from .triplane_pipeline import TriplanePipeline

__all__ = ["check_resolution", "predict_one", "sheet", "write_shape"]

MAX_RESOLUTION = 512
MAX_CLOUD_RESOLUTION = 160
"""Cells of a surface around points: finer ones than these are finer than points are apart."""
SHEET_SIZE = 192


def check_resolution(resolution: int) -> None:
    """Refuse grids that no memory holds.

    Raises:
        PolyditError: it is above the limit.
    """
    if resolution > MAX_RESOLUTION:
        raise PolyditError(
            f"--resolution {resolution}: at most {MAX_RESOLUTION}; a grid of {resolution} cells along each axis has "
            f"{resolution**3 / 1e9:.1f} thousand million corners"
        )


def predict_one(
    pipe: PointCloudPipeline | TriplanePipeline,
    source: Path,
    writer: OutputWriter,
    options: Namespace,
    generator: torch.Generator,
) -> dict[str, Any]:
    """Make shapes of a category (``<category>_00.ply`` and ``.glb``, ...) or one from a picture, and a sheet of views.

    Returns:
        A JSON-ready record: files, sizes, what the meshes are like, and the cells along each axis they were made on.

    Raises:
        PolyditError: the weights are for the other use, or an option is out of range.
    """
    check_resolution(options.resolution)
    progress = getattr(options, "progress", None)
    if isinstance(pipe, PointCloudPipeline):
        if options.category is None:
            raise PolyditError(
                f"{source}: these weights make shapes of a category, not from pictures; give --category "
                f"({', '.join(pipe.categories)}), or weights of Direct3D"
            )
        if options.level is not None:
            raise PolyditError(
                "--level: is for weights that know a solid; point clouds have none, leave it out"
            )
        resolution = min(options.resolution, MAX_CLOUD_RESOLUTION)
        if options.mesh and resolution < options.resolution:
            say(
                f"--resolution {options.resolution}: a surface around points has at most {resolution} cells along each "
                f"axis, which are finer than points are apart; {resolution} are taken"
            )
        made = pipe(
            options.category,
            num=options.num,
            num_points=options.points,
            steps=options.steps,
            guidance_scale=options.guidance_scale,
            generator=generator,
            progress=progress,
        )
        if not options.mesh:
            return write_all(writer, source.name, made.points, [None] * len(made.points), options)
        meshes = [cloud_mesh(cloud, resolution) for cloud in made.points]
        record = write_all(writer, source.name, made.points, meshes, options)
        return {**record, "resolution": resolution}
    return predict_triplane(pipe, source, writer, options, generator, progress)


def predict_triplane(
    pipe: TriplanePipeline,
    source: Path,
    writer: OutputWriter,
    options: Namespace,
    generator: torch.Generator,
    progress: Any,
) -> dict[str, Any]:
    """Meshes by Direct3D, and points on them.

    Raises:
        PolyditError: nothing solid came out.
    """
    from_picture = options.category is None
    made = pipe(
        image=source if from_picture else None,
        category=options.category,
        num=1 if from_picture else options.num,
        steps=options.steps,
        guidance_scale=options.guidance_scale,
        generator=generator,
        resolution=options.resolution,
        level=options.level,
        progress=progress,
    )
    hollow = [number for number, mesh in enumerate(made.meshes) if mesh.is_empty]
    if hollow:
        raise PolyditError(
            f"{source}: {len(hollow)} of {len(made.meshes)} shapes have no surface; lower --level, or change --seed"
        )
    draw = np.random.default_rng(int(torch.randint(2**31, (), generator=generator)))
    clouds = [mesh.sample(options.points, draw)[0] for mesh in made.meshes]
    meshes = [mesh if options.mesh else None for mesh in made.meshes]
    used = {"resolution": query_cells(options.resolution)} if options.mesh else {}
    if not from_picture:
        return {**write_all(writer, source.name, clouds, meshes, options), **used}
    files, told = write_shape(writer, source.stem, clouds[0], meshes[0], options.format)
    picture = sheet([made.meshes[0]], options.views)
    files.append(writer.image(f"{source.stem}_sheet.png", picture).name)
    return {"files": files, "shapes": [told], **used}


def cloud_mesh(points: NDArray[Any], resolution: int) -> Mesh:
    """A closed surface around a cloud, in the cloud's own place: as thick as the points are apart."""
    low, high = points.min(0), points.max(0)
    centre, scale = (low + high) / 2, 1.8 / max(float((high - low).max()), 1e-9)
    mesh = (
        solid_of_points((points - centre) * scale, min(resolution, MAX_CLOUD_RESOLUTION))
        .mesh()
        .without_floaters()
    )
    return Mesh(mesh.vertices / scale + centre, mesh.faces)


def write_all(
    writer: OutputWriter,
    stem: str,
    clouds: list[NDArray[Any]],
    meshes: Sequence[Mesh | None],
    options: Namespace,
) -> dict[str, Any]:
    """Files of several shapes, their sheet, and the record."""
    files: list[str] = []
    shapes = []
    for number, (cloud, mesh) in enumerate(zip(clouds, meshes, strict=True)):
        names, told = write_shape(writer, f"{stem}_{number:02}", cloud, mesh, options.format)
        files += names
        shapes.append(told)
    picture = sheet(
        [mesh if mesh is not None else cloud for cloud, mesh in zip(clouds, meshes, strict=True)],
        options.views,
    )
    files.append(writer.image(f"{stem}_sheet.png", picture).name)
    return {"files": files, "shapes": shapes}


def write_shape(
    writer: OutputWriter, stem: str, cloud: NDArray[Any], mesh: Mesh | None, kind: str
) -> tuple[list[str], dict[str, Any]]:
    """Points, mesh if there is one; names of the files, and what the shape is like."""
    name = f"{stem}_points.ply" if kind == "ply" and mesh is not None else f"{stem}.ply"
    with writer.open(name) as file:
        file.write(points_bytes(cloud))
    files = [name]
    told: dict[str, Any] = {"points": len(cloud)}
    if mesh is not None:
        with writer.open(f"{stem}.{kind}") as file:
            file.write(mesh_bytes(mesh.painted(height_colours(mesh.vertices)), kind))
        files.append(f"{stem}.{kind}")
        told |= {
            "vertices": len(mesh.vertices),
            "faces": len(mesh.faces),
            "watertight": mesh.is_watertight,
            "volume": round(mesh.volume, 5),
        }
    return files, told


def sheet(shapes: list[Mesh | NDArray[Any]], views: int) -> Image.Image:
    """A row of pictures around each shape, on white."""
    size = SHEET_SIZE
    picture = Image.new("RGB", (views * size, len(shapes) * size), "white")
    for row, shape in enumerate(shapes):
        for column in range(views):
            view = View(30 + 360 * column / views)
            pixels = (
                render_mesh(shape, view, size)
                if isinstance(shape, Mesh)
                else render_points(shape, view, size)
            )
            cell = Image.fromarray(pixels)
            picture.paste(cell, (column * size, row * size), cell)
    return picture


def say(line: str) -> None:
    """A remark to the user."""
    print(line, file=sys.stderr, flush=True)  # noqa: T201 - what the user reads
