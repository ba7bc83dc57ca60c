"""Run a function on overlapping tiles and blend what it returns, in bounded memory.

A picture is covered by tiles of one size; the last tile of each axis is shifted back so that it ends at the
border and nothing is padded. Both the cover and the blend weights are products of a row part and a column
part, so the weights are normalised per axis beforehand: a pixel that one tile covers alone has weight exactly
1, and output rows are finished as soon as the tile rows over them are done. Picture-sized tiling
(`tiled_apply`), strips for pictures that do not fit in memory as floats (`tiled_strips`) and the averaging
of predictions inside a sampling step (`multidiffusion`) are all the same loop.

A model with absolute positions sees every tile as if it were a whole picture (centre-crop positions for
SD3-like models); one that wants global coordinates takes them from the `Tile` that `multidiffusion` passes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from .errors import PolyditError

__all__ = [
    "Blend",
    "Tile",
    "blend_profile",
    "blend_weights",
    "crop_tiles",
    "multidiffusion",
    "normalised_profiles",
    "plan_tiles",
    "tile_starts",
    "tiled_apply",
    "tiled_strips",
]

Blend = Literal["gaussian", "cosine", "dit4sr"]
Size = int | tuple[int, int]
Progress = Callable[[int, int], None]

_GAUSSIAN_VARIANCE = 0.01  # of positions measured in tile lengths: a standard deviation of a tenth of a tile


@dataclass(frozen=True)
class Tile:
    """A window of a picture: its first row and column, its height and width, in input pixels."""

    top: int
    left: int
    height: int
    width: int

    def crop(self, image: Tensor, scale: int = 1) -> Tensor:
        """Cut this tile out of the last two axes of ``image``, whose sides are ``scale`` times as long."""
        rows = slice(self.top * scale, (self.top + self.height) * scale)
        columns = slice(self.left * scale, (self.left + self.width) * scale)
        return image[..., rows, columns]


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """Return where the tiles of one axis begin; the last one ends at the border.

    Args:
        length: size of the axis.
        tile: size of a tile; an axis shorter than this has a single tile of its own size.
        overlap: least number of positions that neighbours share.
    """
    if length < 1 or tile < 1:
        raise PolyditError(f"tile size {tile} on a side of {length}: both must be 1 or more")
    if not 0 <= overlap < tile:
        raise PolyditError(f"tile overlap {overlap} must be at least 0 and smaller than the tile, {tile}")
    last = max(length - tile, 0)
    return [*range(0, last, tile - overlap), last]


def plan_tiles(height: int, width: int, tile: Size, overlap: Size) -> list[Tile]:
    """Return the tiles of a picture row by row, all of one size (see `tile_starts`)."""
    rows, columns = _axes(height, width, tile, overlap)
    return [Tile(top, left, rows.tile, columns.tile) for top in rows.starts for left in columns.starts]


def blend_profile(size: int, kind: Blend = "gaussian", axis: int = -1) -> Tensor:
    """Return the weights along one axis of a tile: (size,), float64, positive, not normalised.

    Args:
        size: tile length n, in pixels or latents.
        kind: ``"gaussian"``: exp(-((i - (n-1)/2) / n)^2 / 0.02); ``"cosine"``: the raised cosine
            sin^2(pi (i + 1/2) / n); ``"dit4sr"``: the Gaussian density as DiT4SR's released pipeline has it,
            whose midpoint is n/2 along the rows and (n-1)/2 along the columns.
        axis: -2 for the row direction, -1 for the columns; only ``"dit4sr"`` tells them apart.
    """
    position = torch.arange(size, dtype=torch.float64)
    if kind == "cosine":
        return torch.sin(math.pi * (position + 0.5) / size) ** 2
    if kind == "gaussian":
        return torch.exp(-(((position - (size - 1) / 2) / size) ** 2) / (2 * _GAUSSIAN_VARIANCE))
    if kind == "dit4sr":
        middle = size / 2 if axis == -2 else (size - 1) / 2
        density = torch.exp(-(((position - middle) / size) ** 2) / (2 * _GAUSSIAN_VARIANCE))
        return density / math.sqrt(2 * math.pi * _GAUSSIAN_VARIANCE)
    raise PolyditError(f"tile blend {kind!r} is not known: choose one of {', '.join(get_args(Blend))}")


def blend_weights(height: int, width: int, kind: Blend = "gaussian") -> Tensor:
    """Return the weights of a tile before normalisation: (height, width), float64 (see `blend_profile`)."""
    return blend_profile(height, kind, axis=-2)[:, None] * blend_profile(width, kind, axis=-1)


def normalised_profiles(
    length: int, starts: Sequence[int], tile: int, kind: Blend = "gaussian", axis: int = -1
) -> Tensor:
    """Return per-tile weights along one axis that sum to 1 at every position: (len(starts), tile), float32.

    Also what an average over overlapping time windows needs.
    """
    profile = blend_profile(tile, kind, axis)
    total = torch.zeros(length, dtype=torch.float64)
    for start in starts:
        total[start : start + tile] += profile
    return torch.stack([profile / total[start : start + tile] for start in starts]).float()


def crop_tiles(image: Tensor, tiles: Sequence[Tile], scale: int = 1) -> Tensor:
    """Stack crops along the batch axis, tile by tile: (len(tiles) * B, ..., h * scale, w * scale)."""
    return torch.cat([tile.crop(image, scale) for tile in tiles])


def tiled_apply(
    fn: Callable[[Tensor], Tensor],
    image: Tensor,
    tile: Size,
    overlap: Size,
    scale: int = 1,
    *,
    blend: Blend = "gaussian",
    batch_size: int = 1,
    progress: Progress | None = None,
) -> Tensor:
    """Apply ``fn`` to overlapping tiles and blend the results, accumulating in float32.

    Args:
        fn: maps (n, C, h, w) to (n, C', h * scale, w * scale); called with up to ``batch_size`` tiles.
        image: (B, C, H, W); any further axes between C and H pass through.
        tile: side of a tile in input pixels, or (height, width).
        overlap: pixels shared by neighbouring tiles, or (vertical, horizontal).
        scale: how much larger ``fn`` makes a picture; a whole number.
        blend: see `blend_profile`.
        batch_size: tiles per call (each carries the whole batch B).
        progress: called with (tiles done, tiles in all) after each call.

    Returns:
        (B, C', H * scale, W * scale) in the dtype and on the device of what ``fn`` returned. One tile that
        covers everything gives exactly ``fn(image)``.
    """
    height, width = image.shape[-2:]
    strips = _finished_rows(
        lambda tiles: fn(crop_tiles(image, tiles)),
        *_axes(height, width, tile, overlap),
        scale=scale,
        blend=blend,
        batch_size=batch_size,
        progress=progress,
    )
    return _assemble(strips, height * scale)


def multidiffusion(
    predict: Callable[[Tensor, Sequence[Tile]], Tensor],
    latents: Tensor,
    tile: Size,
    overlap: Size,
    *,
    blend: Blend = "gaussian",
    batch_size: int = 1,
) -> Tensor:
    """Average the predictions of overlapping tiles inside one sampling step.

    "MultiDiffusion: Fusing Diffusion Paths for Controlled Image Generation" (arXiv 2302.08113). The sampler
    then steps the whole latent with the averaged prediction.

    Args:
        predict: called with stacked crops (n * B, C, h, w) and their n tiles, so that a spatial condition can
            be cut alike (`crop_tiles`); returns a prediction of the shape of the crops.
        latents: (B, C, H, W).
        tile: side of a tile in latents, or (height, width).
        overlap: latents shared by neighbouring tiles, or (vertical, horizontal).
        blend: see `blend_profile`.
        batch_size: tiles per call.

    Returns:
        The averaged prediction, of the shape of ``latents``.
    """
    height, width = latents.shape[-2:]
    strips = _finished_rows(
        lambda tiles: predict(crop_tiles(latents, tiles), tiles),
        *_axes(height, width, tile, overlap),
        scale=1,
        blend=blend,
        batch_size=batch_size,
        progress=None,
    )
    return _assemble(strips, height)


def tiled_strips(
    fn: Callable[[Tensor], Tensor],
    crop: Callable[[Tile], Tensor],
    height: int,
    width: int,
    tile: Size,
    overlap: Size,
    scale: int = 1,
    *,
    blend: Blend = "gaussian",
    batch_size: int = 1,
    progress: Progress | None = None,
) -> Iterator[Tensor]:
    """Do what `tiled_apply` does for pictures too large to be held as floats: yield finished rows.

    Memory is one row of output tiles (``tile * scale`` rows of the output in float32), whatever the height.

    Args:
        fn: as in `tiled_apply`.
        crop: returns one tile of the input, (B, C, tile.height, tile.width); it may read it from 8-bit data.
        height: rows of the input.
        width: columns of the input.
        tile: side of a tile in input pixels, or (height, width).
        overlap: pixels shared by neighbouring tiles, or (vertical, horizontal).
        scale: how much larger ``fn`` makes a picture; a whole number.
        blend: see `blend_profile`.
        batch_size: tiles per call.
        progress: called with (tiles done, tiles in all) after each call.

    Yields:
        (B, C', rows, width * scale) from top to bottom, ``height * scale`` rows in all; the same values, bit
        for bit, as `tiled_apply`. A strip may be changed in place; it is a copy.
    """
    return _finished_rows(
        lambda tiles: fn(torch.cat([crop(one) for one in tiles])),
        *_axes(height, width, tile, overlap),
        scale=scale,
        blend=blend,
        batch_size=batch_size,
        progress=progress,
    )


@dataclass(frozen=True)
class _Axis:
    length: int
    tile: int
    starts: list[int]


def _axes(height: int, width: int, tile: Size, overlap: Size) -> tuple[_Axis, _Axis]:
    tiles = (tile, tile) if isinstance(tile, int) else tile
    overlaps = (overlap, overlap) if isinstance(overlap, int) else overlap
    rows, columns = (
        _Axis(length, min(size, length), tile_starts(length, size, shared))
        for length, size, shared in zip((height, width), tiles, overlaps, strict=True)
    )
    return rows, columns


def _finished_rows(
    run: Callable[[Sequence[Tile]], Tensor],
    rows: _Axis,
    columns: _Axis,
    *,
    scale: int,
    blend: Blend,
    batch_size: int,
    progress: Progress | None,
) -> Iterator[Tensor]:
    """The one loop: process tile rows from the top and yield the output rows that no later tile touches."""
    if batch_size < 1 or scale < 1:
        raise ValueError(f"tiling: batch_size ({batch_size}) and scale ({scale}) must be 1 or more")
    size = (rows.tile * scale, columns.tile * scale)
    starts = [top * scale for top in rows.starts], [left * scale for left in columns.starts]
    row_weights = normalised_profiles(rows.length * scale, starts[0], size[0], blend, axis=-2)
    column_weights = normalised_profiles(columns.length * scale, starts[1], size[1], blend, axis=-1)

    done, total = 0, len(rows.starts) * len(columns.starts)
    strip: Tensor | None = None  # (B, C', tile rows * scale, W * scale): one row of tiles
    for i, top in enumerate(rows.starts):
        for first in range(0, len(columns.starts), batch_size):
            indices = range(first, min(first + batch_size, len(columns.starts)))
            output = run([Tile(top, columns.starts[j], rows.tile, columns.tile) for j in indices])
            if tuple(output.shape[-2:]) != size or output.shape[0] % len(indices):
                raise ValueError(
                    f"tiling: {len(indices)} tiles of {rows.tile}x{columns.tile} at scale {scale} must come "
                    f"back as {size[0]}x{size[1]}, got {tuple(output.shape)}"
                )
            dtype = torch.promote_types(output.dtype, torch.float32)
            outputs = output.chunk(len(indices))
            if strip is None:
                shape = (*outputs[0].shape[:-1], columns.length * scale)
                strip = torch.zeros(shape, dtype=dtype, device=output.device)
                row_weights, column_weights = row_weights.to(strip), column_weights.to(strip)
            for j, part in zip(indices, outputs, strict=True):
                weight = row_weights[i][:, None] * column_weights[j]
                strip[..., starts[1][j] : starts[1][j] + size[1]] += part.to(dtype) * weight
            done += len(indices)
            if progress is not None:
                progress(done, total)
        assert strip is not None  # there is always a column
        finished = (starts[0][i + 1] - starts[0][i]) if i + 1 < len(rows.starts) else size[0]
        yield strip[..., :finished, :].to(output.dtype, copy=True)
        if finished < size[0]:
            # What the next tile row adds to moves to the top; clone, because the two ranges may overlap.
            strip[..., : size[0] - finished, :] = strip[..., finished:, :].clone()
        strip[..., size[0] - finished :, :] = 0


def _assemble(strips: Iterator[Tensor], height: int) -> Tensor:
    first = next(strips)
    if first.shape[-2] == height:
        return first
    whole = first.new_empty((*first.shape[:-2], height, first.shape[-1]))
    whole[..., : first.shape[-2], :] = first
    row = first.shape[-2]
    for strip in strips:
        whole[..., row : row + strip.shape[-2], :] = strip
        row += strip.shape[-2]
    return whole
