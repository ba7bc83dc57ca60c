"""The samples of segmentation: composites, and pictures with masks, whole and as tiles with what is known of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ...core.data.composites import CompositeOptions, Compositor, recolor
from ...core.errors import PolyditError
from .folders import MaskFolder, edge_target

__all__ = ["CompositeSamples", "FolderSamples", "as_sample", "coarse_context", "tile_options"]

Pixels = NDArray[np.uint8]


def as_sample(
    picture: Pixels, mask: NDArray[Any], edges: NDArray[Any] | None = None, radius: int = 2
) -> dict[str, Tensor]:
    """(H, W, 3) uint8, and (H, W) of 0..255 or [0, 1], as tensors.

    Returns:
        ``picture`` (3, H, W) in [-1, 1], ``mask`` and ``edges`` (1, H, W) in [0, 1]; edges are made of the mask where
        they are not given.
    """
    soft = torch.from_numpy(_unit(mask))[None]
    made = edge_target(_bytes(mask), radius) if edges is None else edges
    rim = torch.from_numpy(_unit(made))[None]
    pixels = torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1))).float() / 127.5 - 1
    return {"picture": pixels, "mask": soft, "edges": rim}


def tile_options(options: CompositeOptions) -> CompositeOptions:
    """Composites as a tile of a larger picture sees them: large objects, much of them outside."""
    return replace(options, scale=(0.7, 2.5), inside=0.35, coverage=(0.02, 0.98), photo_zoom=(0.2, 0.7))


def coarse_context(mask: Tensor, rng: np.random.Generator) -> Tensor:
    """What a look from further away may have said of a mask (1, H, W): coarse, and wrong in places."""
    height, width = mask.shape[-2:]
    factor = rng.uniform(2, 8)
    size = (max(2, round(height / factor)), max(2, round(width / factor)))
    low = F.interpolate(mask[None], size, mode="bilinear", antialias=True, align_corners=False)
    logits = torch.logit(low * 0.96 + 0.02)
    for cells in (3, 8):  # mistakes of two sizes
        grid = torch.from_numpy(rng.standard_normal((1, 1, cells, cells), np.float32))
        logits = logits + rng.uniform(0, 2.5) * F.interpolate(grid, size, mode="bicubic", align_corners=False)
    said = torch.sigmoid(logits)
    return F.interpolate(said, (height, width), mode="bilinear", align_corners=False)[0].clamp(0, 1)


class CompositeSamples(Dataset[dict[str, Tensor]]):
    """Composites; sample i is a pure function of seed and i.

    Args:
        compositor: draws whole pictures.
        length: samples in an epoch.
        seed: of every draw.
        tiles: share of the samples that are tiles with a coarse context; None gives no context at all.
    """

    def __init__(
        self, compositor: Compositor, length: int, seed: int = 0, tiles: float | None = None
    ) -> None:
        self.whole, self.length, self.seed, self.tiles = compositor, length, seed, tiles
        self.part = compositor.with_options(tile_options(compositor.options)) if tiles else compositor

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((self.seed, index))
        is_tile = self.tiles is not None and rng.random() < self.tiles
        drawn = (self.part if is_tile else self.whole)(rng)
        sample = as_sample(drawn.image, drawn.alpha)
        if self.tiles is not None:
            known = coarse_context(sample["mask"], rng) if is_tile and rng.random() < 0.95 else None
            sample["context"] = torch.full_like(sample["mask"], 0.5) if known is None else known
        return sample


class FolderSamples(Dataset[dict[str, Tensor]]):
    """Pictures with masks, mirrored, turned, cropped at their rims and recoloured as DiffDIS does; made square.

    Args:
        folders: where they are.
        size: side of the samples in pixels.
        train: augment; and draw tiles.
        repeat: visits to each picture in an epoch.
        seed: of every draw.
        tiles: see :class:`CompositeSamples`.
        color: strength of the change of colours.
    """

    def __init__(
        self,
        folders: Sequence[MaskFolder],
        size: int,
        train: bool = True,
        repeat: int = 1,
        seed: int = 0,
        tiles: float | None = None,
        color: float = 0.3,
    ) -> None:
        self.items = [(folder, index) for folder in folders for index in range(len(folder))]
        self.size, self.train, self.repeat, self.seed = size, train, repeat, seed
        self.tiles, self.color = tiles, color
        self.bad: set[str] = set()

    def __len__(self) -> int:
        return len(self.items) * self.repeat

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((self.seed, index))
        for offset in range(len(self.items)):
            folder, number = self.items[(index + offset) % len(self.items)]
            is_tile = self.train and self.tiles is not None and rng.random() < self.tiles
            try:
                picture, mask, edges = folder.read(number, limit_side=4 * self.size)
            except PolyditError as error:
                line = str(error)
                if folder.strict:
                    raise
                if line not in self.bad:
                    self.bad.add(line)
                    print(f"skipped {line}; {len(self.bad)} of {len(self.items)} so far")  # noqa: T201
                continue
            return self._sample(picture, mask, edges, rng, is_tile)
        raise PolyditError(f"{folder[number].picture}: none of {len(self.items)} pictures can be read")

    def _sample(
        self, picture: Pixels, mask: Pixels, edges: Pixels, rng: np.random.Generator, is_tile: bool
    ) -> dict[str, Tensor]:
        whole = (self.size, self.size)
        maps = [Image.fromarray(part) for part in (picture, mask, edges)]
        if self.train:
            if rng.random() < 0.5:
                maps = [part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for part in maps]
            if rng.random() < 0.2:
                angle = rng.uniform(-15, 15)
                maps = [part.rotate(angle, Image.Resampling.BICUBIC) for part in maps]
            box = _tile(maps[0].size, self.size, rng) if is_tile else _rim(maps[0].size, rng)
            maps = [part.crop(box) for part in maps]
        resized = [np.asarray(part.resize(whole, Image.Resampling.BICUBIC)) for part in maps]
        colours = recolor(resized[0], rng, self.color) if self.train else resized[0]
        sample = as_sample(colours, resized[1], resized[2])
        if self.tiles is not None:
            known = coarse_context(sample["mask"], rng) if is_tile and rng.random() < 0.95 else None
            sample["context"] = torch.full_like(sample["mask"], 0.5) if known is None else known
        return sample


def _rim(size: tuple[int, int], rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Up to 3 % less at each side (published: 30 pixels of 1024)."""
    width, height = size
    left, right = (rng.uniform(0, 0.03, 2) * width).astype(int)
    top, bottom = (rng.uniform(0, 0.03, 2) * height).astype(int)
    return (
        int(left),
        int(top),
        max(int(left) + 1, width - int(right)),
        max(int(top) + 1, height - int(bottom)),
    )


def _tile(size: tuple[int, int], side: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """A square between the size of a tile and the whole picture."""
    width, height = size
    least = min(side, width, height)
    edge = int(rng.uniform(least, max(least, 0.8 * min(width, height))))
    left, top = int(rng.integers(width - edge + 1)), int(rng.integers(height - edge + 1))
    return left, top, left + edge, top + edge


def _unit(values: NDArray[Any]) -> NDArray[np.float32]:
    return values.astype(np.float32) / 255 if values.dtype == np.uint8 else values.astype(np.float32)


def _bytes(values: NDArray[Any]) -> Pixels:
    return values if values.dtype == np.uint8 else np.rint(values * 255).astype(np.uint8)
