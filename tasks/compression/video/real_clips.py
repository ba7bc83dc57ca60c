"""Clips of real videos for training: Vimeo-90K, folders of videos or of frames."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ....core.data.clips import Clip
from ....core.data.video import is_video
from ....core.errors import PolyditError
from ....core.training.data import TaskData

__all__ = ["RealClipData", "RealClips", "clips_in"]

VIMEO = {"train": "sep_trainlist.txt", "val": "sep_testlist.txt"}


def clips_in(path: str | Path, part: str) -> list[Clip]:
    """The clips of a data set's part.

    A folder with ``sequences`` and ``sep_trainlist.txt`` is Vimeo-90K (septuplets). In any other one, every video and
    every folder of pictures is a clip, and every tenth of them, by name, is held out.

    Args:
        path: of the data set.
        part: ``train`` or ``val``.

    Raises:
        PolyditError: nothing is there.
    """
    root = Path(path).expanduser()
    if (root / "sequences").is_dir():
        listed = root / VIMEO[part]
        if not listed.is_file():
            raise PolyditError(f"{path}: Vimeo-90K without {VIMEO[part]}; put it beside the folder sequences")
        names = listed.read_text(encoding="utf-8").split()
        return [Clip(root / "sequences" / name) for name in names]
    if not root.is_dir():
        raise PolyditError(f"{path}: no such folder; give one with videos, or Vimeo-90K")
    found = [entry for entry in sorted(root.iterdir()) if entry.is_dir() or is_video(entry)]
    held = found[9::10] or found[-1:]
    chosen = held if part == "val" else [entry for entry in found if entry not in held] or found
    if not chosen:
        raise PolyditError(f"{path}: holds neither videos nor folders of frames; give another folder")
    return [Clip(entry) for entry in chosen]


class RealClips(Dataset[dict[str, Any]]):
    """Samples ``frames`` (T, 3, size, size) uint8: a random crop of neighbouring frames of a random clip.

    Args:
        clips: to draw from.
        frames: of a sample.
        size: of the crop.
        count: samples in an epoch.
        seed: of the draws; each sample's are its number's.
    """

    def __init__(self, clips: list[Clip], frames: int, size: int, count: int, seed: int) -> None:
        self.clips, self.frames, self.size, self.count, self.seed = clips, frames, size, count, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([self.seed, index])
        clip = self.clips[int(rng.integers(len(self.clips)))]
        height, width = clip.size
        if len(clip) < self.frames or min(height, width) < self.size:
            raise PolyditError(
                f"{clip.path}: has {len(clip)} frames of {width}x{height}; samples are {self.frames} of {self.size}"
            )
        first = int(rng.integers(len(clip) - self.frames + 1))
        top, left = int(rng.integers(height - self.size + 1)), int(rng.integers(width - self.size + 1))
        found = clip.get(range(first, first + self.frames))
        clip.close()  # thousands of open files are too many
        crop = found[:, top : top + self.size, left : left + self.size]
        if rng.random() < 0.5:
            crop = crop[:, :, ::-1]
        return {"frames": torch.from_numpy(crop.transpose(0, 3, 1, 2).copy())}


class RealClipData(TaskData):
    """Crops of real clips; see `clips_in` for the layouts.

    Args:
        path: of the data set.
        frames: of a sample: 4 k + 1 for Wan.
        size: of the crop in pixels, a multiple of 64.
        batch_size: samples per step.
        num_workers: processes that read.
        samples_per_epoch: length of an epoch.
        val_samples: held-out samples.
        seed: of all draws.

    Raises:
        PolyditError: the size does not fit the codec.
    """

    drawn = True

    def __init__(
        self,
        path: str = "data/vimeo_septuplet",
        frames: int = 5,
        size: int = 256,
        batch_size: int = 4,
        num_workers: int = 4,
        samples_per_epoch: int = 1_000_000,
        val_samples: int = 32,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if size < 64 or size % 64:
            raise PolyditError(f"--data.size {size}: must be a multiple of 64")
        self.path, self.frames, self.size, self.batch_size = path, frames, size, batch_size
        self.num_workers, self.samples_per_epoch = num_workers, samples_per_epoch
        self.val_samples, self.seed = val_samples, seed

    def setup(self, stage: str | None = None) -> None:
        """Find the clips."""
        self.train_set, self.val_set = (
            RealClips(clips_in(self.path, part), self.frames, self.size, count, seed)
            for part, count, seed in (
                ("train", self.samples_per_epoch, self.seed),
                ("val", self.val_samples, 2**20),
            )
        )
