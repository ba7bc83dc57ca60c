"""Training samples of inpainting: clips with known truth under their masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from ...core.data.clips import Clip
from ...core.data.masks import dilate
from ...core.data.synthetic_clips import SyntheticClips
from .layouts import ClipFolder
from .moving_masks import moving_masks
from .propagation import propagate

__all__ = ["FolderClips", "SyntheticSamples", "camera_of", "sample_of"]

Pixels = NDArray[np.uint8]
Masks = NDArray[np.bool_]


def sample_of(
    frames: Pixels, clean: Pixels, masks: Masks, fill: bool, steps: Sequence[Tensor] | None = None
) -> dict[str, Tensor]:
    """What a batch holds of one clip.

    Args:
        frames: (T, H, W, 3), as given to the network.
        clean: of the same shape, what must come out.
        masks: (T, H, W), True is made up.
        fill: also fill from other frames, see :func:`.propagation.propagate`.
        steps: the camera's motion, where it is known.

    Returns:
        ``video`` and ``clean`` (3, T, H, W) in [-1, 1], ``mask`` (1, T, H, W), and ``fill`` in [0, 1] and ``unseen``.
    """
    video, truth = (torch.from_numpy(p.copy()).permute(3, 0, 1, 2).float() / 255 for p in (frames, clean))
    mask = torch.from_numpy(masks.copy())[None].float()
    batch = {"video": video * 2 - 1, "clean": truth * 2 - 1, "mask": mask}
    if fill:
        found = propagate(video.transpose(0, 1), mask.transpose(0, 1), given=steps)
        batch |= {"fill": found.frames.transpose(0, 1), "unseen": (1 - found.seen).transpose(0, 1)}
    return batch


def camera_of(flow: NDArray[np.float32], rng: np.random.Generator, error: float = 0.0) -> list[Tensor]:
    """The affine motion of each field (H, W, 2) as a matrix (3, 3), off by about so many pixels."""
    height, width = flow.shape[1:3]
    rows, columns = np.mgrid[0 : height : max(1, height // 4), 0 : width : max(1, width // 4)]
    places = np.stack([columns.ravel(), rows.ravel(), np.ones(rows.size)], 1).astype(np.float64)
    found = []
    for field in flow:
        there = places[:, :2] + field[rows.ravel(), columns.ravel()]
        matrix = np.eye(3)
        matrix[:2] = np.linalg.lstsq(places, there, rcond=None)[0].T
        matrix[:2, 2] += rng.normal(0, error, 2)
        found.append(torch.from_numpy(matrix))
    return found


class SyntheticSamples(Dataset[dict[str, Tensor]]):
    """Synthetic clips: cut-outs to be removed from a moving photograph, or random shapes to be filled.

    Args:
        clips: what draws them.
        count: samples; sample n is the same whenever it is asked for.
        seed: of all draws.
        fill: see :func:`sample_of`.
        objects: share of samples whose masks are the cut-outs; the others have random shapes over everything.
        grow: largest dilation of the cut-outs' masks, in pixels.
    """

    def __init__(
        self,
        clips: SyntheticClips,
        count: int,
        seed: int = 0,
        fill: bool = True,
        objects: float = 0.5,
        grow: int = 4,
    ) -> None:
        self.clips, self.count, self.seed = clips, count, seed
        self.fill, self.objects, self.grow = fill, objects, grow

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        """Sample ``number``; see :func:`sample_of`."""
        rng = np.random.default_rng((self.seed, number))
        clip = self.clips(rng)
        masks, clean = clip.masks, clip.background
        if rng.random() >= self.objects or not masks.any() or masks.mean() > 0.6:
            masks, clean = moving_masks(len(clip.frames), clip.frames.shape[1:3], rng), clip.frames
        elif self.grow:
            masks = dilate(masks, int(rng.integers(self.grow + 1)), "square")
        steps = camera_of(clip.background_flow, rng, 0.05)
        return sample_of(clip.frames, clean, masks, self.fill, steps)


class FolderClips(Dataset[dict[str, Tensor]]):
    """Clips of DAVIS, YouTube-VOS or any folder of clips, with random shapes or other clips' objects as masks.

    Nothing tells what is behind a real object: masks lie over everything, and the clip is its own truth.

    Args:
        clips: where they lie.
        frames: of a sample.
        size: (height, width) of the samples.
        count: samples; sample n is the same whenever it is asked for.
        seed: of all draws.
        fill: see :func:`sample_of`.
        stride: largest step between frames (EraserDiT: 6).
        objects: share of masks that are objects' outlines, of clips that have annotations.
    """

    def __init__(
        self,
        clips: Sequence[ClipFolder],
        frames: int,
        size: tuple[int, int],
        count: int,
        seed: int = 0,
        fill: bool = True,
        stride: int = 6,
        objects: float = 0.5,
    ) -> None:
        self.clips, self.frames, self.size = list(clips), frames, size
        self.count, self.seed, self.fill, self.stride, self.objects = count, seed, fill, stride, objects
        self.annotated = [clip for clip in self.clips if clip.masks is not None]
        self._open: dict[Any, Clip] = {}

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        """Sample ``number``; see :func:`sample_of`."""
        rng = np.random.default_rng((self.seed, number))
        folder = self.clips[int(rng.integers(len(self.clips)))]
        frames = self._frames(folder, rng)
        if self.annotated and rng.random() < self.objects:
            other = self.annotated[int(rng.integers(len(self.annotated)))]
            masks = other.object_masks(self.frames, self.size, rng)
        else:
            masks = moving_masks(self.frames, self.size, rng)
        if not masks.any():
            masks = moving_masks(self.frames, self.size, rng)
        return sample_of(frames, frames, masks, self.fill)

    def _frames(self, folder: ClipFolder, rng: np.random.Generator) -> Pixels:
        from PIL import Image

        clip = self._open.setdefault(folder.frames, Clip(folder.frames))
        length = len(clip)
        stride = int(rng.integers(1, max(1, min(self.stride, (length - 1) // max(1, self.frames - 1))) + 1))
        first = int(rng.integers(max(1, length - stride * (self.frames - 1))))
        numbers = [min(first + stride * i, length - 1) for i in range(self.frames)]
        pixels = clip.get(numbers)
        height, width = pixels.shape[1:3]
        ratio = max(self.size[0] / height, self.size[1] / width) * rng.uniform(1, 1.5)
        high, wide = (
            max(want, round(side * ratio)) for want, side in zip(self.size, (height, width), strict=True)
        )
        top, left = int(rng.integers(high - self.size[0] + 1)), int(rng.integers(wide - self.size[1] + 1))
        box = (left, top, left + self.size[1], top + self.size[0])
        scaled = [Image.fromarray(p).resize((wide, high), Image.Resampling.BICUBIC).crop(box) for p in pixels]
        return np.stack([np.asarray(picture) for picture in scaled])
