"""Pictures of meshes and clouds without a graphics card: dense points, the nearest of each pixel, and light."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .mesh import Mesh, low_discrepancy
from .writing import height_colours

__all__ = ["View", "render_mesh", "render_points", "turntable"]

Array = NDArray[Any]
LIGHT = np.array([0.35, 0.8, 0.5]) / np.linalg.norm([0.35, 0.8, 0.5])
GREY = np.array([200.0, 200.0, 205.0])


@dataclass(frozen=True)
class View:
    """A camera that looks at the origin, with parallel rays.

    Attributes:
        azimuth: degrees around y; 0 looks along -z, 90 along -x.
        elevation: degrees above the horizon.
        extent: half the side of what is seen.
    """

    azimuth: float = 30.0
    elevation: float = 20.0
    extent: float = 1.25

    def rotation(self) -> Array:
        """(3, 3): rows are the camera's right, up and backward axes."""
        a, e = np.radians(self.azimuth), np.radians(self.elevation)
        backward = np.array([np.cos(e) * np.sin(a), np.sin(e), np.cos(e) * np.cos(a)])
        right = np.array([np.cos(a), 0.0, -np.sin(a)])
        return np.stack([right, np.cross(backward, right), backward])


def render_mesh(mesh: Mesh, view: View, size: int = 256, smooth: int = 2) -> NDArray[np.uint8]:
    """A mesh in soft light: (size, size, 4) uint8, transparent where nothing is.

    Args:
        mesh: in about [-1, 1]^3; its colours are shown, grey where it has none. Both sides of faces are seen.
        view: from where.
        size: in pixels.
        smooth: pixels of the working picture along the side of a pixel.
    """
    side = size * smooth
    if mesh.is_empty:
        return np.zeros((size, size, 4), np.uint8)
    turned = mesh.turned(view.rotation())
    pixels = turned.vertices[:, :2] / view.extent * (side / 2)
    a, b, c = (pixels[mesh.faces[:, i]] for i in range(3))
    ab, ac = b - a, c - a
    areas = np.abs(ab[:, 0] * ac[:, 1] - ab[:, 1] * ac[:, 0]) / 2
    # Three points for each pixel that a face covers, and those along its edges for thin ones.
    lengths = np.maximum(np.linalg.norm(ab, axis=1), np.linalg.norm(ac, axis=1))
    counts = np.ceil(3 * areas + 1.5 * lengths + 1).astype(np.int64)
    limit = 40 * side * side
    if counts.sum() > limit:
        counts = np.maximum((counts * (limit / counts.sum())).astype(np.int64), 1)
    faces = np.repeat(np.arange(len(counts)), counts)
    u, v = low_discrepancy(int(counts.max()))
    place = np.arange(len(faces)) - np.repeat(np.cumsum(counts) - counts, counts)
    points, normals = turned.at(faces, u[place], v[place])
    light = view.rotation() @ LIGHT
    normals = normals * np.where(normals[:, 2:] < 0, -1, 1)
    shade = 0.35 + 0.55 * (normals @ light).clip(0) + 0.1 * normals[:, 2]
    own = GREY if mesh.colours is None else mesh.colours[mesh.faces[faces, 0]]
    return _nearest(points, own * shade[:, None], side, view.extent, smooth, 1)


def render_points(
    points: Array, view: View, size: int = 256, colours: Array | None = None, radius: float = 0.012
) -> NDArray[np.uint8]:
    """A cloud (N, 3) as small balls: (size, size, 4) uint8, transparent where nothing is.

    Args:
        points: in about [-1, 1]^3.
        view: from where.
        size: in pixels.
        colours: (N, 3) uint8; by height if None.
        radius: of the balls, in the units of the points.
    """
    smooth = 2
    side = size * smooth
    colours = height_colours(points) if colours is None else colours
    turned = points @ view.rotation().T
    reach = max(int(np.ceil(radius / view.extent * side / 2)), 1)
    steps = np.arange(-reach, reach + 1)
    x, y = np.meshgrid(steps, steps)
    share = (x**2 + y**2) / reach**2
    disc = share <= 1
    offsets = np.stack([x[disc], y[disc], np.sqrt(1 - share[disc]) * reach], 1) * (2 * view.extent / side)
    spread = (turned[:, None] + offsets[None]).reshape(-1, 3)
    height = offsets[:, 2] / offsets[:, 2].max()
    shades = (0.55 + 0.45 * height)[None, :, None] * colours[:, None].astype(np.float64)
    return _nearest(spread, shades.reshape(-1, 3), side, view.extent, smooth, 1)


def _nearest(
    points: Array, colours: Array, side: int, extent: float, smooth: int, passes: int
) -> NDArray[np.uint8]:
    """The nearest point of each pixel; pixels between covered ones are filled; averaged over ``smooth``."""
    column = np.floor((points[:, 0] / extent + 1) * side / 2).astype(np.int64)
    row = np.floor((1 - points[:, 1] / extent) * side / 2).astype(np.int64)
    seen = (column >= 0) & (column < side) & (row >= 0) & (row < side)
    place, depth, colours = (row * side + column)[seen], points[seen, 2], colours[seen]
    order = np.argsort(depth, kind="stable")  # the nearest is written last
    flat = np.zeros((side * side, 4))
    flat[place[order], :3] = colours[order]
    flat[place[order], 3] = 255
    picture = flat.reshape(side, side, 4)
    for _ in range(passes):
        alpha = picture[..., 3] > 0
        padded = np.pad(picture, ((1, 1), (1, 1), (0, 0)))
        around = [
            padded[1 + i : 1 + i + side, 1 + j : 1 + j + side] for i, j in ((0, 1), (0, -1), (1, 0), (-1, 0))
        ]
        covered = np.stack([p[..., 3] > 0 for p in around])
        gap = ~alpha & (covered.sum(0) >= 3)
        mean = sum(p[..., :3] for p in around) / np.maximum(covered.sum(0), 1)[..., None]
        picture[gap, :3], picture[gap, 3] = mean[gap], 255
    size = side // smooth
    blocks = picture.reshape(size, smooth, size, smooth, 4)
    weight = blocks[..., 3:] / 255
    alpha = weight.mean((1, 3))
    colour = (blocks[..., :3] * weight).sum((1, 3)) / np.maximum(weight.sum((1, 3)), 1e-9)
    return np.rint(np.concatenate([colour, alpha * 255], -1)).clip(0, 255).astype(np.uint8)


def turntable(
    shape: Mesh | Array, views: int = 8, size: int = 256, elevation: float = 20.0, columns: int = 4
) -> Image.Image:
    """A sheet of pictures around a mesh or a cloud (N, 3), on white."""
    rows = -(-views // columns)
    sheet = Image.new("RGB", (min(views, columns) * size, rows * size), "white")
    for number in range(views):
        view = View(30 + 360 * number / views, elevation)
        pixels = (
            render_mesh(shape, view, size) if isinstance(shape, Mesh) else render_points(shape, view, size)
        )
        picture = Image.fromarray(pixels)
        sheet.paste(picture, (number % columns * size, number // columns * size), picture)
    return sheet
