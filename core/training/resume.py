"""What makes a resumed run go on instead of starting over: random states, and the place in the data.

Lightning alone replays the epoch's first samples after a resume in the middle of it and, with a fixed seed, the same
noise again.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import Dataset, DistributedSampler

__all__ = ["RandomState", "ResumableSampler"]


class RandomState(Callback):
    """Keeps the random states of Python, NumPy and torch in the checkpoint, one set for each process."""

    def __init__(self) -> None:
        self._loaded: dict[str, Any] | None = None

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Write the states of all processes."""
        states = [collect()]
        if trainer.world_size > 1:
            states = [{}] * trainer.world_size
            torch.distributed.all_gather_object(states, collect())
        checkpoint["random_states"] = states

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take the states of this process; another number of processes starts from its seed."""
        states = checkpoint.get("random_states", [])
        self._loaded = states[trainer.global_rank] if len(states) == trainer.world_size else None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore, after set-up has drawn its own numbers and before the first sample is read."""
        if self._loaded is not None:
            restore(self._loaded)
            self._loaded = None


def collect() -> dict[str, Any]:
    """All global random states as tensors and plain values, so that reading them back runs no code."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002 - the global state is what we keep
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(gauss)),
    }


def restore(states: dict[str, Any]) -> None:
    """Counterpart of :func:`collect`."""
    torch.set_rng_state(states["torch"].cpu())
    if states["cuda"] and torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([state.cpu() for state in states["cuda"]])
    version, keys, gauss = states["python"]
    random.setstate((version, tuple(keys), gauss))
    kind, words, position, has_gauss, cached = states["numpy"]
    np.random.set_state((kind, words.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002


class ResumableSampler(DistributedSampler):
    """Samples of a map-style data set in an order that depends on seed and epoch only, from where a run stopped.

    Build it in ``train_dataloader`` of a data module: ``DataLoader(data, batch_size, sampler=ResumableSampler(data,
    self.trainer, batch_size))``. Under several processes each takes its own share.

    Args:
        data: The data set.
        trainer: Its loops know the place of a resumed run; None starts at the beginning, alone.
        batch_size: Of the loader.
        shuffle: False keeps the order of the data set.
        seed: Of the order.
        drop_last: Whether the loader drops an incomplete last batch.
    """

    def __init__(
        self,
        data: Dataset,
        trainer: Trainer | None,
        batch_size: int,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = True,
    ) -> None:
        world, rank = (trainer.world_size, trainer.global_rank) if trainer is not None else (1, 0)
        super().__init__(data, num_replicas=world, rank=rank, shuffle=shuffle, seed=seed, drop_last=False)
        self._skip = 0
        if trainer is not None:
            batches = len(self) // batch_size if drop_last else -(-len(self) // batch_size)
            limit = trainer.limit_train_batches
            batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
            # Workers read ahead before Lightning sets the epoch, so a resumed one must be known here.
            done = trainer.fit_loop.epoch_loop.batch_progress.total.ready
            self.epoch, left = divmod(done, batches) if batches else (0, 0)
            self._skip = left * batch_size

    def __iter__(self) -> Iterator[int]:
        """The samples of this process in this epoch; after a resume, those that are left of it."""
        skip, self._skip = self._skip, 0
        return iter(list(super().__iter__())[skip:])
