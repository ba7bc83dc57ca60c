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
from ...core.data.streaming import ShardedPictures
from ...core.errors import PolyditError
from .formulation import upsample

__all__ = ["DegradedCrops", "PairedCrops", "StreamedCrops", "held_out_crops", "held_out_pairs"]


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


class Damaged:
    """Files that turn out to be bad when they are decoded: each is named once, with the count so far.

    Args:
        total: files in all; when every one was bad, the last error is raised.
        strict: raise the first one.
    """

    def __init__(self, total: int, strict: bool) -> None:
        self.total, self.strict = total, strict
        self.seen: set[str] = set()

    def __call__(self, error: PolyditError) -> None:
        """Take note of `error`, or raise it."""
        line = str(error)
        if line not in self.seen:
            self.seen.add(line)
            print(f"skipped {line}; {len(self.seen)} of {self.total} so far")  # noqa: T201
        if self.strict or len(self.seen) >= self.total:
            raise error


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
        strict: fail on a damaged picture instead of drawing another one.
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
        strict: bool = False,
    ) -> None:
        self.files, self.crop, self.length, self.seed = files, crop, length, seed
        areas = np.array([np.prod(image_size(f), dtype=float) for f in files])
        self.weights = areas / areas.sum()
        self.scales, self.scale_weights = list(scales), _normalised(scales)
        self.presets, self.preset_weights = list(degradations), _normalised(degradations)
        self.read = PictureCache(cache_megabytes)
        self.damaged = Damaged(len(files), strict)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng((self.seed, index))
        while True:
            try:
                return self._draw(rng)
            except PolyditError as error:
                self.damaged(error)

    def _draw(self, rng: np.random.Generator) -> dict[str, Any]:
        return self._degraded_crop(self.read(self.files[rng.choice(len(self.files), p=self.weights)]), rng)

    def _degraded_crop(self, picture: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
        top, left = (int(rng.integers(side - self.crop + 1)) for side in picture.shape[:2])
        part = picture[top : top + self.crop, left : left + self.crop]
        if rng.random() < 0.5:
            part = part[:, ::-1]
        part = np.rot90(part, rng.integers(4))
        high = _unit(part)
        scale = self.scales[rng.choice(len(self.scales), p=self.scale_weights)]
        preset = self.presets[rng.choice(len(self.presets), p=self.preset_weights)]
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        pair = Degradation(preset, scale)(high, generator)
        return as_sample(pair.lq * 2 - 1, pair.gt * 2 - 1, scale, keep_low=len(self.scales) == 1)


class StreamedCrops(DegradedCrops):
    """The same from shards: one crop of each picture in an epoch, in the order in which they are read.

    Args:
        shards: the pictures.
        crop: side of a crop in pixels; smaller pictures are passed over.
        scales: factor -> relative frequency.
        degradations: preset -> relative frequency.
        seed: of every draw.
        strict: fail on a damaged picture instead of taking the next one.
    """

    def __init__(
        self,
        shards: ShardedPictures,
        crop: int,
        scales: dict[int, float],
        degradations: dict[str, float],
        seed: int = 0,
        strict: bool = False,
    ) -> None:
        self.shards, self.crop, self.length, self.seed = shards, crop, len(shards), seed
        self.scales, self.scale_weights = list(scales), _normalised(scales)
        self.presets, self.preset_weights = list(degradations), _normalised(degradations)
        self.damaged = Damaged(len(shards), strict)

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng((self.seed, index))
        while True:
            try:
                sample = self.shards[index]
                picture = sample["picture"]
                if min(picture.shape[:2]) < self.crop:
                    height, width = picture.shape[:2]
                    raise PolyditError(
                        f"{sample['name']}: {width}x{height} is smaller than the crop of {self.crop}; lower --data.crop"
                    )
                return self._degraded_crop(picture, rng)
            except PolyditError as error:
                self.damaged(error)
                index += 1


class PairedCrops(Dataset[dict[str, Any]]):
    """Aligned random crops of pairs, where no degradation has to be invented; a pure function of seed and number.

    Args:
        pairs: factor -> its pairs.
        crop: side of the high-resolution crop in pixels.
        scales: factor -> relative frequency.
        length: samples in all.
        seed: of every draw.
        cache_megabytes: see `PictureCache`; each worker has its own.
        strict: fail on a damaged picture instead of drawing another one.
    """

    def __init__(
        self,
        pairs: dict[int, list[Pair]],
        crop: int,
        scales: dict[int, float],
        length: int,
        seed: int = 0,
        cache_megabytes: int = 800,
        strict: bool = False,
    ) -> None:
        self.length, self.seed = length, seed
        read = PictureCache(cache_megabytes)
        self.sets = [
            PairedPictures(found, scale=s, size=crop, seed=seed, read=read) for s, found in pairs.items()
        ]
        self.weights = _normalised({s: scales[s] for s in pairs})
        self.damaged = Damaged(sum(map(len, pairs.values())), strict)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng((self.seed, index))
        while True:
            chosen = self.sets[rng.choice(len(self.sets), p=self.weights)]
            try:
                # Numbers beyond the set's length show other crops of the same pairs.
                sample = chosen[int(rng.integers(2**31))]
            except PolyditError as error:
                self.damaged(error)
            else:
                return as_sample(sample["lq"], sample["gt"], chosen.scale, keep_low=len(self.sets) == 1)


def held_out_crops(
    files: list[Path], crop: int, scale: int, degradations: list[str], strict: bool = False
) -> list[dict[str, Any]]:
    """The centre crop of each picture at one factor, once per degradation, always the same."""
    samples, damaged = [], Damaged(len(files), strict)
    for number, path in enumerate(files):
        try:
            picture = to_uint8(read_image(path)[0])
        except PolyditError as error:
            damaged(error)
            continue
        top, left = ((side - crop) // 2 for side in picture.shape[:2])
        high = _unit(picture[top : top + crop, left : left + crop])
        for i, preset in enumerate(degradations):
            generator = torch.Generator().manual_seed(number * len(degradations) + i)
            pair = Degradation(preset, scale)(high, generator)
            samples.append(as_sample(pair.lq * 2 - 1, pair.gt * 2 - 1, scale))
    return samples


def held_out_pairs(pairs: list[Pair], crop: int, scale: int, strict: bool = False) -> list[dict[str, Any]]:
    """The aligned centre crops of pairs of one factor, always the same."""
    samples, damaged = [], Damaged(len(pairs), strict)
    whole, side = PairedPictures(pairs, scale=scale), crop // scale
    for number in range(len(pairs)):
        try:
            pair = whole[number]
        except PolyditError as error:
            damaged(error)
            continue
        top, left = ((length - side) // 2 for length in pair["lq"].shape[1:])
        low = pair["lq"][:, top : top + side, left : left + side]
        top, left = top * scale, left * scale
        high = pair["gt"][:, top : top + crop, left : left + crop]
        samples.append(as_sample(low.clone(), high.clone(), scale))  # not views of the whole pictures
    return samples


def as_sample(low: Tensor, high: Tensor, scale: int, keep_low: bool = True) -> dict[str, Any]:
    """Two pictures (3, H, W) in [-1, 1] to a sample: ``high``, ``enlarged`` (of its size), ``low``, and the factor.

    ``low`` is left out where factors are mixed: its sizes would differ within a batch.
    """
    sample = {"high": high, "enlarged": upsample(low[None], scale)[0], "scale": scale}
    return {**sample, "low": low} if keep_low else sample


def _unit(part: np.ndarray) -> Tensor:
    """(H, W, 3) uint8 to (3, H, W) in [0, 1]; copied, since Pillow's pixels must not be written to."""
    return torch.from_numpy(part.copy()).permute(2, 0, 1).float() / 255


def _normalised(table: dict[Any, float]) -> np.ndarray:
    weights = np.array(list(table.values()), dtype=float)
    return weights / weights.sum()
