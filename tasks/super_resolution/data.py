"""Where super-resolution finds its pictures: a corpus, any folder, or data sets of pairs (DIV2K, RealSR, DRealSR)."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from glob import has_magic
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ...core.data.corpus.manifest import load_manifest
from ...core.data.degradation import PRESETS
from ...core.data.images import image_size, list_images
from ...core.data.pairs import LAYOUTS, Pair, find_pairs, match
from ...core.data.picture_lists import pictures_of
from ...core.data.streaming import ShardedPictures, is_sharded_folder
from ...core.errors import PolyditError
from ...core.training.data import TaskData
from .crops import DegradedCrops, PairedCrops, StreamedCrops, held_out_crops, held_out_pairs

__all__ = ["SuperResolutionData"]

HELD_OUT_SIDE = 192
HELD_OUT_COUNT = 16
Item = TypeVar("Item")


class SuperResolutionData(TaskData):
    """Pictures and how they are degraded, or pictures that come in pairs.

    Args:
        path: a corpus made by ``polydit corpus build``, any folder of pictures (searched recursively), or a data set
            of pairs; or shards made by ``polydit shards build``, a folder or an address such as ``s3://bucket/folder``
            (one crop of each picture in an epoch; they need ``val_path``).
        low_path: folder of the low-resolution partners of the pictures in ``path``, paired by their names without
            endings such as ``_HR``, ``_LR4`` or ``x4``.
        layout: ``pictures``: every picture is degraded (of DIV2K only ``DIV2K_train_HR``); ``auto``, ``div2k``,
            ``realsr``, ``drealsr`` or ``folders`` (``HR`` and ``LR``): ``path`` is such a data set of pairs.
        val_path: held-out pictures; without it, the corpus' or data set's own, or every 20th of the folder.
        crop: side of the high-resolution crops, in pixels.
        batch_size: crops per step.
        scales: factor -> relative frequency; of pairs, those factors are used that there are.
        degradations: preset -> relative frequency; see ``polydit.core.data.degradation``. Pairs have their own.
        num_workers: processes that prepare crops; 0 prepares them in the training process.
        samples_per_epoch: length of an epoch; crops are drawn at random.
        cache_megabytes: decoded pictures kept per worker.
        strict: fail on an unreadable picture instead of naming it and going on.
        seed: of all draws.

    Raises:
        PolyditError: an option is unknown or does not go with another one.
    """

    def __init__(
        self,
        path: str = "data/corpus",
        low_path: str | None = None,
        layout: str = "pictures",
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
        self.source = path
        self.order: Callable[[int], np.ndarray] | None = None
        self.path, self.val_path = Path(path).expanduser(), Path(val_path).expanduser() if val_path else None
        self.low_path, self.layout = Path(low_path).expanduser() if low_path else None, layout
        self.crop, self.scales, self.degradations = crop, scales, degradations
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        self.samples_per_epoch, self.cache_megabytes, self.strict = samples_per_epoch, cache_megabytes, strict
        unknown = sorted(set(degradations) - set(PRESETS))
        if unknown:
            raise PolyditError(
                f"--data.degradations: {unknown[0]!r} is unknown; choose from {', '.join(PRESETS)}"
            )
        for option, table in (("scales", scales), ("degradations", degradations)):
            if min(table.values(), default=-1) < 0 or sum(table.values()) <= 0:
                raise PolyditError(
                    f"--data.{option} {table}: give relative frequencies, none below zero and one above it"
                )
        if min(scales) < 1:
            raise PolyditError(
                f"--data.scales {scales}: {min(scales)} is no factor; give whole numbers from 1"
            )
        if crop < 1 or crop % math.lcm(*scales):
            raise PolyditError(
                f"--data.crop {crop}: does not divide by every factor in --data.scales {list(scales)}; "
                f"choose a multiple of {math.lcm(*scales)}"
            )
        layouts = ("pictures", "auto", *LAYOUTS)
        if layout not in layouts:
            raise PolyditError(f"--data.layout: {layout!r} is unknown; choose from {', '.join(layouts)}")
        if low_path and layout != "pictures":
            raise PolyditError(
                f"--data.low_path does not go with --data.layout {layout}; give one of the two"
            )

    def setup(self, stage: str | None = None) -> None:
        """Find the pictures or pairs; unreadable or too small ones are named and left out.

        Raises:
            PolyditError: a folder is missing, or holds nothing that can be used.
        """
        for option in ("path", "low_path", "val_path"):
            given = getattr(self, option)
            if given is not None and not given.exists() and not has_magic(str(given)):
                raise PolyditError(
                    f"--data.{option} {given}: no such file or folder; give one of pictures"
                    + (", or make one with `polydit corpus build`" if option == "path" else "")
                )
        options = {
            "crop": self.crop,
            "scales": self.scales,
            "length": self.samples_per_epoch,
            "seed": self.seed,
            "cache_megabytes": self.cache_megabytes,
            "strict": self.strict,
        }
        if is_sharded_folder(self.source):
            self._set_up_shards()
            return
        if self.low_path is not None or self.layout != "pictures":
            train_pairs, val_pairs = self.pairs()
            self.train_set = PairedCrops(train_pairs, **options)
            scale = max(val_pairs)
            held_out, side = self._held_out(val_pairs[scale], lambda pair: pair.hr)
            self.val_set = held_out_pairs(held_out, side // scale * scale, scale, self.strict)
            return
        train, val = self.files()
        self.train_set = DegradedCrops(train, degradations=self.degradations, **options)
        self._set_held_out(val)

    # -- pictures ------------------------------------------------------------------------------------------

    def _set_up_shards(self) -> None:
        if self.low_path is not None or self.layout != "pictures":
            raise PolyditError(
                f"--data.path {self.source}: shards hold pictures, no pairs; leave layout and low_path out"
            )
        if self.val_path is None:
            raise PolyditError(
                f"--data.val_path: {self.source} has no held-out pictures; name a folder of some"
            )
        shards = ShardedPictures(self.source)
        self.train_set = StreamedCrops(
            shards, self.crop, self.scales, self.degradations, self.seed, self.strict
        )
        self.order = partial(shards.order, self.seed)
        self._set_held_out(self._usable(list_images(self.val_path), self._check_picture, "pictures"))

    def _set_held_out(self, val: list[Path]) -> None:
        scale = max(self.scales)
        pictures, side = self._held_out(val, lambda path: path)
        presets = [*self.degradations]
        self.val_set = held_out_crops(pictures, side // scale * scale, scale, presets, self.strict)

    def files(self) -> tuple[list[Path], list[Path]]:
        """Training and held-out pictures that can be read and hold a crop."""
        manifest = self.path / "manifest.jsonl"
        div2k = sorted(self.path.glob("*_train_HR"))
        if manifest.is_file():
            records = [r for r in load_manifest(self.path) if r.kind == "photos"]
            train = [self.path / r.file for r in records if r.split == "train"]
            val = [self.path / r.file for r in records if r.split == "val"]
        elif div2k:
            train = [file for folder in div2k for file in list_images(folder)]
            folders = sorted(self.path.glob("*_valid_HR"))
            val = [file for folder in folders for file in list_images(folder)]
        else:
            train, val = [path for path, _ in pictures_of(self.path)], []
        if self.val_path is not None:
            val = list_images(self.val_path)
        train = self._usable(train, self._check_picture, "pictures")
        return (train, self._usable(val, self._check_picture, "pictures")) if val else split(train)

    def _check_picture(self, path: Path) -> None:
        width, height = image_size(path)
        if min(width, height) < self.crop:
            raise PolyditError(
                f"{path}: {width}x{height} is smaller than the crop of {self.crop}; lower --data.crop"
            )

    # -- pairs ---------------------------------------------------------------------------------------------

    def pairs(self) -> tuple[dict[int, list[Pair]], dict[int, list[Pair]]]:
        """Training and held-out pairs by their factor."""
        if self.low_path is not None:
            train, val = match(list_images(self.path), list_images(self.low_path)), []
        else:
            train = self._of_layout(self.path, "train")
            if self.val_path is not None:
                val = self._of_layout(self.val_path, "val")
            elif any(self._has_layout("val", s) for s in self.scales):
                val = self._of_layout(self.path, "val")
            else:
                val = []
        train = self._usable(train, self._factor, "pairs")
        if not val or set(val) >= set(train):
            train, val = split(train)
        else:
            val = self._usable(val, self._factor, "pairs")
        return self._by_factor(train), self._by_factor(val)

    def _has_layout(self, part: str, scale: int) -> bool:
        names = LAYOUTS if self.layout == "auto" else [self.layout]
        try:
            return any(LAYOUTS[name](self.path, part, scale) for name in names)
        except PolyditError:  # a folder without pictures
            return False

    def _of_layout(self, root: Path, part: str) -> list[Pair]:
        found: dict[Pair, None] = {}
        problems = []
        for scale in self.scales:
            try:
                found.update(dict.fromkeys(find_pairs(root, layout=self.layout, split=part, scale=scale)))
            except PolyditError as error:
                if self.strict:
                    raise
                problems.append((scale, error))
        if not found:
            raise problems[0][1]
        for scale, error in problems:
            print(f"no pairs of factor {scale}: {error}")  # noqa: T201
        return list(found)

    def _by_factor(self, pairs: list[Pair]) -> dict[int, list[Pair]]:
        groups: dict[int, list[Pair]] = {}
        for pair in pairs:
            groups.setdefault(self._factor(pair), []).append(pair)
        return groups

    def _factor(self, pair: Pair) -> int:
        """How much smaller the low-resolution picture is; by the headers of the two files."""
        high, low = image_size(pair.hr), image_size(pair.lr)
        factor = max(1, round(high[0] / low[0]))
        # The larger one may have up to factor - 1 pixels more than the smaller one accounts for.
        if factor not in self.scales or (high[0] // factor, high[1] // factor) != low:
            factors = ", ".join(map(str, self.scales))
            raise PolyditError(
                f"{pair.lr}: {low[0]}x{low[1]} is not {pair.hr.name} ({high[0]}x{high[1]}) divided by "
                f"{factors}; check --data.scales"
            )
        if min(high) < self.crop:
            raise PolyditError(
                f"{pair.hr}: {high[0]}x{high[1]} is smaller than the crop of {self.crop}; lower --data.crop"
            )
        return factor

    # -- both ----------------------------------------------------------------------------------------------

    def _usable(self, items: list[Item], check: Callable[[Item], Any], what: str) -> list[Item]:
        usable, refused = [], []
        for item in items:
            try:
                check(item)
            except PolyditError as error:
                if self.strict:
                    raise
                refused.append(str(error))
            else:
                usable.append(item)
        if not usable:
            raise PolyditError(
                f"{self.path}: none of {len(items)} {what} can be used; {refused[0] if refused else 'there is none'}"
            )
        for line in refused:
            print(f"skipped {line}")  # noqa: T201
        if refused:
            print(f"{len(refused)} of {len(items)} {what} skipped")  # noqa: T201
        return usable

    def _held_out(self, items: list[Item], picture: Callable[[Item], Path]) -> tuple[list[Item], int]:
        """Those to look at during training and the side of their crops, which is one for all."""
        sides = {id(item): min(image_size(picture(item))) for item in items}
        wanted = max(self.crop, HELD_OUT_SIDE)
        large = [item for item in items if sides[id(item)] >= wanted]
        chosen = (large or items)[:HELD_OUT_COUNT]
        return chosen, min(wanted, *(sides[id(item)] for item in chosen))


def split(items: list[Item]) -> tuple[list[Item], list[Item]]:
    """Training and held-out items of a folder that has no split of its own; a single one is both."""
    if len(items) < 2:
        return items, items
    held_out = set(range(0, len(items), 20)) if len(items) >= 20 else {0}
    return [x for i, x in enumerate(items) if i not in held_out], [items[i] for i in sorted(held_out)]
