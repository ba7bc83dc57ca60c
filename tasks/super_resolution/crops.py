"""The samples of super-resolution: degraded crops of pictures, aligned crops of pairs, and held-out ones."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ...core.data.degradation import Degradation
from ...core.data.images import image_size, read_image, to_uint8
from ...core.data.pairs import Pair, PairedPictures
from .formulation import upsample

__all__ = ["DegradedCrops", "HeldOutCrops", "HeldOutPairs", "PairedCrops"]


class PictureCache:
    """Reads pictures as (H, W, 3) uint8 and keeps the ones used last: decoding is far slower than cropping.

    Args:
        megabytes: decoded pictures kept; at least one is, whatever its size.
    """

    def __init__(self, megabytes: int) -> None:
        self.bytes = megabytes * 2**20
        self._held: OrderedDict[Path, np.ndarray] = OrderedDict()

    def __call__(self, path: Path) -> np.ndarray:
        if path in self._held:
            self._held.move_to_end(path)
            return self._held[path]
        picture = self._held[path] = to_uint8(read_image(path)[0])
        while sum(p.nbytes for p in self._held.values()) > self.bytes and len(self._held) > 1:
            self._held.popitem(last=False)
        return picture


class DegradedCrops(Dataset[dict[str, Any]]):
    """Random crops of pictures and what a degradation leaves of them; sample i is a pure function of seed and i.

    Args:
        files: the pictures.
        crop: side of a crop in pixels.
        scales: factor -> relative frequency.
        degradations: preset -> relative frequency.
        length: samples in all.
        seed: of every draw.
        cache_megabytes: see `PictureCache`; each worker has its own.
    """

    def __init__(
        self,
        files: list[Path],
        crop: int,
        scales: dict[int, float],
        degradations: dict[str, float],
        length: int,
        seed: int = 0,
        cache_megabytes: int = 800,
    ) -> None:
        self.files, self.crop, self.length, self.seed = files, crop, length, seed
        areas = np.array([np.prod(image_size(f), dtype=float) for f in files])
        self.weights = areas / areas.sum()
        self.scales, self.scale_weights = list(scales), _normalised(scales)
        self.presets, self.preset_weights = list(degradations), _normalised(degradations)
        self.read = PictureCache(cache_megabytes)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng((self.seed, index))
        picture = self.read(self.files[rng.choice(len(self.files), p=self.weights)])
        top, left = (int(rng.integers(side - self.crop + 1)) for side in picture.shape[:2])
        part = picture[top : top + self.crop, left : left + self.crop]
        if rng.random() < 0.5:
            part = part[:, ::-1]
        part = np.rot90(part, rng.integers(4))
        high = torch.from_numpy(np.ascontiguousarray(part)).permute(2, 0, 1).float() / 255
        scale = self.scales[rng.choice(len(self.scales), p=self.scale_weights)]
        preset = self.presets[rng.choice(len(self.presets), p=self.preset_weights)]
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        pair = Degradation(preset, scale)(high, generator)
        return as_sample(pair.lq * 2 - 1, pair.gt * 2 - 1, scale, keep_low=len(self.scales) == 1)


class PairedCrops(Dataset[dict[str, Any]]):
    """Aligned random crops of pairs, where no degradation has to be invented; a pure function of seed and number.

    Args:
        pairs: factor -> its pairs.
        crop: side of the high-resolution crop in pixels.
        scales: factor -> relative frequency.
        length: samples in all.
        seed: of every draw.
        cache_megabytes: see `PictureCache`; each worker has its own.
    """

    def __init__(
        self,
        pairs: dict[int, list[Pair]],
        crop: int,
        scales: dict[int, float],
        length: int,
        seed: int = 0,
        cache_megabytes: int = 800,
    ) -> None:
        self.length, self.seed = length, seed
        read = PictureCache(cache_megabytes)
        self.sets = [
            PairedPictures(found, scale=s, size=crop, seed=seed, read=read) for s, found in pairs.items()
        ]
        self.weights = _normalised({s: scales[s] for s in pairs})

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng((self.seed, index))
        chosen = self.sets[rng.choice(len(self.sets), p=self.weights)]
        # Numbers beyond the set's length show other crops of the same pairs.
        sample = chosen[int(rng.integers(2**31))]
        return as_sample(sample["lq"], sample["gt"], chosen.scale, keep_low=len(self.sets) == 1)


class HeldOutPairs(Dataset[dict[str, Any]]):
    """The aligned centre crops of pairs of one factor, always the same."""

    def __init__(self, pairs: list[Pair], crop: int, scale: int) -> None:
        self.pairs, self.crop = PairedPictures(pairs, scale=scale), crop

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample, scale = self.pairs[index], self.pairs.scale
        side = self.crop // scale
        top, left = ((length - side) // 2 for length in sample["lq"].shape[1:])
        low = sample["lq"][:, top : top + side, left : left + side]
        top, left = top * scale, left * scale
        high = sample["gt"][:, top : top + side * scale, left : left + side * scale]
        return as_sample(low, high, scale)


class HeldOutCrops(Dataset[dict[str, Any]]):
    """The centre crop of each picture at one factor, once per degradation, always the same."""

    def __init__(self, files: list[Path], crop: int, scale: int, degradations: list[str]) -> None:
        self.pairs = [(path, preset) for path in files for preset in degradations]
        self.crop, self.scale = crop, scale

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path, preset = self.pairs[index]
        picture = to_uint8(read_image(path)[0])
        top, left = ((side - self.crop) // 2 for side in picture.shape[:2])
        part = np.ascontiguousarray(picture[top : top + self.crop, left : left + self.crop])
        high = torch.from_numpy(part).permute(2, 0, 1).float() / 255
        pair = Degradation(preset, self.scale)(high, torch.Generator().manual_seed(index))
        return as_sample(pair.lq * 2 - 1, pair.gt * 2 - 1, self.scale)


def as_sample(low: Tensor, high: Tensor, scale: int, keep_low: bool = True) -> dict[str, Any]:
    """Two pictures (3, H, W) in [-1, 1] to a sample: ``high``, ``enlarged`` (of its size), ``low``, and the factor.

    ``low`` is left out where factors are mixed: its sizes would differ within a batch.
    """
    sample = {"high": high, "enlarged": upsample(low[None], scale)[0], "scale": scale}
    return {**sample, "low": low} if keep_low else sample


def _normalised(table: dict[Any, float]) -> np.ndarray:
    weights = np.array(list(table.values()), dtype=float)
    return weights / weights.sum()
