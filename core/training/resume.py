"""What makes a resumed run go on instead of starting over: random states, and the place in the data.

Lightning alone replays the epoch's first samples after a resume in the middle of it and, with a fixed seed, the same
noise again.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from ..errors import PolyditError

__all__ = ["NO_BATCH", "RandomState", "ResumableSampler", "collect", "restore", "resumable_loader"]

NO_BATCH = "not one whole batch; lower --data.batch_size or add samples"


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

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore before the checkpoints that a validation leads to; the module's own hook comes after them."""
        pl_module.restore_random_states()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore, after set-up has drawn its own numbers and before the first sample is read."""
        if self._loaded is not None:
            restore(self._loaded)
            self._loaded = None
        elif trainer.global_rank:
            torch.manual_seed(
                torch.initial_seed() + trainer.global_rank
            )  # no two processes drop out the same
        align_progress(trainer)


def collect() -> dict[str, Any]:
    """All global random states as tensors and plain values, so that reading them back runs no code."""
    numpy_state: Any = np.random.get_state()  # noqa: NPY002 - the global state is what we keep
    kind, keys, position, has_gauss, gauss = numpy_state
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


def align_progress(trainer: Trainer) -> None:
    """Count the batches of a resumed epoch in the present size, where the run went on with another one.

    Lightning accumulates gradients and ends epochs by that count.
    """
    module, loader = trainer.lightning_module, trainer.train_dataloader
    sampler: Any = getattr(loader, "sampler", None)
    before = getattr(module, "resumed_batch", None)
    if not hasattr(sampler, "place") or before in (None, sampler.batch_size * trainer.world_size):
        return
    batches = sampler.place()[1] // sampler.batch_size
    batches -= batches % trainer.accumulate_grad_batches
    current = trainer.fit_loop.epoch_loop.batch_progress.current
    shift = batches - current.ready
    for name in ("ready", "started", "processed", "completed"):
        setattr(current, name, getattr(current, name) + shift)


class ResumableSampler(DistributedSampler):
    """Samples of a map-style data set in an order that depends on seed and epoch only, from where a run stopped.

    Epoch and place follow from the number of samples that the run has seen, which its checkpoint holds; it may go on
    with other batches or another number of processes. Under several processes each takes its own share.

    Args:
        data: The data set.
        trainer: Of the run; None starts at the beginning, alone.
        batch_size: Of the loader.
        shuffle: False keeps the order of the data set.
        seed: Of the order.
        drop_last: Whether the loader drops an incomplete last batch.
        numbered: Let the numbers of samples go on counting after an epoch, as ``epoch * len(data) + i``, for a data
            set that draws at random by them and takes them modulo its length.
        order: The samples of an epoch, given its number, in the order of all processes; None mixes all samples.
    """

    def __init__(
        self,
        data: Dataset[Any],
        trainer: Trainer | None,
        batch_size: int,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = True,
        numbered: bool = False,
        order: Callable[[int], np.ndarray] | None = None,
    ) -> None:
        world, rank = (trainer.world_size, trainer.global_rank) if trainer is not None else (1, 0)
        super().__init__(data, num_replicas=world, rank=rank, shuffle=shuffle, seed=seed, drop_last=False)
        self.trainer = trainer
        self.batch_size = batch_size
        self.numbered = numbered
        self.order = order
        batches = len(self) // batch_size if drop_last else -(-len(self) // batch_size)
        limit = 1.0 if trainer is None else trainer.limit_train_batches
        self.batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)

    def set_epoch(self, epoch: int) -> None:
        """Nothing: Lightning counts an epoch that a step or time limit cut short as a whole one."""

    def place(self) -> tuple[int, int]:
        """The epoch, and how many of its samples this process has used."""
        seen = self.trainer.lightning_module.samples_seen if self.trainer is not None else 0
        share = min(self.batches * self.batch_size, len(self))
        return divmod(seen // self.num_replicas, share) if share else (0, 0)

    def __iter__(self) -> Iterator[int]:
        """The samples of this process that are left in this epoch."""
        self.epoch, used = self.place()
        first = self.epoch * len(self.dataset) if self.numbered else 0  # type: ignore[arg-type]
        return (first + int(number) for number in self._share()[used:])

    def _share(self) -> Sequence[int] | np.ndarray:
        """The samples of this process in an epoch; as torch does it, the first ones fill up the last round."""
        if self.order is None:
            return list(super().__iter__())
        return np.resize(self.order(self.epoch), self.total_size)[self.rank :: self.num_replicas]


def resumable_loader(
    data: Dataset[Any],
    trainer: Trainer | None,
    batch_size: int,
    *,
    shuffle: bool = True,
    seed: int = 0,
    drop_last: bool = True,
    numbered: bool = False,
    order: Callable[[int], np.ndarray] | None = None,
    **options: Any,
) -> DataLoader[Any]:
    """A training loader that goes on where a run stopped; for ``train_dataloader`` of a data module.

    Args:
        data: A map-style data set. What it draws at random should depend on the sample's number, not on the state of
            its worker, if a resumed run is to see the same.
        trainer: ``self.trainer`` of the data module.
        batch_size: Samples in a batch of one process.
        shuffle: Another order in each epoch.
        seed: Of the order.
        drop_last: Drop an incomplete last batch.
        numbered: See `ResumableSampler`.
        order: See `ResumableSampler`.
        options: Further ones of :class:`torch.utils.data.DataLoader`.

    Raises:
        PolyditError: a run would have no batch to learn from. Outside of a run the loader may be empty.
    """
    sampler = ResumableSampler(data, trainer, batch_size, shuffle, seed, drop_last, numbered, order)
    if trainer is not None and drop_last and len(sampler) < batch_size:  # Lightning would end without a step
        raise PolyditError(f"train data: {NO_BATCH}")
    # Its own generator: a loader without one draws from the global state whenever an epoch begins.
    generator = torch.Generator().manual_seed(seed)
    return DataLoader(data, batch_size, sampler=sampler, drop_last=drop_last, generator=generator, **options)
