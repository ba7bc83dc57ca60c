"""Simulated layers: a cut-out with its shadow over a photograph, with every layer known exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from ...core.alpha import recompose
from ...core.data.composites import Compositor
from ...core.data.held import HeldPictures
from ...core.data.masks import dilate, erode
from .shadows import ShadowOptions, with_effects

__all__ = ["SimulatedLayers", "as_sample", "rough_mask"]


class SimulatedLayers(Dataset[dict[str, Any]]):
    """Composites with shadows, as many as are wanted; sample number i is a function of seed and i.

    Drawing a cut-out and a photograph takes longer than a training step, so a bank of ``bank`` of each is drawn and
    every sample combines one of each, mirrored or not, with effects of its own.

    Args:
        compositor: where cut-outs and photographs come from.
        length: samples in an epoch.
        bank: drawn cut-outs, and as many photographs, kept in memory as 8-bit pixels.
        shadows: see :class:`ShadowOptions`.
        rough: whether masks are what people draw, too large or too small by a few pixels, hard or soft; False is the
            object's alpha above one half.
        unlabelled: share of the samples that hide their foreground, as real pairs do.
        seed: of all draws.
    """

    def __init__(
        self,
        compositor: Compositor,
        length: int,
        bank: int = 4000,
        shadows: ShadowOptions | None = None,
        rough: bool = True,
        unlabelled: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.compositor, self.length, self.bank, self.seed = compositor, length, bank, seed
        self.shadows, self.rough, self.unlabelled = shadows or ShadowOptions(), rough, unlabelled
        pixels = compositor.size[0] * compositor.size[1]
        # Enough for the whole bank: the limits of the compositor are for decoded files.
        self._objects = HeldPictures(self._object, bank * pixels * 4 // 2**20 + 1)
        self._scenes = HeldPictures(self._scene, bank * pixels * 3 // 2**20 + 1)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng((self.seed, index))
        cutout, scene = self.draw_object(rng), self.draw_scene(rng)
        foreground, _ = with_effects(cutout, rng, self.shadows)
        mask = rough_mask(cutout[3:], rng) if self.rough else (cutout[3:] > 0.5).float()
        return as_sample(
            recompose(scene, foreground), mask, scene, foreground, rng.random() >= self.unlabelled
        )

    def draw_object(self, rng: np.random.Generator) -> Tensor:
        """A cut-out on its canvas, (4, H, W) in [0, 1], mirrored or not."""
        return _unit(self._objects(Path(str(rng.integers(self.bank)))), rng.random() < 0.5)

    def draw_scene(self, rng: np.random.Generator) -> Tensor:
        """A crop of a photograph, (3, H, W) in [0, 1], mirrored or not."""
        return _unit(self._scenes(Path(str(rng.integers(self.bank)))), rng.random() < 0.5)

    def _object(self, number: Path) -> NDArray[np.uint8]:
        return self.compositor.layer(np.random.default_rng((self.seed, 1, int(str(number)))))[0]

    def _scene(self, number: Path) -> NDArray[np.uint8]:
        rng = np.random.default_rng((self.seed, 2, int(str(number))))
        photo = self.compositor.photos[rng.integers(len(self.compositor.photos))]
        return self.compositor.background(photo, rng)


def as_sample(
    image: Tensor, mask: Tensor, background: Tensor, foreground: Tensor | None, labelled: bool = True
) -> dict[str, Any]:
    """What the model reads: ``image``, ``background`` (3, H, W), ``foreground`` (4, H, W), ``mask`` (1, H, W).

    The picture and the background are in [-1, 1], the others in [0, 1]; without a true foreground it is zeros and
    ``has_foreground`` is False.
    """
    if foreground is None or not labelled:
        foreground, labelled = image.new_zeros(4, *image.shape[-2:]), False
    return {
        "image": image * 2 - 1,
        "mask": mask,
        "background": background * 2 - 1,
        "foreground": foreground,
        "has_foreground": torch.tensor(labelled),
    }


def rough_mask(alpha: Tensor, rng: np.random.Generator) -> Tensor:
    """A mask (1, H, W) such as a user gives for an object of this alpha: soft, hard, or a few pixels off."""
    kind = rng.random()
    if kind < 0.2:
        return alpha
    mask = (alpha > 0.5).float()
    if kind < 0.6:
        return mask
    reach = max(1, round(rng.uniform(0.005, 0.03) * min(alpha.shape[-2:])))
    moved = dilate(mask, reach) if kind < 0.85 else erode(mask, 1)
    return moved if moved.any() else mask


def _unit(pixels: NDArray[np.uint8], mirrored: bool) -> Tensor:
    """(H, W, C) uint8 as (C, H, W) in [0, 1]."""
    tensor = torch.from_numpy(np.array(pixels[:, ::-1] if mirrored else pixels))
    return tensor.permute(2, 0, 1).float() / 255
