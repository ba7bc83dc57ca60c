"""Training part of the dummy task."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DiffusionPipeline
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from polydit.core.errors import PolyditError
from polydit.core.training import DiffusionModule

from .pipeline import DuskPipeline


class Dusk(DiffusionModule):
    """Learns grey squares."""

    def target(self, batch: Tensor) -> Tensor:
        return batch

    def build_pipeline(self) -> DiffusionPipeline:
        return DuskPipeline(self.backbone)


class Nights(LightningDataModule):
    """Grey squares."""

    def __init__(self, batch_size: int = 2, folder: str | None = None) -> None:
        super().__init__()
        self.batch_size, self.folder = batch_size, folder

    def setup(self, stage: str) -> None:
        if self.folder is not None:
            raise PolyditError(f"--data.folder {self.folder}: no such folder")

    def train_dataloader(self) -> Any:
        return DataLoader(torch.zeros(4, 3, 4, 4), self.batch_size)

    val_dataloader = train_dataloader
