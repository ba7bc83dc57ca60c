"""Training crops from a folder of pictures, in an order that is a pure function of seed and sample number."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from ..errors import PolyditError
from .degradation import Degradation
from .images import MAX_PIXELS, image_size, read_image, to_uint8
from .picture_lists import pictures_of

__all__ = ["CropSampler", "PictureCrops", "sample_generator"]


def sample_generator(seed: int, index: int) -> torch.Generator:
    """A CPU generator for one sample: the same for the same seed and number, in any worker.

    The two numbers are mixed (splitmix64), because neighbouring seeds of torch's generator give related first draws.
    """
    state = (seed * 0x9E3779B97F4A7C15 + index * 0xD1B54A32D192ED03 + 0x8CB92BA72F3D8DD7) & (2**64 - 1)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        state = ((state ^ (state >> shift)) * factor) & (2**64 - 1)
    return torch.Generator().manual_seed((state ^ (state >> 31)) & (2**63 - 1))


class PictureCrops(Dataset[dict[str, Any]]):
    """Crops of pictures, optionally degraded; a map-style data set.

    Sample number `i` is the same whatever the number of workers, and the numbers go on after ``len(dataset)``: number
    ``epoch * len(dataset) + i`` belongs to a later epoch and shows other crops (`CropSampler` counts like this). The
    order is random by itself, so the loader must not shuffle: pictures are visited in windows, and each gives
    `crops_per_image` crops before it leaves, so that decoding, the slow part, is shared by many samples.

    Args:
        root: a corpus made by ``polydit corpus build``, a folder, a pattern, or a list of files.
        split: ``train``, ``val``, ``reserved`` or None for all but reserved; see `pictures_of`.
        size: side of the square crop, pixels.
        degradation: makes the low-quality picture; without it only ``gt`` is returned.
        length: samples in an epoch; None is one visit to every picture (``crops_per_image`` each).
        crops_per_image: crops that a visit to a picture gives.
        window: pictures among which consecutive samples are mixed.
        cache_mb: decoded pictures that each worker keeps, megabytes.
        center: the centre crop of each picture instead, without flips, once (for validation).
        flips: mirror and turn by quarters at random.
        reduce_max: crops may be larger by up to this factor and are then reduced (bicubic); it sharpens soft pictures.
        tag: only pictures of a corpus with this tag (``photo`` or ``artwork``).
        seed: of the order and of every draw.
        strict: fail on a bad picture instead of skipping it.
        allow_reserved: needed to read the ``reserved`` split, which nothing may be trained on.
        return_records: add the degradation's record to the sample (as ``record``).
        max_pixels: larger pictures are refused.

    Each sample is a dict with ``gt`` (3, size, size) and, with a degradation, ``lq`` (3, size/scale, size/scale), both
    float32 in [-1, 1], and ``index``.

    Raises:
        PolyditError: no pictures, all of them bad or smaller than the crop, a size that the scale does not divide, or
            reserved pictures without being asked to.
    """

    def __init__(
        self,
        root: str | Path | Sequence[str | Path],
        *,
        split: str | None = None,
        size: int = 192,
        degradation: Degradation | None = None,
        length: int | None = None,
        crops_per_image: int = 16,
        window: int = 32,
        cache_mb: int = 512,
        center: bool = False,
        flips: bool = True,
        reduce_max: float = 1.0,
        tag: str | None = None,
        seed: int = 0,
        strict: bool = False,
        allow_reserved: bool = False,
        return_records: bool = False,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        if degradation is not None and size % degradation.scale:
            raise PolyditError(
                f"size {size}: is not a multiple of scale {degradation.scale}; choose another crop size"
            )
        if reduce_max < 1:
            raise PolyditError(f"reduce_max {reduce_max}: must be 1 or more")
        self.size, self.degradation, self.seed, self.strict = size, degradation, seed, strict
        self.crops_per_image, self.window = max(1, crops_per_image), max(1, window)
        self.cache_bytes, self.center, self.flips = cache_mb * 2**20, center, flips and not center
        self.reduce_max, self.return_records, self.max_pixels = reduce_max, return_records, max_pixels
        listed = pictures_of(root, split, tag=tag, allow_reserved=allow_reserved)
        self.paths = self._usable(listed, root)
        visits = len(self.paths) * (1 if center else self.crops_per_image)
        self.length = visits if length is None or center else length
        self._visits = visits
        self._cache: OrderedDict[int, np.ndarray] = OrderedDict()
        self._order: tuple[int, np.ndarray] | None = None
        self._bad: set[int] = set()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index < 0:
            index += self.length
        picture = (
            index % self._visits
            if self.center
            else int(self._pass(index // self._visits)[index % self._visits])
        )
        pixels = self._decoded(picture)
        generator = sample_generator(self.seed, picture if self.center else index)
        gt = _to_unit(self._crop(pixels, generator))
        if self.degradation is None:
            return {"gt": gt * 2 - 1, "index": index}
        pair = self.degradation(gt, generator)
        sample = {"gt": pair.gt * 2 - 1, "lq": pair.lq * 2 - 1, "index": index}
        return {**sample, "record": pair.record} if self.return_records else sample

    def __getstate__(self) -> dict[str, Any]:
        # Decoded pictures do not travel to spawned workers.
        return {**self.__dict__, "_cache": OrderedDict(), "_order": None}

    def _usable(self, listed: list[tuple[Path, tuple[int, int] | None]], root: object) -> list[Path]:
        usable, bad, small = [], [], 0
        for path, known in listed:
            try:
                width, height = known or image_size(path, max_pixels=self.max_pixels)
            except PolyditError as error:
                if self.strict:
                    raise
                bad.append(str(error))
                continue
            if min(width, height) < self.size:
                small += 1
            else:
                usable.append(path)
        for line in bad:
            warnings.warn(f"skipped: {line}", stacklevel=3)
        if bad or small:
            warnings.warn(
                f"{len(bad)} of {len(listed)} pictures could not be read, {small} are smaller than {self.size} pixels; "
                f"{len(usable)} are used",
                stacklevel=3,
            )
        if not usable:
            raise PolyditError(
                f"{root}: none of {len(listed)} pictures can be used ({len(bad)} bad, {small} smaller than the crop of "
                f"{self.size} pixels); give other pictures or a smaller size"
            )
        return usable

    def _pass(self, number: int) -> np.ndarray:
        """Picture of each sample of one pass over all pictures."""
        if self._order is None or self._order[0] != number:
            rng = np.random.default_rng([self.seed & (2**63 - 1), number])
            pictures = rng.permutation(len(self.paths)).astype(np.int32)
            parts = []
            for start in range(0, len(pictures), self.window):
                part = np.repeat(pictures[start : start + self.window], self.crops_per_image)
                parts.append(rng.permutation(part))
            self._order = (number, np.concatenate(parts))
        return self._order[1]

    def _decoded(self, picture: int) -> np.ndarray:
        """(H, W, 3) uint8 of a picture; of the next good one, if it turns out to be damaged."""
        for offset in range(len(self.paths)):
            number = (picture + offset) % len(self.paths)
            if number in self._bad:
                continue
            if number in self._cache:
                self._cache.move_to_end(number)
                return self._cache[number]
            try:
                pixels = to_uint8(read_image(self.paths[number], max_pixels=self.max_pixels)[0])
            except PolyditError as error:
                if self.strict:
                    raise
                self._bad.add(number)
                warnings.warn(
                    f"skipped: {error}; {len(self._bad)} of {len(self.paths)} pictures skipped so far",
                    stacklevel=4,
                )
                continue
            self._cache[number] = pixels
            held = sum(array.nbytes for array in self._cache.values())
            while held > self.cache_bytes and len(self._cache) > 1:
                held -= self._cache.popitem(last=False)[1].nbytes
            return pixels
        raise PolyditError(
            f"{self.paths[picture]}: none of {len(self.paths)} pictures can be read; replace them"
        )

    def _crop(self, pixels: np.ndarray, generator: torch.Generator) -> np.ndarray:
        height, width = pixels.shape[:2]
        side = self.size
        if self.center:
            top, left = (height - side) // 2, (width - side) // 2
            return pixels[top : top + side, left : left + side]
        draws = torch.rand(5, generator=generator, dtype=torch.float64).tolist()
        side = max(side, min(round(side * (1 + (self.reduce_max - 1) * draws[0])), height, width))
        top, left = int(draws[1] * (height - side + 1)), int(draws[2] * (width - side + 1))
        crop = pixels[top : top + side, left : left + side]
        if side != self.size:
            crop = np.asarray(Image.fromarray(crop).resize((self.size, self.size), Image.Resampling.BICUBIC))
        if self.flips:
            crop = np.rot90(crop, int(draws[3] * 4))
            crop = crop[:, ::-1] if draws[4] < 0.5 else crop
        return crop


class CropSampler(Sampler[int]):
    """Counts samples through the epochs; its whole state is how many were used.

    Args:
        dataset: gives the samples in an epoch by its length.
        used: samples that earlier runs have used.
    """

    def __init__(self, dataset: PictureCrops, used: int = 0) -> None:
        self.dataset, self.used = dataset, used

    def __iter__(self) -> Iterator[int]:
        """The numbers that are left in this epoch; the next iteration begins the next epoch."""
        start, length = self.used, len(self.dataset)
        stop = (start // length + 1) * length
        self.used = stop
        return iter(range(start, stop))

    def __len__(self) -> int:
        return len(self.dataset)

    def state_dict(self, used: int) -> dict[str, int]:
        """The state after `used` samples went into the model (a loader reads ahead, so the sampler cannot know)."""
        return {"used": used}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a state."""
        self.used = state["used"]


def _to_unit(crop: np.ndarray) -> Tensor:
    """(H, W, 3) uint8 to (3, H, W) float32 in [0, 1], contiguous."""
    return torch.from_numpy(np.ascontiguousarray(crop.transpose(2, 0, 1))).float().div_(255)
