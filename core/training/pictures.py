"""Pictures of the held-out set during training, made by the pipeline that will be exported."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import Callback, Trainer

from ..media import OutputWriter, comparison_sheet
from .module import DiffusionModule
from .sharding import is_sharded
from .trackers import log_picture

__all__ = ["Pictures"]


class Pictures(Callback):
    """After each validation, sheets of :meth:`DiffusionModule.pictures` as PNG files and in the tracker.

    They show the average of the weights, from the same first batch and the same seed every time. Running out of memory
    here ends the pictures, not the training.

    Args:
        folder: Where ``step_00001000_0.png`` goes.
        seed: Of the noise.
    """

    def __init__(self, folder: str | Path, seed: int = 0) -> None:
        self.folder = Path(folder)
        self.seed = seed
        self._batch: Any = None
        self._enabled = True

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the first batch."""
        if batch_idx == 0 and dataloader_idx == 0 and not trainer.sanity_checking:
            self._batch = batch

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Run the pipeline; the average of the weights is in the module at this point."""
        batch, self._batch = self._batch, None
        if batch is None or not self._enabled or type(pl_module).pictures is DiffusionModule.pictures:
            return
        if is_sharded(pl_module):
            # every process holds a part of the weights, so all must run the same pipeline
            batch = trainer.strategy.broadcast(move_data_to_device(batch, torch.device("cpu")))
            batch = move_data_to_device(batch, pl_module.device)
        elif not trainer.is_global_zero:
            return
        devices = [pl_module.device] if pl_module.device.type == "cuda" else []
        try:
            # what the pipeline draws must not change what training draws next
            with torch.no_grad(), torch.random.fork_rng(devices):
                pipeline = pl_module.build_pipeline()
                pipeline.set_progress_bar_config(disable=True)
                sheets = pl_module.pictures(pipeline, batch, torch.Generator().manual_seed(self.seed))
        except torch.OutOfMemoryError:
            self._enabled = False
            torch.cuda.empty_cache()
            sys.stderr.write(
                "pictures: not enough memory beside the training; there will be none (--pictures false)\n"
            )
            return
        if not trainer.is_global_zero:
            return
        writer = OutputWriter(self.folder, overwrite=True)
        for number, panels in enumerate(sheets):
            sheet = comparison_sheet(list(panels.items()))
            writer.image(f"step_{trainer.global_step:08d}_{number}.png", sheet)
            log_picture(trainer.loggers, f"pictures/{number}", sheet, trainer.global_step)
