"""Data of the toy task with something wrong in it, and a task around a large pretrained transformer."""

from __future__ import annotations

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from polydit.core.errors import PolyditError
from polydit.core.training import DiffusionModule


class Samples(Dataset):
    """Twelve samples with the fault of that name."""

    def __init__(self, fault: str) -> None:
        self.fault = fault

    def __len__(self) -> int:
        return 0 if self.fault == "none" else 12

    def __getitem__(self, index: int) -> dict:
        sample = {"target": torch.zeros(1, 4, 4), "mask": torch.ones(1, 4, 4), "name": f"{index}.png"}
        if self.fault == "files" and index in (3, 5):
            raise PolyditError(f"{index}.png: is not a picture; replace it")
        if self.fault == "defect" and index == 3:
            raise KeyError("colour")
        if self.fault == "nan" and index == 7:
            sample["target"] = sample["target"] / 0
        if self.fault == "sizes" and index % 2:
            sample["target"] = torch.zeros(1, 6, 4)
        if self.fault == "mask":
            sample["mask"] = sample["mask"] * 255
        if self.fault == "empty mask":
            sample["mask"] = sample["mask"] * 0
        if self.fault == "channels":
            sample["target"] = torch.zeros(3, 4, 4)
        return sample


class FaultyData(LightningDataModule):
    """Training data with a fault, and held-out data without."""

    def __init__(self, fault: str = "", batch_size: int = 4, workers: int = 0) -> None:
        super().__init__()
        self.fault, self.batch_size, self.workers = fault, batch_size, workers

    def train_dataloader(self) -> DataLoader:
        return DataLoader(Samples(self.fault), self.batch_size, drop_last=True, num_workers=self.workers)

    def val_dataloader(self) -> list[DataLoader]:
        return [DataLoader(Samples(""), self.batch_size), DataLoader(Samples(""), 2)]


class Flux(DiffusionModule):
    """Trains FLUX without a pipeline around it."""

    def target(self, batch: dict) -> torch.Tensor:
        return batch["latents"]

    def condition(self, batch: dict) -> dict:
        return {"encoder_hidden_states": batch["text"], "pooled_projections": batch["pooled"]}


class Latents(LightningDataModule):
    """Latents of a side, with embeddings of text."""

    def __init__(self, side: int = 64, tokens: int = 512) -> None:
        super().__init__()
        self.sample = {
            "latents": torch.zeros(16, side, side),
            "text": torch.zeros(tokens, 4096),
            "pooled": torch.zeros(768),
        }

    def train_dataloader(self) -> DataLoader:
        return DataLoader([self.sample] * 2, 1)
