"""Where inpainting finds its clips: made of a corpus' still pictures, or DAVIS, YouTube-VOS and folders of clips."""

from __future__ import annotations

from pathlib import Path

from ...core.data.synthetic_clips import ClipOptions, SyntheticClips
from ...core.errors import PolyditError
from ...core.training.data import TaskData
from .layouts import find_clips
from .samples import FolderClips, SyntheticSamples

__all__ = ["VideoInpaintingData"]


class VideoInpaintingData(TaskData):
    """Clips with masks and what is behind them.

    Args:
        path: a corpus made by ``polydit corpus build``, or the root of a data set.
        layout: of a data set, see :func:`.layouts.find_clips`.
        frames: of a sample; 1 more than a multiple of 8 for LTX-Video.
        size: side of the samples in pixels, or (height, width).
        batch_size: samples per step.
        fill: prepare the fill of ``formulation.fill: propagated`` in the workers.
        clips: how synthetic clips move.
        objects: share of masks that are objects' outlines; the others are random shapes.
        grow: largest dilation of cut-outs' masks in pixels.
        stride: largest step between frames of real clips.
        num_workers: processes that prepare samples.
        samples_per_epoch: length of an epoch.
        held_out: held-out samples to look at.
        cache_megabytes: decoded pictures kept per worker.
        seed: of all draws.
    """

    def __init__(
        self,
        path: str = "data/corpus",
        layout: str = "auto",
        frames: int = 8,
        size: int | tuple[int, int] = 128,
        batch_size: int = 4,
        fill: bool = True,
        clips: ClipOptions = ClipOptions(),  # noqa: B008 - frozen; the parser shows its fields
        objects: float = 0.5,
        grow: int = 4,
        stride: int = 6,
        num_workers: int = 1,
        samples_per_epoch: int = 1_000_000,
        held_out: int = 24,
        cache_megabytes: int = 1000,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.path, self.layout, self.frames = Path(path).expanduser(), layout, frames
        self.size = (size, size) if isinstance(size, int) else (size[0], size[1])
        self.batch_size, self.fill, self.clips, self.objects, self.grow = (
            batch_size,
            fill,
            clips,
            objects,
            grow,
        )
        self.stride, self.num_workers, self.samples_per_epoch = stride, num_workers, samples_per_epoch
        self.held_out, self.cache_megabytes, self.seed = held_out, cache_megabytes, seed

    def setup(self, stage: str | None = None) -> None:
        """Find the pictures or clips.

        Raises:
            PolyditError: a folder is missing, or holds nothing that can be used.
        """
        if not self.path.exists():
            raise PolyditError(
                f"--data.path {self.path}: no such folder; name a data set, or make one with `polydit corpus build`"
            )
        if (self.path / "manifest.jsonl").is_file():
            self.train_set = self._synthetic("train", self.samples_per_epoch, self.seed)
            self.val_set = self._synthetic("val", self.held_out, self.seed + 1)
            return
        train = find_clips(self.path, self.layout, "train")
        try:
            held_out = find_clips(self.path, self.layout, "val")
        except PolyditError:
            held_out = train
        if held_out == train and len(train) > 1:  # no split of its own: every tenth, one at least
            held_out = train[::10]
            train = [clip for clip in train if clip not in held_out]
        self.train_set = FolderClips(
            train,
            self.frames,
            self.size,
            self.samples_per_epoch,
            self.seed,
            self.fill,
            self.stride,
            self.objects,
        )
        self.val_set = FolderClips(
            held_out, self.frames, self.size, self.held_out, self.seed + 1, self.fill, 1, self.objects
        )

    def _synthetic(self, split: str, count: int, seed: int) -> SyntheticSamples:
        from dataclasses import replace

        clips = SyntheticClips.from_corpus(
            self.path,
            split,
            size=self.size,
            options=replace(self.clips, frames=self.frames),
            cache_megabytes=self.cache_megabytes,
        )
        return SyntheticSamples(clips, count, seed, self.fill, self.objects, self.grow)
