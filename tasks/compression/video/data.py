"""Clips for training a video codec, made of still pictures; nothing that a figure is measured on."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ....core.data.composites import CompositeOptions
from ....core.data.synthetic_clips import ClipOptions, SyntheticClips
from ....core.errors import PolyditError
from ....core.training.data import TaskData
from ..codec import MULTIPLE

__all__ = ["VideoClips", "VideoCompressionData"]


class VideoClips(Dataset[dict[str, Any]]):
    """Samples ``frames`` (T, 3, size, size) uint8, drawn from their number and the seed.

    Args:
        clips: what draws them.
        count: how many.
        seed: of the first.
    """

    def __init__(self, clips: SyntheticClips, count: int, seed: int) -> None:
        self.clips, self.count, self.seed = clips, count, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        clip = self.clips(np.random.default_rng([self.seed, index]))
        return {"frames": torch.from_numpy(clip.frames.transpose(0, 3, 1, 2).copy())}


class VideoCompressionData(TaskData):
    """Clips by camera motion and moving cut-outs over the photographs of a corpus.

    Args:
        path: a corpus made by ``polydit corpus build``.
        size: side of the clips in pixels, a multiple of 64.
        frames: of a clip.
        batch_size: clips per step.
        noise: largest standard deviation of each frame's own noise, of 255.
        num_workers: processes that draw clips.
        samples_per_epoch: length of an epoch.
        val_samples: held-out clips.
        seed: of all draws.

    Raises:
        PolyditError: the size does not fit the codec, or a clip has no second frame.
    """

    drawn = True

    def __init__(
        self,
        path: str = "data/corpus",
        size: int = 192,
        frames: int = 4,
        batch_size: int = 2,
        noise: float = 4.0,
        num_workers: int = 1,
        samples_per_epoch: int = 1_000_000,
        val_samples: int = 16,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if size < MULTIPLE or size % MULTIPLE:
            raise PolyditError(f"--data.size {size}: must be a multiple of {MULTIPLE}")
        if frames < 2:
            raise PolyditError(f"--data.frames {frames}: prediction needs two frames or more")
        self.path, self.size, self.frames, self.batch_size = path, size, frames, batch_size
        self.noise, self.num_workers, self.seed = noise, num_workers, seed
        self.samples_per_epoch, self.val_samples = samples_per_epoch, val_samples

    def setup(self, stage: str | None = None) -> None:
        """Find the pictures.

        Raises:
            PolyditError: there is no corpus.
        """
        looks = CompositeOptions(
            scale=(0.2, 0.7), inside=0.3, noise=0, jpeg=None, coverage=(0.002, 0.6), photo_zoom=(0.4, 1.0)
        )
        options = ClipOptions(
            frames=self.frames, objects=(0, 3), pan=0.05, light=0.02, noise=self.noise, still=0.35
        )
        sets = []
        for split, count, seed in (
            ("train", self.samples_per_epoch, self.seed),
            ("val", self.val_samples, 2**20),
        ):
            clips = SyntheticClips.from_corpus(
                self.path, split, size=self.size, options=options, looks=looks, cache_megabytes=600
            )
            sets.append(VideoClips(clips, count, seed))
        self.train_set, self.val_set = sets
