"""Clips to be put together again: a synthetic clip, its cut-out by itself on white, and the background around it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from ...core.data.masks import bounding_box, dilate
from ...core.data.synthetic_clips import ClipOptions, SyntheticClip, SyntheticClips
from ...core.errors import PolyditError
from ...core.training.data import TaskData
from .compositing import centred, gamma_adjusted, guess_of

__all__ = ["CompositingData", "CompositingSamples", "cut_elements"]


def cut_elements(layer: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """Each frame of a layer (T, H, W, 4) cut to what is visible; one empty pixel where nothing is."""
    found = []
    for frame in layer:
        box = bounding_box(frame[..., 3], threshold=0.03)
        found.append(frame[box.slices] if box is not None else np.zeros((1, 1, 4), np.uint8))
    return found


class CompositingSamples(Dataset[dict[str, Tensor]]):
    """Synthetic clips with one cut-out, whose luminance the network has to find.

    Args:
        clips: what draws them.
        count: samples; sample n is the same whenever it is asked for.
        seed: of all draws.
        gamma: range of the luminance augmentation of the foreground; (0.4, 1.9) as published.
        inflate: pixels by which masks grow.
    """

    def __init__(
        self,
        clips: SyntheticClips,
        count: int,
        seed: int = 0,
        gamma: tuple[float, float] = (0.4, 1.9),
        inflate: int = 6,
    ) -> None:
        self.clips, self.count, self.seed, self.gamma, self.inflate = clips, count, seed, gamma, inflate

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        """``clean`` and ``foreground`` (3, T, H, W) in [-1, 1], ``mask`` (1, T, H, W), ``guess`` in [0, 1]."""
        rng = np.random.default_rng((self.seed, number))
        for _ in range(20):
            clip = self.clips(rng)
            if len(clip.layers) and 0.01 < clip.masks.mean() < 0.5:
                break
        return self.sample(clip, rng)

    def sample(self, clip: SyntheticClip, rng: np.random.Generator) -> dict[str, Tensor]:
        """A clip as a batch holds it."""
        layer = clip.layers[0].copy()
        layer[..., :3] = gamma_adjusted(layer[..., :3], float(rng.uniform(*self.gamma)))
        masks = dilate(clip.masks, self.inflate)
        size = layer.shape[1:3]
        clean, pasted = (
            torch.from_numpy(np.ascontiguousarray(p)).permute(0, 3, 1, 2).float() / 255
            for p in (clip.frames, layer)
        )
        mask = torch.from_numpy(masks)[:, None].float()
        guess = guess_of(clean, mask, pasted[:, :3], pasted[:, 3:])
        foreground = torch.from_numpy(centred(cut_elements(layer), (size[0], size[1]))).permute(3, 0, 1, 2)
        return {
            "clean": clean.transpose(0, 1) * 2 - 1,
            "foreground": foreground.float() / 127.5 - 1,
            "mask": mask.transpose(0, 1),
            "guess": guess.transpose(0, 1),
        }


class CompositingData(TaskData):
    """Synthetic clips of a corpus' photographs and cut-outs.

    Args:
        path: a corpus made by ``polydit corpus build``.
        frames: of a sample; 1 more than a multiple of 4 for CogVideoX.
        size: side of the samples in pixels, or (height, width).
        batch_size: samples per step.
        clips: how clips move.
        gamma: see :class:`CompositingSamples`.
        inflate: see :class:`CompositingSamples`.
        num_workers: processes that prepare samples.
        samples_per_epoch: length of an epoch.
        held_out: held-out samples to look at.
        cache_megabytes: decoded pictures kept per worker.
        seed: of all draws.
    """

    def __init__(
        self,
        path: str = "data/corpus",
        frames: int = 8,
        size: int | tuple[int, int] = 64,
        batch_size: int = 4,
        clips: ClipOptions = ClipOptions(light=0.0),  # noqa: B008 - frozen; the parser shows its fields
        gamma: tuple[float, float] = (0.4, 1.9),
        inflate: int = 6,
        num_workers: int = 1,
        samples_per_epoch: int = 1_000_000,
        held_out: int = 16,
        cache_megabytes: int = 1000,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.path, self.frames, self.batch_size = Path(path).expanduser(), frames, batch_size
        self.size = (size, size) if isinstance(size, int) else (size[0], size[1])
        self.clips, self.gamma, self.inflate = clips, gamma, inflate
        self.num_workers, self.samples_per_epoch, self.held_out = num_workers, samples_per_epoch, held_out
        self.cache_megabytes, self.seed = cache_megabytes, seed

    def setup(self, stage: str | None = None) -> None:
        """Find the pictures.

        Raises:
            PolyditError: there is no corpus.
        """
        if not (self.path / "manifest.jsonl").is_file():
            raise PolyditError(
                f"--data.path {self.path}: no corpus is here; make one with `polydit corpus build --output {self.path}`"
            )
        self.train_set = self._samples("train", self.samples_per_epoch, self.seed)
        self.val_set = self._samples("val", self.held_out, self.seed + 1)

    def _samples(self, split: str, count: int, seed: int) -> CompositingSamples:
        options = replace(self.clips, frames=self.frames, objects=(1, 1))
        clips = SyntheticClips.from_corpus(
            self.path, split, size=self.size, options=options, cache_megabytes=self.cache_megabytes
        )
        return CompositingSamples(clips, count, seed, self.gamma, self.inflate)
