"""A task outside the package, small enough to train in a second: it paints small grey squares."""

from __future__ import annotations

import torch
from diffusers import DiffusionPipeline
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from polydit.core.backbones import DiT
from polydit.core.data.buckets import bucket_loader
from polydit.core.task import TaskSpec
from polydit.core.training import DiffusionModule
from polydit.core.training.resume import resumable_loader


class ToyPipeline(DiffusionPipeline):
    """Holds the transformer."""

    def __init__(self, transformer: DiT) -> None:
        super().__init__()
        self.register_modules(transformer=transformer)


class Squares(Dataset):
    """``count`` pictures (1, 4, 4); ``bad`` is the number of one that holds NaN."""

    def __init__(self, count: int, bad: int | None = None) -> None:
        generator = torch.Generator().manual_seed(1)
        self.pictures = (
            torch.rand(count, 1, 1, 1, generator=generator).mul(2).sub(1).expand(-1, 1, 4, 4).clone()
        )
        if bad is not None:
            self.pictures[bad] = float("nan")

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> dict:
        return {"target": self.pictures[index], "name": f"square_{index}.png"}


class ToyData(LightningDataModule):
    """Data of the toy task."""

    def __init__(
        self,
        batch_size: int = 4,
        count: int = 8,
        bad: int | None = None,
        held_out: int = 4,
        workers: int = 0,
        resumable: bool = False,
        buckets: bool = False,
    ) -> None:
        super().__init__()
        self.batch_size, self.count, self.bad = batch_size, count, bad
        self.held_out, self.workers, self.resumable, self.buckets = held_out, workers, resumable, buckets

    def train_dataloader(self) -> DataLoader:
        data = Squares(self.count, self.bad)
        if self.buckets:  # of sizes 3 : 1
            bucket_of = [int(number % 4 == 0) for number in range(self.count)]
            return bucket_loader(data, bucket_of, self.trainer, self.batch_size, num_workers=self.workers)
        if self.resumable:
            return resumable_loader(data, self.trainer, self.batch_size, num_workers=self.workers)
        return DataLoader(data, self.batch_size, self.bad is None, drop_last=True, num_workers=self.workers)

    def val_dataloader(self) -> DataLoader | list:
        return DataLoader(Squares(self.held_out), self.batch_size) if self.held_out else []


class Toy(DiffusionModule):
    """Model of the toy task."""

    def __init__(self, backbone: torch.nn.Module, grey: float = 0.0, **kwargs) -> None:
        super().__init__(backbone, **kwargs)
        self.grey = grey

    def target(self, batch: dict) -> torch.Tensor:
        return batch["target"]

    def build_pipeline(self) -> ToyPipeline:
        return ToyPipeline(self.backbone)


TOY = TaskSpec(
    name="toy",
    package="toy",
    summary="grey squares",
    systems=(),
    module="toy:Toy",
    datamodule="toy:ToyData",
    pipeline="toy:ToyPipeline",
    predict="toy:predict",
    demo="toy:build",
    default_weights="toy",
    default_config="toy",
    predict_options=(),
    input_kinds=("image",),
)

CONFIG = """
seed_everything: 3
model:
  backbone:
    class_path: polydit.core.backbones.DiT
    init_args: {input_size: 4, patch_size: 2, in_channels: 1, hidden_size: 16, depth: 2, num_heads: 2}
  optimizer: {lr: 0.005, warmup_steps: 2}
  ema: {decay: 0.9}
data: {batch_size: 4}
trainer: {max_steps: 4, accelerator: cpu, devices: 1}
"""
