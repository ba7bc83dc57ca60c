"""Training and held-out pairs: degraded crops of a folder of pictures, or the paired layouts of DIV2K and RealSR."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ...core.data.corpus.manifest import load_manifest
from ...core.data.degradation import PRESETS, Degradation
from ...core.data.images import image_size, list_images, read_image
from ...core.errors import PolyditError
from ...core.training.resume import resumable_loader
from .formulation import upsample

__all__ = ["DegradedCrops", "SuperResolutionData"]


class DegradedCrops(Dataset[dict[str, Any]]):
    """Random crops of pictures and what a degradation leaves of them; sample i is a pure function of seed and i.

    Args:
        files: the pictures.
        crop: side of a crop in pixels.
        scales: factor -> relative frequency.
        degradations: preset -> relative frequency.
        length: samples in all.
        seed: of every draw.
        cache_megabytes: decoded pictures that a worker keeps, since decoding is far slower than cropping.
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
        self.cache_bytes = cache_megabytes * 2**20
        self._cache: OrderedDict[Path, np.ndarray] = OrderedDict()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng((self.seed, index))
        picture = self._picture(self.files[rng.choice(len(self.files), p=self.weights)])
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
        return as_sample(pair.lq, pair.gt, scale, keep_low=len(self.scales) == 1)

    def _picture(self, path: Path) -> np.ndarray:
        if path in self._cache:
            self._cache.move_to_end(path)
            return self._cache[path]
        picture, _ = read_image(path)
        self._cache[path] = picture
        while sum(p.nbytes for p in self._cache.values()) > self.cache_bytes and len(self._cache) > 1:
            self._cache.popitem(last=False)
        return picture


class HeldOutCrops(Dataset[dict[str, Any]]):
    """The centre crop of each picture at one factor, once per degradation, always the same."""

    def __init__(self, files: list[Path], crop: int, scale: int, degradations: list[str]) -> None:
        self.pairs = [(path, preset) for path in files for preset in degradations]
        self.crop, self.scale = crop, scale

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path, preset = self.pairs[index]
        picture, _ = read_image(path)
        top, left = ((side - self.crop) // 2 for side in picture.shape[:2])
        part = np.ascontiguousarray(picture[top : top + self.crop, left : left + self.crop])
        high = torch.from_numpy(part).permute(2, 0, 1).float() / 255
        pair = Degradation(preset, self.scale)(high, torch.Generator().manual_seed(index))
        return as_sample(pair.lq, pair.gt, self.scale)


def as_sample(low: Tensor, high: Tensor, scale: int, keep_low: bool = True) -> dict[str, Any]:
    """Pixels in [0, 1] to a sample: ``high``, ``enlarged`` and ``low`` (3, H, W) in [-1, 1], and the factor.

    ``low`` is left out where factors are mixed: its sizes would differ within a batch.
    """
    high, low = high * 2 - 1, low * 2 - 1
    sample = {"high": high, "enlarged": upsample(low[None], scale)[0], "scale": scale}
    return {**sample, "low": low} if keep_low else sample


def _normalised(table: dict[Any, float]) -> np.ndarray:
    weights = np.array(list(table.values()), dtype=float)
    return weights / weights.sum()


class SuperResolutionData(LightningDataModule):
    """Pictures and how they are degraded.

    Args:
        path: a corpus made by ``polydit corpus build``, or any folder of pictures (searched recursively).
        val_path: held-out pictures; without it, the corpus' own held-out split, or every 20th picture of the folder.
        crop: side of the high-resolution crops, in pixels.
        batch_size: crops per step.
        scales: factor -> relative frequency.
        degradations: preset -> relative frequency; see ``polydit.core.data.degradation``.
        num_workers: processes that prepare crops.
        samples_per_epoch: length of an epoch; crops are drawn at random.
        cache_megabytes: decoded pictures kept per worker.
        strict: fail on an unreadable picture instead of naming it and going on.
        seed: of all draws.
    """

    def __init__(
        self,
        path: str = "data/corpus",
        val_path: str | None = None,
        crop: int = 96,
        batch_size: int = 8,
        scales: dict[int, float] = {4: 1.0},  # noqa: B006 - read only; the parser shows it
        degradations: dict[str, float] = {"bicubic": 1.0},  # noqa: B006
        num_workers: int = 1,
        samples_per_epoch: int = 1_000_000,
        cache_megabytes: int = 800,
        strict: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.options: dict[str, Any] = {"crop": crop, "scales": scales, "degradations": degradations}
        self.path, self.val_path = Path(path), Path(val_path) if val_path else None
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        self.samples_per_epoch, self.cache_megabytes, self.strict = samples_per_epoch, cache_megabytes, strict
        unknown = sorted(set(degradations) - set(PRESETS))
        if unknown:
            raise PolyditError(
                f"--data.degradations: {unknown[0]!r} is unknown; choose from {', '.join(PRESETS)}"
            )
        if any(crop % s for s in scales):
            raise PolyditError(
                f"--data.crop {crop} must divide by every factor in --data.scales {list(scales)}"
            )

    def setup(self, stage: str | None = None) -> None:
        """Find the pictures; unreadable or too small ones are named and left out."""
        train, val = self.files()
        if stage in (None, "fit"):
            self.train_set = DegradedCrops(
                train,
                length=self.samples_per_epoch,
                seed=self.seed,
                cache_megabytes=self.cache_megabytes,
                **self.options,
            )
        crop = max(self.options["crop"], 192)
        val = [f for f in val if min(image_size(f)) >= crop]
        self.val_set = HeldOutCrops(
            val[:16], crop, max(self.options["scales"]), [*self.options["degradations"]]
        )

    def files(self) -> tuple[list[Path], list[Path]]:
        """Training and held-out pictures that can be read and hold a crop."""
        manifest = self.path / "manifest.jsonl"
        if manifest.is_file():
            records = [r for r in load_manifest(self.path) if r.kind == "photos"]
            train = [self.path / r.file for r in records if r.split == "train"]
            val = [self.path / r.file for r in records if r.split == "val"]
        else:
            found = list_images(self.path)
            val = found[::20] if len(found) >= 20 else found[:1]
            train = [f for f in found if f not in set(val)] or found
        if self.val_path is not None:
            val = list_images(self.val_path)
        return self._usable(train), self._usable(val)

    def _usable(self, files: list[Path]) -> list[Path]:
        usable, refused = [], []
        for path in files:
            try:
                width, height = image_size(path)
                if min(width, height) < self.options["crop"]:
                    raise PolyditError(
                        f"{path}: {width}x{height} is smaller than the crop of {self.options['crop']}"
                    )
                usable.append(path)
            except PolyditError as error:
                if self.strict:
                    raise
                refused.append(str(error))
        for line in refused:
            print(f"skipped {line}")  # noqa: T201
        if not usable:
            raise PolyditError(
                f"{self.path}: none of {len(files)} pictures can be used ({len(refused)} refused); "
                "give a folder with larger pictures or a smaller --data.crop"
            )
        return usable

    def train_dataloader(self) -> DataLoader[Any]:
        """Crops in an order that depends on the seed only."""
        return resumable_loader(
            self.train_set,
            self.trainer,
            self.batch_size,
            seed=self.seed,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )

    def val_dataloader(self) -> DataLoader[Any]:
        """The fixed held-out crops."""
        return DataLoader(self.val_set, batch_size=4)

    test_dataloader = val_dataloader
