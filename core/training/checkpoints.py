"""Checkpoints that survive anything: written whole or not at all, kept on Ctrl-C and on a loss that is not finite."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from ..errors import PolyditError
from .checkpoint_file import DiskCheckpointIO, flush_folder, read_checkpoint

AGREE_EVERY = 20
"""Steps between two agreements of several processes on saving and stopping; each makes them wait for one another."""

__all__ = ["Checkpoints", "Interrupted", "read_checkpoint"]


class Interrupted(KeyboardInterrupt):
    """Training was stopped between two steps, and its checkpoint is written."""


class Checkpoints(Checkpoint):
    """Writes ``last.ckpt`` regularly, after validation and at the end, and ``best.ckpt`` when validation improves.

    A file is written under a temporary name and renamed, so the name always holds a whole checkpoint. The first
    Ctrl-C (or SIGTERM) stops after the running step and writes; the second stops at once.

    Args:
        folder: Where the files go.
        every_minutes: Longest time between two ``last.ckpt``; None leaves it to the other occasions.
        every_n_steps: Optimiser steps between two ``last.ckpt``, besides; None is by time only.
        monitor: Logged value whose least is best; None keeps no ``best.ckpt``.
    """

    def __init__(
        self,
        folder: str | Path,
        every_minutes: float | None = 10.0,
        every_n_steps: int | None = None,
        monitor: str | None = "val/loss",
    ) -> None:
        self.folder = Path(folder)
        self.every_minutes = every_minutes
        self.every_n_steps = every_n_steps
        self.monitor = monitor
        self.best_score: float | None = None
        self.validated_step = -1
        self._saved_step = -1
        self._saved_time = time.monotonic()
        self._stop: str | None = None
        self._handlers: dict[int, Any] = {}

    @property
    def last(self) -> Path:
        """Path of the newest checkpoint."""
        return self.folder / "last.ckpt"

    @property
    def best(self) -> Path:
        """Path of the checkpoint with the least monitored value."""
        return self.folder / "best.ckpt"

    # -- when ----------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remove what a killed run left half-written, and take the signals over (workers then ignore Ctrl-C)."""
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = DiskCheckpointIO()
        if stage == "fit" and trainer.is_global_zero:
            for path in (self.last, self.best):
                temporary_of(path).unlink(missing_ok=True)
        if stage == "fit" and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self._on_signal)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the signals back."""
        self.give_signals_back()

    def give_signals_back(self) -> None:
        """Restore the handlers that were there; after an interrupt Lightning does not, and leaves Ctrl-C ignored."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._stop is not None:
            raise KeyboardInterrupt
        self._stop = signal.Signals(number).name
        if os.getpid() == self._pid and not rank_zero_only.rank:
            sys.stderr.write("\nstopping after this step (again: at once, without a checkpoint of it)\n")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock, and be the only one to handle signals.

        Lightning has put its own handler before ours: it lets processes talk in the middle of whatever they are doing,
        where they no longer fit together, and ends a run between accumulated batches without a checkpoint.
        """
        for number in self._handlers:
            signal.signal(number, self._on_signal)
        self._saved_time = time.monotonic()
        self._saved_step = trainer.global_step

    _pid = os.getpid()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write if it is time; stop if it was asked for; both only where an optimiser step ended."""
        if trainer.fit_loop._should_accumulate() or trainer.fast_dev_run:
            return
        step = trainer.global_step
        # The end of the run is written here and not in on_train_end: there, Lightning has counted the epoch as done,
        # and a run that is prolonged would not find its place in the data.
        due = trainer.should_stop or self._is_end(trainer)
        due = due or (self.every_n_steps is not None and step % self.every_n_steps == 0)
        if trainer.world_size == 1 or step % AGREE_EVERY == 0:
            self._stop_if_asked(trainer)
            if self.every_minutes is not None:
                late = time.monotonic() - self._saved_time >= 60 * self.every_minutes
                due = trainer.strategy.broadcast(late) or due
        if due and step != self._saved_step:
            self.save(trainer, self.last)

    def on_validation_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Stop if it was asked for."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking and not trainer.fast_dev_run:
            self._stop_if_asked(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write, and keep the best."""
        if trainer.state.fn != "fit" or trainer.sanity_checking or trainer.fast_dev_run:
            return
        self.validated_step = trainer.global_step
        value = trainer.callback_metrics.get(self.monitor) if self.monitor else None
        if value is not None and (self.best_score is None or float(value) < self.best_score):
            self.best_score = float(value)
            self.save(trainer, self.best)
        if trainer.global_step != self._saved_step:
            self.save(trainer, self.last)

    @staticmethod
    def _is_end(trainer: Trainer) -> bool:
        last_epoch = trainer.max_epochs not in (None, -1) and trainer.current_epoch + 1 >= trainer.max_epochs
        by_steps = trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps
        return by_steps or (last_epoch and trainer.is_last_batch)

    def _stop_if_asked(self, trainer: Trainer) -> None:
        if trainer.strategy.broadcast(self._stop) is not None:
            self.save(trainer, self.last)
            raise Interrupted

    # -- how -----------------------------------------------------------------------------------------------

    def save(self, trainer: Trainer, path: Path) -> None:
        """Write a checkpoint under a temporary name, then rename it.

        Raises:
            PolyditError: the disk is full or the folder cannot be written.
        """
        temporary = temporary_of(path)
        try:
            if trainer.is_global_zero:
                path.parent.mkdir(parents=True, exist_ok=True)
            trainer.save_checkpoint(temporary, weights_only=False)
            if trainer.is_global_zero:
                os.replace(temporary, path)
                flush_folder(path.parent)
        except OSError as error:
            advice = (
                "the checkpoint before it is kept. Make room, then resume with --ckpt_path last"
                if self.last.exists()
                else "there is none before it. Make room or choose another --output, then start again"
            )
            raise PolyditError(f"{path}: cannot be written ({error.strerror or error}); {advice}") from error
        finally:
            if trainer.is_global_zero:
                temporary.unlink(missing_ok=True)
        if path == self.last:
            self._saved_step = trainer.global_step
            self._saved_time = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must know."""
        return {"best_score": self.best_score}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Counterpart of :meth:`state_dict`."""
        self.best_score = state_dict["best_score"]


def temporary_of(path: Path) -> Path:
    """Where a checkpoint is written before it takes its name."""
    return path.with_name(f".{path.name}.partial")


def resume_command(argv: list[str], folder: Path) -> str:
    """The command line that goes on with the run in ``folder``, given the one that was interrupted."""
    kept, skip = [], False
    for word in argv:
        if skip or word in ("--ckpt_path", "--name"):
            skip = not skip
        elif not word.startswith(("--ckpt_path=", "--name=")):
            kept.append(word)
    return shlex.join(["polydit", *kept, "--name", folder.name, "--ckpt_path", "last"])
