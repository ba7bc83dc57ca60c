"""Pictures with masks and depth: composites with a made depth, or DIS5K's layout with ``depth_*`` folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ...core.data.composites import CompositeOptions, Compositor, recolor
from ...core.errors import PolyditError
from ...core.training.data import TaskData
from .depth_scenes import draw_scene
from .folders import MaskFolder, find_layout, read_mask

__all__ = ["DepthFolderSamples", "DepthSceneSamples", "DepthSegmentationData"]

TARGET = "depth_large_1024"
"""The folder that the refined depth is compared with, where there is one."""


class DepthSegmentationData(TaskData):
    """Samples ``picture`` (3, H, W) in [-1, 1], ``mask``, ``depth`` and ``depth_target`` (1, H, W) in [0, 1].

    Args:
        path: a corpus made by ``polydit corpus build`` (composites with a made depth), or the root of a data set of
            pictures and masks with folders ``depth_small``, ``depth_base``, ... beside them; one of them is drawn for
            each sample. `polydit segmentation depth` makes such folders.
        layout: of the data set, as in `SegmentationData`.
        size: side of the samples in pixels; of a PDFNet, a multiple of its ``multiple``.
        batch_size: samples per step; published: 1.
        composites: how composites are drawn.
        others: least and most cut-outs that lie flat in the background of a composite.
        num_workers: processes that prepare samples; 0 prepares them in the training process.
        samples_per_epoch: length of an epoch of composites.
        held_out: held-out samples to look at.
        cache_megabytes: decoded pictures kept per worker.
        seed: of all draws.
    """

    def __init__(
        self,
        path: str = "data/corpus",
        layout: str = "auto",
        size: int = 128,
        batch_size: int = 8,
        composites: CompositeOptions = CompositeOptions(),  # noqa: B008 - frozen; the parser shows its fields
        others: tuple[int, int] = (0, 2),
        num_workers: int = 1,
        samples_per_epoch: int = 1_000_000,
        held_out: int = 64,
        cache_megabytes: int = 1500,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.path, self.layout, self.size, self.batch_size = Path(path).expanduser(), layout, size, batch_size
        self.composites, self.others, self.num_workers = composites, others, num_workers
        self.samples_per_epoch, self.held_out = samples_per_epoch, held_out
        self.cache_megabytes, self.seed = cache_megabytes, seed

    def setup(self, stage: str | None = None) -> None:
        """Find the pictures.

        Raises:
            PolyditError: the folder is missing, or its pictures have no masks or no depth.
        """
        if not self.path.exists():
            raise PolyditError(
                f"--data.path {self.path}: no such folder; give one of pictures, masks and depth, or make a corpus "
                "with `polydit corpus build`"
            )
        if (self.path / "manifest.jsonl").is_file():
            for split, options, length in (
                ("train", self.composites, self.samples_per_epoch),
                ("val", CompositeOptions.plain(), self.held_out),
            ):
                drawn = Compositor.from_corpus(
                    self.path, split, self.size, options, cache_megabytes=self.cache_megabytes
                )
                setattr(self, f"{split}_set", DepthSceneSamples(drawn, length, self.seed, self.others))
            return
        train = find_layout(self.path, self.layout, "train")
        self.train_set = DepthFolderSamples(train, self.size, True, self.seed)
        try:
            held_out = find_layout(self.path, self.layout, "val")
        except PolyditError:
            held_out = train
        self.val_set = DepthFolderSamples(held_out, self.size, False, self.seed, self.held_out)


class DepthSceneSamples(Dataset[dict[str, Tensor]]):
    """Composites with a made depth; sample i is a pure function of seed and i."""

    def __init__(self, compositor: Compositor, length: int, seed: int, others: tuple[int, int]) -> None:
        self.compositor, self.length, self.seed, self.others = compositor, length, seed, others

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        scene = draw_scene(self.compositor, np.random.default_rng((self.seed, index)), self.others)
        return {
            **as_tensors(scene.image, scene.mask, scene.depth, scene.true_depth),
            "others": torch.from_numpy(scene.others)[None],
        }


class DepthFolderSamples(Dataset[dict[str, Tensor]]):
    """Pictures, masks and depth from folders, made square.

    Args:
        places: (pictures, masks, ...), as :func:`find_layout` gives them; folders of depth lie beside them.
        size: side of the samples in pixels.
        train: mirror, turn by up to 30 degrees, crop rims, recolour and grey, with the published frequencies.
        seed: of every draw.
        limit: samples at most.

    Raises:
        PolyditError: there is no depth.
    """

    def __init__(
        self,
        places: Sequence[Sequence[Path | None]],
        size: int,
        train: bool,
        seed: int,
        limit: int | None = None,
    ) -> None:
        self.size, self.train, self.seed = size, train, seed
        self.items: list[tuple[list[MaskFolder], MaskFolder, int]] = []
        for place in places:
            pictures, masks = place[0], place[1]
            assert pictures is not None
            assert masks is not None
            folders = {
                folder.name: MaskFolder(pictures, masks, depth=folder)
                for folder in sorted(pictures.parent.glob("depth*"))
                if folder.is_dir()
            }
            if not folders:
                raise PolyditError(
                    f"{pictures.parent}: has no folder depth_* beside {pictures.name}; make one with `polydit "
                    f"segmentation depth --input {pictures} --model FOLDER --output {pictures.parent / 'depth_large'}`"
                )
            target = folders.pop(TARGET) if TARGET in folders and len(folders) > 1 else folders.get(TARGET)
            inputs = list(folders.values())
            self.items += [(inputs, target or inputs[-1], i) for i in range(len(inputs[0]))]
        self.items = self.items[:limit]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((self.seed, index))
        inputs, target, number = self.items[index]
        source = inputs[rng.integers(len(inputs))] if self.train else inputs[-1]
        picture, mask, _ = source.read(number, limit_side=2 * self.size)
        maps = [Image.fromarray(part) for part in (picture, mask)]
        for folder in (source, target):
            depth = folder[number].depth
            if depth is None:
                raise PolyditError(
                    f"{folder[number].picture}: has no depth map of its name; make all of them"
                )
            maps.append(Image.fromarray(read_mask(depth)).resize(maps[0].size, Image.Resampling.BILINEAR))
        if self.train:
            if rng.random() < 0.5:
                maps = [part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for part in maps]
            if rng.random() < 0.5:
                maps = turned(maps, rng.uniform(-30, 30))
            if rng.random() < 0.5:
                width, height = maps[0].size
                left, top, right, bottom = rng.uniform(0, 0.1, 4)
                box = (left * width, top * height, (1 - right) * width, (1 - bottom) * height)
                maps = [part.crop(tuple(round(at) for at in box)) for part in maps]
        square = [np.asarray(part.resize((self.size, self.size), Image.Resampling.BILINEAR)) for part in maps]
        if self.train and rng.random() < 0.5:
            square[0] = recolor(square[0], rng, 0.5)
        if self.train and rng.random() < 0.25:
            square[0] = np.repeat(np.asarray(Image.fromarray(square[0]).convert("L"))[..., None], 3, axis=2)
        return as_tensors(square[0], *(part.astype(np.float32) / 255 for part in square[1:]))


def turned(maps: list[Image.Image], angle: float) -> list[Image.Image]:
    """Turned, and cut to what of the picture stays without corners: 0.7 of each side for 30 degrees."""
    width, height = maps[0].size
    keep = 1 - 0.3 * abs(angle) / 30
    box = tuple(round(side * (1 + sign * keep) / 2) for sign in (-1, 1) for side in (width, height))
    return [part.rotate(angle, Image.Resampling.BILINEAR).crop(box) for part in maps]


def as_tensors(
    picture: NDArray[np.uint8], mask: NDArray[Any], depth: NDArray[Any], target: NDArray[Any]
) -> dict[str, Tensor]:
    """A sample."""
    pixels = torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1))).float() / 127.5 - 1
    maps = (torch.from_numpy(np.array(part, np.float32))[None] for part in (mask, depth, target))
    return {"picture": pixels, **dict(zip(("mask", "depth", "depth_target"), maps, strict=True))}
