"""Mask tools: what grows, shrinks, fills, resizes and pastes a mask, on NumPy arrays and torch tensors alike.

A mask is (..., H, W): bool, 8-bit (0..255) or float in [0, 1]; every axis before the last two is a batch. What comes
out has the type, the kind and the device of what went in, unless a function says otherwise. Soft masks are grey:
dilation is a maximum, erosion a minimum. Outside of the picture nothing is set, and nothing is eroded from there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

__all__ = [
    "Box",
    "bounding_box",
    "box_mask",
    "convex_hull",
    "counted",
    "dilate",
    "edge_band",
    "erode",
    "feather",
    "fill_holes",
    "harden",
    "inflate",
    "paste_back",
    "resize_mask",
    "soften",
    "temporal_union",
]

Mask = TypeVar("Mask", NDArray, Tensor)
Shape = Literal["disk", "square", "diamond", "cross"]


class Box(NamedTuple):
    """A rectangle of pixels: rows ``top`` to ``bottom`` and columns ``left`` to ``right``, ends excluded."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def height(self) -> int:
        """Rows."""
        return self.bottom - self.top

    @property
    def width(self) -> int:
        """Columns."""
        return self.right - self.left

    @property
    def slices(self) -> tuple[slice, slice]:
        """For indexing: ``picture[(..., *box.slices)]``."""
        return slice(self.top, self.bottom), slice(self.left, self.right)


def harden(mask: Mask, threshold: float = 0.5) -> Mask:
    """Set or not, as bool: above ``threshold`` of the full value (128 and more of 8 bits by default)."""
    values = _tensor(mask)
    if values.dtype == torch.uint8:
        hard = values > threshold * 255
    else:
        hard = values if values.dtype == torch.bool else values > threshold
    return _like(hard, mask)


def counted(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Grey values of a mask's file, 8 bits; of a file that counts in 0 and 1 the ones become 255."""
    return np.where(values == 1, np.uint8(255), np.uint8(0)) if values.max(initial=0) == 1 else values


def soften(mask: Mask) -> Mask:
    """The mask as float32 in [0, 1]."""
    values = _tensor(mask)
    soft = values.float() / 255 if values.dtype == torch.uint8 else values.float()
    return _like(soft, mask)


def dilate(mask: Mask, radius: int, shape: Shape = "disk") -> Mask:
    """Grow by ``radius`` pixels.

    Args:
        mask: (..., H, W).
        radius: 0 changes nothing.
        shape: ``disk`` (x^2 + y^2 <= r^2, as scikit-image's), ``square`` (of side 2r + 1), ``diamond`` (abs(x) + abs(y)
            <= r) or ``cross`` (the two axes only).
    """
    return _like(_grow(_tensor(mask), radius, shape), mask)


def erode(mask: Mask, radius: int, shape: Shape = "disk") -> Mask:
    """Shrink by ``radius`` pixels; the border of the picture does not eat into the mask. See :func:`dilate`."""
    return _like(_shrink(_tensor(mask), radius, shape), mask)


def edge_band(
    mask: Mask, radius: int = 2, shape: Shape = "square", inside: bool = True, outside: bool = True
) -> Mask:
    """What lies within ``radius`` pixels of the outline: dilation minus erosion.

    With the defaults it is the 5x5 morphological gradient from which the edge maps of dichotomous segmentation are
    made. The border of the picture is no outline.

    Args:
        mask: (..., H, W).
        radius: pixels to either side.
        shape: see :func:`dilate`.
        inside: keep the half that belongs to the mask.
        outside: keep the other half.
    """
    values = _tensor(mask)
    upper = _grow(values, radius, shape) if outside else values
    lower = _shrink(values, radius, shape) if inside else values
    return _like(upper & ~lower if values.dtype == torch.bool else upper - lower, mask)


def convex_hull(mask: Mask, threshold: float = 0.5) -> Mask:
    """Fill the convex hull of what is set in each mask; an empty mask stays empty. It lies around the soft mask."""
    from skimage.morphology import convex_hull_image

    def fill(hard: NDArray[np.bool_]) -> NDArray[np.bool_]:
        if not hard.any():
            return hard
        box = bounding_box(hard)
        assert box is not None
        if min(box.height, box.width) < 2:  # a line is its own hull, which scikit-image cannot triangulate
            return np.asarray(box_mask(box, hard.shape))
        return np.asarray(convex_hull_image(hard)) | hard

    return _filled(mask, fill, threshold)


def fill_holes(mask: Mask, threshold: float = 0.5) -> Mask:
    """Set what is enclosed by the mask."""
    from scipy.ndimage import binary_fill_holes

    return _filled(mask, binary_fill_holes, threshold)


def bounding_box(mask: Mask, margin: int = 0, multiple: int = 1, threshold: float = 0.5) -> Box | None:
    """The smallest box around what is set, in all masks of the batch together; None if nothing is.

    Args:
        mask: (..., H, W).
        margin: pixels to add on each side, as far as the picture reaches.
        multiple: enlarge the sides to multiples of this, as far as the picture reaches.
        threshold: see :func:`harden`.
    """
    hard = _tensor(harden(mask, threshold))
    height, width = hard.shape[-2:]
    hard = hard.reshape(-1, height, width).any(0)
    rows, columns = hard.any(1).nonzero()[:, 0], hard.any(0).nonzero()[:, 0]
    if not len(rows):
        return None
    top, bottom = _widened(int(rows[0]), int(rows[-1]) + 1, height, margin, multiple)
    left, right = _widened(int(columns[0]), int(columns[-1]) + 1, width, margin, multiple)
    return Box(top, left, bottom, right)


def box_mask(box: Box, size: tuple[int, ...]) -> NDArray[np.bool_]:
    """The box as a mask of ``size`` (height, width)."""
    mask = np.zeros(size, dtype=bool)
    mask[box.slices] = True
    return mask


def inflate(mask: Mask, share: float = 0.1, shape: Shape = "disk") -> Mask:
    """Grow each mask by a share of its own extent (the square root of its area), by one pixel at least.

    A generator that sees the exact outline of what it shall replace copies that outline; this hides it.
    """
    values = _tensor(mask)
    flat = values.reshape(-1, *values.shape[-2:])
    areas = soften(flat).sum((-1, -2)).tolist()
    grown = [
        _grow(one, max(1, round(share * math.sqrt(area))), shape) if area else one
        for one, area in zip(flat, areas, strict=True)
    ]
    return _like(torch.stack(grown).reshape(values.shape) if grown else values, mask)


def feather(mask: Mask, width: int) -> Mask:
    """A ramp of ``width`` pixels inside the mask, float32: 0 outside, 1 from ``width`` pixels on.

    Distances are octagonal. The border of the picture has no ramp.
    """
    values = _tensor(soften(mask))
    layer, total = values, values
    for step in range(1, max(1, width)):
        layer = _shrink(layer, 1, "square" if step % 2 else "diamond")
        total = total + layer
    return _like(total / max(1, width), mask)


def paste_back(original: Mask, generated: Mask, mask: Mask, feather_width: int = 0) -> Mask:
    """``generated`` inside the mask and ``original`` outside of it, where not one bit changes.

    Args:
        original: picture, of any type; for arrays (..., H, W, C) or (H, W), for tensors (..., C, H, W).
        generated: of the same shape and type.
        mask: (..., H, W) for arrays, (..., 1, H, W) for tensors; soft values mix.
        feather_width: pixels of the ramp inside the mask, see :func:`feather`.

    Raises:
        ValueError: the shapes do not fit.
    """
    weight = _tensor(feather(mask, feather_width))
    a, b = _tensor(original), _tensor(generated)
    if isinstance(original, np.ndarray) and a.ndim > weight.ndim:
        weight = weight[..., None]
    fits = a.shape == b.shape and weight.ndim <= a.ndim
    if not fits or any(w not in (1, n) for w, n in zip(weight.shape[::-1], a.shape[::-1], strict=False)):
        raise ValueError(
            f"cannot paste {tuple(b.shape)} into {tuple(a.shape)} by a mask {tuple(_tensor(mask).shape)}"
        )
    weight = weight.to(a.device)
    mixed = a.float() + (b.float() - a.float()) * weight
    mixed = (mixed if a.is_floating_point() else mixed.round()).to(a.dtype)
    return _like(torch.where(weight <= 0, a, torch.where(weight >= 1, b, mixed)), original)


def resize_mask(
    mask: Mask, size: tuple[int, ...], how: Literal["area", "max", "min", "nearest"] = "area"
) -> Mask:
    """Bring the mask to another grid, such as that of latents.

    Args:
        mask: (..., H, W).
        size: (height, width), or (time, height, width) for masks (..., T, H, W).
        how: ``area`` is the share of each cell that is set (bool becomes float32); ``max`` sets a cell that is touched,
            ``min`` one that is covered; ``nearest`` takes the pixel at the middle. Cells are those of adaptive
            pooling; to a larger grid they repeat pixels.
    """
    values = _tensor(mask)
    axes = len(size)
    if axes not in (2, 3) or values.ndim < axes:
        raise ValueError(
            f"cannot bring a mask {tuple(values.shape)} to {size}; give (height, width) or (time, height, width)"
        )
    leading = values.shape[:-axes]
    grid = values.float().reshape(-1, 1, *values.shape[-axes:])
    mean: Callable[[Tensor, Any], Tensor] = F.adaptive_avg_pool2d if axes == 2 else F.adaptive_avg_pool3d
    largest: Callable[[Tensor, Any], Tensor] = F.adaptive_max_pool2d if axes == 2 else F.adaptive_max_pool3d
    if how == "area":
        grid = mean(grid, size)
    elif how == "max":
        grid = largest(grid, size)
    elif how == "min":
        grid = -largest(-grid, size)
    else:
        grid = F.interpolate(grid, size, mode="nearest-exact")
    grid = grid.reshape(*leading, *size)
    if values.dtype == torch.bool:
        return _like(grid if how == "area" else grid > 0.5, mask)
    return _like((grid if values.is_floating_point() else grid.round()).to(values.dtype), mask)


def temporal_union(mask: Mask, radius: int | None = None) -> Mask:
    """Set what is set in any frame at most ``radius`` frames away; in any frame at all if it is None.

    Args:
        mask: (..., T, H, W).
        radius: frames to either side.
    """
    values = _tensor(mask)
    frames = values.shape[-3]
    if radius is None:
        return _like(values.amax(-3, keepdim=True).expand(values.shape).contiguous(), mask)
    joined = values
    for step in range(1, min(radius, frames - 1) + 1):
        later, earlier = values[..., step:, :, :], values[..., :-step, :, :]
        joined = joined.clone()
        joined[..., :-step, :, :] = torch.maximum(joined[..., :-step, :, :], later)
        joined[..., step:, :, :] = torch.maximum(joined[..., step:, :, :], earlier)
    return _like(joined, mask)


def _grow(values: Tensor, radius: int, shape: Shape) -> Tensor:
    """Maximum over the shape, from rows of growing half-width: 4r operations whatever the shape."""
    if radius < 0:
        raise ValueError(f"radius is {radius}; it is a number of pixels from 0")
    height, width = values.shape[-2:]
    row, result = values, values  # row: maximum over columns -w..w
    reach = 0
    for w, dy in sorted((_half_width(dy, radius, shape), dy) for dy in range(radius + 1)):
        for x in range(reach + 1, min(w, width - 1) + 1):
            row = row.clone()
            row[..., :-x] = torch.maximum(row[..., :-x], values[..., x:])
            row[..., x:] = torch.maximum(row[..., x:], values[..., :-x])
        reach = max(reach, w)
        if dy >= height:
            continue
        if dy == 0:
            result = torch.maximum(result, row)
            continue
        result = result.clone()
        result[..., :-dy, :] = torch.maximum(result[..., :-dy, :], row[..., dy:, :])
        result[..., dy:, :] = torch.maximum(result[..., dy:, :], row[..., :-dy, :])
    return result


def _shrink(values: Tensor, radius: int, shape: Shape) -> Tensor:
    if values.dtype == torch.bool:
        return ~_grow(~values, radius, shape)
    top = 255 if values.dtype == torch.uint8 else 1
    return top - _grow(top - values, radius, shape)


def _half_width(dy: int, radius: int, shape: Shape) -> int:
    if shape == "square":
        return radius
    if shape == "diamond":
        return radius - dy
    if shape == "cross":
        return radius if dy == 0 else 0
    if shape == "disk":
        return math.isqrt(radius * radius - dy * dy)
    raise ValueError(f"shape {shape!r} is not known; choose disk, square, diamond or cross")


def _filled(mask: Mask, fill: Callable[[Any], Any], threshold: float) -> Mask:
    """Set to the full value what ``fill`` finds in each hard mask."""
    values = _tensor(mask)
    hard = _tensor(harden(mask, threshold)).cpu().numpy()
    planes = hard.reshape(-1, *hard.shape[-2:])
    found = np.stack([fill(plane) for plane in planes]) if len(planes) else planes
    region = torch.from_numpy(np.ascontiguousarray(found.reshape(hard.shape))).to(values.device)
    if values.dtype == torch.bool:
        return _like(region, mask)
    return _like(
        torch.where(region, values.new_tensor(255 if values.dtype == torch.uint8 else 1), values), mask
    )


def _widened(start: int, stop: int, limit: int, margin: int, multiple: int) -> tuple[int, int]:
    start, stop = max(0, start - margin), min(limit, stop + margin)
    length = min(limit, math.ceil((stop - start) / multiple) * multiple)
    start = min(max(0, start - (length - (stop - start)) // 2), limit - length)
    return start, start + length


def _tensor(mask: NDArray | Tensor) -> Tensor:
    if isinstance(mask, Tensor):
        return mask
    return torch.from_numpy(np.array(mask) if not mask.flags.writeable else np.ascontiguousarray(mask))


def _like(values: Tensor, example: Mask) -> Mask:
    return values if isinstance(example, Tensor) else values.numpy()  # type: ignore[return-value]
