"""Where try-on finds its pairs: drawn people and garments, VITON-HD, DressCode.

Every batch is a dict of float32 tensors: ``person`` and ``garment`` (B, 3, H, W) in [-1, 1], ``mask`` (B, 1, H, W) with
1 where the person is to be generated anew, ``masked_person`` (the person with 0, grey, under the mask),
``garment_mask`` (B, 1, H, W) of the garment laid flat, ``worn_mask`` (B, 1, H, W) of what is visible of it when worn.
Drawn scenes also know ``flow`` (B, 2, H, W), where in the garment's picture a pixel's cloth lies (column and row
in [-1, 1], as ``grid_sample`` takes them), and ``flow_known`` (B, 1, H, W), 1 where that is so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from ...core.data.held import HeldPictures
from ...core.data.images import image_size, read_image, to_uint8
from ...core.errors import PolyditError
from ...core.training.data import TaskData
from .fitting import fit_garment, fit_mask, fit_person
from .layouts import DRESSCODE_CATEGORIES, TryOnPair, dresscode, mask_of, usable, viton_hd
from .synthetic.scene import MASKS, Scene, draw_scene
from .synthetic.sources import CorpusSources, ProceduralSources, pictures_for

__all__ = [
    "DrawnPairs",
    "DressCode",
    "PhotographedPairs",
    "SyntheticTryOn",
    "TryOnData",
    "VitonHD",
    "as_sample",
]

KEPT = ("person", "garment", "mask", "worn", "garment_mask")


def as_sample(
    person: NDArray[np.uint8], garment: NDArray[np.uint8], mask: NDArray[np.uint8], **more: NDArray[np.uint8]
) -> dict[str, Tensor]:
    """A sample from 8-bit pictures (H, W, 3) and masks (H, W), 255 inside."""
    sample = {"person": _signed(person), "garment": _signed(garment), "mask": _share(mask)}
    sample["masked_person"] = sample["person"] * (1 - sample["mask"])
    return sample | {name: _share(values) for name, values in more.items()}


def _signed(pixels: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))).float().div_(127.5).sub_(1)


def _share(mask: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(mask[None])).float().div_(255)


class DrawnPairs(Dataset[dict[str, Tensor]]):
    """Drawn scenes; sample number i is the same in every process.

    Args:
        size: (height, width) in pixels.
        pictures: where fabrics, prints and backgrounds come from.
        split: ``train``, ``val`` or ``test``.
        distinct: how many scenes there are; each is drawn once and then kept as 8-bit levels.
        length: samples in an epoch; scenes repeat, every other time mirrored.
        mask: kind of the agnostic masks, at random when ``None``.
        shift: persons get the garment of the scene this many further on, so that ``person`` is what they wore and
            no answer is known; ``worn_mask``, ``flow`` and ``flow_known`` are left out.
        seed: of all draws.
    """

    def __init__(
        self,
        size: tuple[int, int],
        pictures: CorpusSources | ProceduralSources,
        *,
        split: str = "train",
        distinct: int = 10_000,
        length: int | None = None,
        mask: str | None = None,
        shift: int = 0,
        seed: int = 0,
    ) -> None:
        self.size, self.pictures, self.split, self.seed = size, pictures, split, seed
        self.distinct, self.length, self.mask, self.shift = distinct, length or distinct, mask, shift
        # Pages of memory that are not written to are not taken.
        self._kept = {
            name: np.empty((distinct, *size, *((3,) if name in ("person", "garment") else ())), np.uint8)
            for name in KEPT
        }
        # Half precision is a fiftieth of a pixel in a picture of a hundred.
        self._flow = np.empty((0 if shift else distinct, 2, *size), np.float16)
        self._drawn = np.zeros(distinct, bool)

    def __len__(self) -> int:
        return self.length

    def scene(self, number: int) -> Scene:
        """The scene that a number belongs to, drawn anew."""
        options: dict[str, Any] = {"split": self.split, "seed": self.seed, "mask": self.mask}
        if self.shift:
            options["garment"] = (number + self.shift) % self.distinct
        return draw_scene(number, self.size, self.pictures, **options)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        turn, number = divmod(index, self.distinct)
        if not self._drawn[number]:
            scene = self.scene(number)
            for name in KEPT:
                self._kept[name][number] = (getattr(scene, name).clip(0, 1) * 255 + 0.5).astype(np.uint8)
            if self.shift:
                other = draw_scene(
                    number, self.size, self.pictures, split=self.split, seed=self.seed, mask=self.mask
                )
                self._kept["person"][number] = (other.person.clip(0, 1) * 255 + 0.5).astype(np.uint8)
            else:
                self._flow[number] = scene.flow
            self._drawn[number] = True
        pictures = {name: values[number] for name, values in self._kept.items()}
        if turn % 2:
            pictures = {name: values[:, ::-1] for name, values in pictures.items()}
        worn = pictures.pop("worn")
        if self.shift:
            return as_sample(**pictures)
        flow = torch.from_numpy(self._flow[number]).float()
        if turn % 2:
            flow = flow.flip(-1) * torch.tensor([-1.0, 1.0]).view(2, 1, 1)
        known = {"flow": flow.nan_to_num(0.0), "flow_known": (~flow[:1].isnan()).float()}
        return as_sample(**pictures, worn_mask=worn) | known


class PhotographedPairs(Dataset[dict[str, Tensor]]):
    """Pairs of a data set on the disk, at one size: persons cut to their middle, garments filled up with white.

    Args:
        pairs: complete ones, see `layouts.usable`.
        size: (height, width) in pixels.
        megabytes: of fitted pictures kept in memory.
    """

    def __init__(self, pairs: list[TryOnPair], size: tuple[int, int], megabytes: int = 512) -> None:
        self.pairs, self.size = pairs, size
        self._persons = HeldPictures(self._person, megabytes * 3 // 8)
        self._garments = HeldPictures(self._garment, megabytes * 3 // 8)
        self._masks = HeldPictures(self._mask, megabytes // 4)
        self._pair_of = {pair.mask or pair.parse: pair for pair in pairs}

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        pair = self.pairs[index]
        source = pair.mask or pair.parse
        assert source is not None  # as `usable` made sure
        return as_sample(self._persons(pair.person), self._garments(pair.garment), self._masks(source))

    def _mask(self, source: Path) -> NDArray[np.uint8]:
        pair = self._pair_of[source]
        mask = mask_of(pair)
        (high, wide), (width, height) = mask.shape, image_size(pair.person)
        # DressCode's maps may be smaller than its photographs; other proportions belong to another picture.
        if abs(high * width - wide * height) > max(high, wide, height, width):
            raise PolyditError(
                f"{source}: {wide}x{high} has not the proportions of {pair.person.name} ({width}x{height}); "
                "is it of this person?"
            )
        fitted = fit_mask(mask, self.size)
        if not fitted.any():
            raise PolyditError(
                f"{source}: nothing of the mask is in the middle of {pair.person.name} that is used; "
                "crop the photograph to the person"
            )
        return fitted

    def _person(self, path: Path) -> NDArray[np.uint8]:
        return fit_person(to_uint8(read_image(path)[0]), self.size)

    def _garment(self, path: Path) -> NDArray[np.uint8]:
        return fit_garment(to_uint8(read_image(path)[0]), self.size)


class TryOnData(TaskData):
    """Pairs for try-on; subclasses say in ``setup`` what ``train_set`` and ``val_set`` are.

    Args:
        height, width: of all pictures, pixels.
        batch_size: pairs per step.
        num_workers: processes that prepare pairs; 0 prepares them in the training process.
        seed: of all draws.

    Raises:
        PolyditError: a size is too small.
    """

    train_set: Dataset[dict[str, Tensor]]
    val_set: Dataset[dict[str, Tensor]]

    def __init__(
        self, height: int = 96, width: int = 64, batch_size: int = 16, num_workers: int = 0, seed: int = 0
    ) -> None:
        super().__init__()
        for name, side in (("height", height), ("width", width)):
            if side < 16:
                raise PolyditError(f"--data.{name} {side}: too small; give 16 or more pixels")
        self.size = (height, width)
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed


class SyntheticTryOn(TryOnData):
    """Drawn people and garments.

    Args:
        corpus: a corpus made by ``polydit corpus build``, whose photographs and cut-outs become fabrics, prints and
            backgrounds; without one (``None``) these are drawn, too.
        height, width: of all pictures, pixels.
        batch_size: pairs per step.
        distinct: training scenes; each is drawn when it is first needed (a fiftieth of a second at 96 x 64) and kept in
            memory, so keep ``num_workers`` at 0 or 1.
        held_out: validation scenes.
        masks: ``body``, ``hull`` or ``painted`` agnostic masks only; all kinds, mostly ``body``, by default.
        num_workers: processes that prepare pairs.
        seed: of all draws.
    """

    drawn = True

    def __init__(
        self,
        corpus: str | None = "data/corpus",
        height: int = 96,
        width: int = 64,
        batch_size: int = 16,
        distinct: int = 10_000,
        held_out: int = 64,
        masks: str | None = None,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(height, width, batch_size, num_workers, seed)
        if masks is not None and masks not in MASKS:
            raise PolyditError(f"--data.masks: {masks!r} is unknown; choose from {', '.join(MASKS)}")
        if min(distinct, held_out) < 1:
            raise PolyditError("--data.distinct, --data.held_out: give 1 or more scenes")
        self.corpus, self.masks, self.distinct, self.held_out = corpus, masks, distinct, held_out

    def setup(self, stage: str | None = None) -> None:
        """Make the two sets; scenes are drawn when they are asked for.

        Raises:
            PolyditError: it is not there, or has no photographs or cut-outs.
        """
        self.train_set = DrawnPairs(
            self.size,
            self.pictures("train"),
            distinct=self.distinct,
            length=max(self.distinct, 1_000_000),
            mask=self.masks,
            seed=self.seed,
        )
        self.val_set = DrawnPairs(
            self.size, self.pictures("val"), split="val", distinct=self.held_out, mask="body", seed=self.seed
        )

    def pictures(self, split: str) -> CorpusSources | ProceduralSources:
        """Where a split's fabrics, prints and backgrounds come from."""
        return pictures_for(self.corpus, split)


class _OnDisk(TryOnData):
    """What the data sets on the disk share."""

    def __init__(
        self,
        path: str,
        height: int,
        width: int,
        batch_size: int,
        held_out: int,
        num_workers: int,
        strict: bool,
        seed: int,
    ) -> None:
        super().__init__(height, width, batch_size, num_workers, seed)
        self.path, self.held_out, self.strict = Path(path).expanduser(), held_out, strict

    def pairs(self, split: Any, paired: bool = True) -> list[TryOnPair]:
        """The pairs that the data set lists."""
        raise NotImplementedError

    def complete_pairs(self, split: Any, paired: bool = True) -> list[TryOnPair]:
        """The pairs whose files are there; the others are told, unless ``strict`` refuses them.

        Raises:
            PolyditError: the data set is damaged, or has no complete pair.
        """
        listed = self.pairs(split, paired)
        good, lines = usable(listed, self.path, self.strict)
        for line in lines[:5]:
            print(f"skipped {line}")  # noqa: T201
        if lines:
            print(f"{len(lines)} of {len(listed)} pairs of {self.path} skipped")  # noqa: T201
        return good

    def setup(self, stage: str | None = None) -> None:
        """Read the lists.

        Raises:
            PolyditError: the data set is not there or damaged, or has no complete pair.
        """
        held_out = self.complete_pairs("test")[: self.held_out]
        self.val_set = PhotographedPairs(held_out, self.size)
        if stage in (None, "fit"):
            self.train_set = PhotographedPairs(self.complete_pairs("train"), self.size)


class VitonHD(_OnDisk):
    """VITON-HD in its own layout, see `layouts.viton_hd`.

    Args:
        path: folder with ``train``, ``test`` and the lists of pairs.
        height, width: of all pictures, pixels; multiples of 16 where an autoencoder and a patch size of 2 follow.
        batch_size: pairs per step.
        held_out: pairs of the test list to validate on.
        num_workers: processes that prepare pairs.
        strict: fail on a pair that lacks a file instead of naming it and going on.
        seed: of the order.
    """

    def __init__(
        self,
        path: str = "data/VITON-HD",
        height: int = 1024,
        width: int = 768,
        batch_size: int = 1,
        held_out: int = 32,
        num_workers: int = 1,
        strict: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(path, height, width, batch_size, held_out, num_workers, strict, seed)

    def pairs(self, split: Any, paired: bool = True) -> list[TryOnPair]:
        """The pairs that the data set lists."""
        return viton_hd(self.path, split, paired)


class DressCode(_OnDisk):
    """DressCode in its own layout, see `layouts.dresscode`.

    Args:
        path: folder with ``upper_body``, ``lower_body`` and ``dresses``.
        categories: which of these.
        height, width: of all pictures, pixels; multiples of 16 where an autoencoder and a patch size of 2 follow.
        batch_size: pairs per step.
        held_out: pairs of the test lists to validate on.
        num_workers: processes that prepare pairs.
        strict: fail on a pair that lacks a file instead of naming it and going on.
        seed: of the order.
    """

    def __init__(
        self,
        path: str = "data/DressCode",
        categories: list[str] = list(DRESSCODE_CATEGORIES),  # noqa: B006 - read only; the parser shows it
        height: int = 1024,
        width: int = 768,
        batch_size: int = 1,
        held_out: int = 32,
        num_workers: int = 1,
        strict: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(path, height, width, batch_size, held_out, num_workers, strict, seed)
        self.categories = categories

    def pairs(self, split: Any, paired: bool = True) -> list[TryOnPair]:
        """The pairs that the data set lists."""
        return dresscode(self.path, split, paired, self.categories)
