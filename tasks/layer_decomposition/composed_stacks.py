"""General stacks made from a corpus: a photograph and cut-outs above it in order, every layer known exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...core.data.composites import Compositor
from ...core.errors import PolyditError
from ...core.training.data import TaskData
from .data import composite_options
from .simulated import SimulatedLayers

__all__ = ["ComposedStackData", "ComposedStacks", "compositor_of", "foot", "visibility"]

TRIES = 30
"""Draws of a cut-out that leaves enough of every one to be seen, before the last one is taken as it is."""


def compositor_of(root: str | Path, split: str, side: int) -> Compositor:
    """Cut-outs that leave room for others, over photographs of a corpus' split.

    Raises:
        PolyditError: see :meth:`Compositor.from_corpus`.
    """
    options = composite_options(scale=(0.3, 0.75), background_blur=0.0)
    return Compositor.from_corpus(root, split, side, options, cache_megabytes=300)


def foot(layer: Tensor) -> int:
    """The lowest row in which more than half of the light of a layer (4, H, W) is stopped; -1 if it is empty."""
    rows = torch.nonzero((layer[3] > 0.5).any(1))
    return int(rows[-1]) if len(rows) else -1


def visibility(layers: Tensor) -> Tensor:
    """How much of each layer is not hidden by those above: (..., N, H, W) of alphas (..., N, H, W), bottom first."""
    clear = torch.cumprod((1 - layers).flip(-3), dim=-3).flip(-3)
    return torch.cat([clear[..., 1:, :, :], torch.ones_like(clear[..., :1, :, :])], dim=-3)


class ComposedStacks(SimulatedLayers):
    """A photograph below and cut-outs above it; sample i is a pure function of seed, i and the number of layers.

    A picture alone does not say in which order things lie that do not overlap, and an answer that cannot be known
    cannot be learned: so the cut-out whose foot is lower in the picture always lies above, as what stands nearer does.
    All samples of a batch have the number of layers that its first one draws.

    Args:
        compositor: where cut-outs and photographs come from.
        length: samples in an epoch.
        layers: least and greatest number of layers, the photograph included.
        least_seen: share of its alpha that stays visible of each cut-out.
        bank: as in :class:`SimulatedLayers`.
        seed: of all draws.
    """

    def __init__(
        self,
        compositor: Compositor,
        length: int,
        layers: tuple[int, int] = (2, 4),
        least_seen: float = 0.4,
        bank: int = 4000,
        seed: int = 0,
    ) -> None:
        super().__init__(compositor, length, bank, seed=seed)
        self.layers, self.least_seen = layers, least_seen

    def count(self, index: int) -> int:
        """The number of layers of a batch that begins with this sample."""
        rng = np.random.default_rng((self.seed, 3, index))
        return int(rng.integers(self.layers[0], self.layers[1] + 1))

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.sample(index, self.count(index))

    def __getitems__(self, numbers: list[int]) -> list[dict[str, Any]]:
        count = self.count(numbers[0])
        return [self.sample(number, count) for number in numbers]

    def sample(self, index: int, count: int) -> dict[str, Any]:
        """``layers`` (4, count, H, W), straight alpha, in [0, 1], bottom first; the first is opaque."""
        rng = np.random.default_rng((self.seed, 4, index))
        scene = self.draw_scene(rng)
        above: list[Tensor] = []
        for _ in range(count - 1):
            for _ in range(TRIES):
                tried = sorted([*above, self.draw_object(rng)], key=foot)
                alphas = torch.stack([layer[3] for layer in tried])
                seen = (alphas * visibility(alphas)).sum((1, 2))
                if (seen >= self.least_seen * alphas.sum((1, 2))).all():
                    break
            above = tried
        bottom = torch.cat([scene, torch.ones_like(scene[:1])])
        return {"layers": torch.stack([bottom, *above], dim=1)}


class ComposedStackData(TaskData):
    """General stacks of a corpus for training; the number of layers differs from batch to batch.

    Args:
        path: a corpus made by ``polydit corpus build``.
        side: of the square pictures, in pixels.
        layers: least and greatest number of layers, the photograph included.
        batch_size: pictures per step.
        bank: drawn cut-outs, and as many photographs, that samples combine; kept in memory.
        held_out: held-out pictures that validation looks at.
        num_workers: processes that prepare samples; 0 prepares them in the training process.
        samples_per_epoch: length of an epoch.
        seed: of all draws.

    Raises:
        PolyditError: an option is out of range.
    """

    drawn = True

    def __init__(
        self,
        path: str = "data/corpus",
        side: int = 64,
        layers: tuple[int, int] = (2, 4),
        batch_size: int = 8,
        bank: int = 4000,
        held_out: int = 48,
        num_workers: int = 1,
        samples_per_epoch: int = 1_000_000,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if side < 16 or bank < 1 or held_out < 1 or batch_size < 1:
            raise PolyditError(
                f"--data.side {side}, --data.bank {bank}, --data.held_out {held_out}, --data.batch_size {batch_size}: "
                "give a side of 16 or more, and at least 1 of the others"
            )
        if not 1 <= layers[0] <= layers[1]:
            raise PolyditError(
                f"--data.layers {list(layers)}: give the least and the greatest number, such as [2, 4]"
            )
        self.path, self.side, self.layers, self.bank = Path(path).expanduser(), side, layers, bank
        self.batch_size, self.held_out, self.num_workers = batch_size, held_out, num_workers
        self.samples_per_epoch, self.seed = samples_per_epoch, seed

    def setup(self, stage: str | None = None) -> None:
        """Find the files.

        Raises:
            PolyditError: there is no corpus, or it lacks photographs or cut-outs.
        """
        train, val = (compositor_of(self.path, split, self.side) for split in ("train", "val"))
        self.train_set = ComposedStacks(
            train, self.samples_per_epoch, self.layers, bank=self.bank, seed=self.seed
        )
        self.val_set = ComposedStacks(val, self.held_out, self.layers, bank=self.held_out * 3, seed=1)
