"""Where LayerDecomp finds its layers: simulated from a corpus, mixed with real pairs, or MULAN's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from ...core.data.composites import CompositeOptions, Compositor
from ...core.errors import PolyditError
from ...core.training.data import TaskData
from .mulan import MulanLayers, find_mulan
from .real_pairs import RemovalPairs, find_rord
from .shadows import ShadowOptions
from .simulated import SimulatedLayers

__all__ = ["LayerDecompData", "Mixed", "composite_options"]

HELD_OUT = 24


def composite_options(**changes: Any) -> CompositeOptions:
    """Objects with room around them for a shadow, upright, over photographs without pasted pieces."""
    chosen = {
        "scale": (0.3, 0.7),
        "rotation": 12.0,
        "inside": 0.9,
        "coverage": (0.03, 0.4),
        "color": 0.3,
        "background_blur": 0.15,
        **changes,
    }
    return CompositeOptions.plain(**chosen)


class Mixed(Dataset[dict[str, Any]]):
    """Samples of a first set, and with some probability of a second one instead."""

    def __init__(
        self,
        first: Dataset[dict[str, Any]],
        second: Dataset[dict[str, Any]],
        share: float,
        length: int,
        seed: int,
    ) -> None:
        self.first, self.second, self.share, self.length, self.seed = first, second, share, length, seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng((self.seed, 3, index))
        if rng.random() < self.share:
            return self.second[int(rng.integers(2**31))]
        return self.first[index]


class LayerDecompData(TaskData):
    """Simulated layers, and real ones beside them.

    Args:
        path: a corpus made by ``polydit corpus build``: its cut-outs over its photographs, with shadows.
        pairs_path: pairs with and without an object, in RORD's layout (folders ``img``, ``gt`` and ``mask``, the object
            0 in the masks). They have no true foreground.
        mulan_path: MULAN's ``*.p.zl`` files, instead of simulated layers.
        mulan_images: the pictures that they belong to.
        real_share: probability of a real pair.
        size: side of the pictures in pixels.
        batch_size: pictures per step.
        bank: drawn cut-outs, and as many photographs, that samples combine; kept in memory.
        unlabelled: share of simulated samples that hide their foreground.
        shadows: how shadows and reflections are drawn.
        num_workers: processes that prepare samples; 0 prepares them in the training process.
        samples_per_epoch: length of an epoch.
        seed: of all draws.

    Raises:
        PolyditError: options contradict each other.
    """

    def __init__(
        self,
        path: str = "data/corpus",
        pairs_path: str | None = None,
        mulan_path: str | None = None,
        mulan_images: str | None = None,
        real_share: float = 0.5,
        size: int = 128,
        batch_size: int = 8,
        bank: int = 4000,
        unlabelled: float = 0.0,
        shadows: ShadowOptions = ShadowOptions(),  # noqa: B008 - read only; the parser shows its fields
        num_workers: int = 1,
        samples_per_epoch: int = 1_000_000,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.path, self.size, self.batch_size, self.bank = Path(path).expanduser(), size, batch_size, bank
        self.pairs_path, self.mulan_path, self.mulan_images = pairs_path, mulan_path, mulan_images
        self.real_share, self.unlabelled, self.num_workers = real_share, unlabelled, num_workers
        self.samples_per_epoch, self.seed, self.shadows = samples_per_epoch, seed, shadows
        for name in ("real_share", "unlabelled"):
            if not 0 <= getattr(self, name) <= 1:
                raise PolyditError(f"--data.{name} {getattr(self, name)}: is a share, from 0 to 1")
        if (mulan_path is None) != (mulan_images is None):
            raise PolyditError("--data.mulan_path: goes with --data.mulan_images, the pictures; give both")
        if bank < 1 or size < 32:
            raise PolyditError(f"--data.bank {bank}, --data.size {size}: at least 1, and 32 pixels")

    def setup(self, stage: str | None = None) -> None:
        """Find the files.

        Raises:
            PolyditError: a folder is missing, or holds nothing that can be used.
        """
        layers: Dataset[dict[str, Any]]
        held_out: Dataset[dict[str, Any]]
        if self.mulan_path is not None and self.mulan_images is not None:
            files = find_mulan(self.mulan_path, self.mulan_images)
            train, val = (files[20:], files[:20]) if len(files) > 40 else (files, files)
            layers, held_out = MulanLayers(train, self.size), MulanLayers(val, self.size)
        else:
            layers = SimulatedLayers(
                self._compositor("train"),
                self.samples_per_epoch,
                self.bank,
                self.shadows,
                True,
                self.unlabelled,
                self.seed,
            )
            held_out = SimulatedLayers(
                self._compositor("val"), HELD_OUT, HELD_OUT, self.shadows, False, seed=1
            )
        if self.pairs_path is not None:
            pairs = RemovalPairs(find_rord(self.pairs_path), self.size, self.seed)
            layers = Mixed(layers, pairs, self.real_share, self.samples_per_epoch, self.seed)
        elif self.mulan_path is not None:
            layers = Mixed(layers, layers, 1.0, self.samples_per_epoch, self.seed)  # any order, any length
        self.train_set, self.val_set = layers, held_out

    def _compositor(self, split: str) -> Compositor:
        # The bank holds what is drawn; decoded files are not needed twice soon.
        return Compositor.from_corpus(self.path, split, self.size, composite_options(), cache_megabytes=300)
