"""What all data modules share: loaders whose order depends on the seed only and that go on after a stop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from .resume import resumable_loader

__all__ = ["TaskData"]


class TaskData(LightningDataModule):
    """Loaders of a ``train_set`` and a ``val_set``, which a task's ``setup`` makes.

    A task's own ``__init__`` sets ``batch_size``, ``num_workers`` and ``seed``.
    """

    train_set: Any
    """Samples to learn from: a :class:`torch.utils.data.Dataset`."""
    val_set: Any
    """Held-out samples, the same every time: a :class:`torch.utils.data.Dataset`."""
    batch_size: int
    num_workers: int
    seed: int

    drawn: ClassVar[bool] = False
    """Samples are drawn at random by their numbers: they come in the order of those, which go on over the epochs."""
    order: Callable[[int], np.ndarray] | None = None
    """Epoch -> order of its samples, where the data set has one of its own."""

    def train_dataloader(self) -> DataLoader[Any]:
        """Samples in an order that depends on the seed only; a resumed run goes on with the next ones."""
        train_set: Dataset[Any] = self.train_set
        return resumable_loader(
            train_set,
            self.trainer,
            self.batch_size,
            shuffle=not self.drawn,
            seed=self.seed,
            order=self.order,
            numbered=self.drawn or self.order is not None,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )

    def val_dataloader(self) -> DataLoader[Any]:
        """The held-out samples in their order."""
        return DataLoader(self.val_set, self.batch_size)

    def test_dataloader(self) -> DataLoader[Any]:
        """The same."""
        return self.val_dataloader()
