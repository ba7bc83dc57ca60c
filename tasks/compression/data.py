"""Crops of pictures for training, whole crops of held-out ones for validation."""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from ...core.data.pictures import PictureCrops
from ...core.errors import PolyditError
from ...core.training.data import TaskData
from .codec import MULTIPLE
from .data_sets import pictures_in

__all__ = ["CompressionData"]


class Crops(Dataset[dict[str, Any]]):
    """Samples ``picture`` (3, size, size) in [-1, 1]."""

    def __init__(self, crops: PictureCrops) -> None:
        self.crops = crops

    def __len__(self) -> int:
        return len(self.crops)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"picture": self.crops[index]["gt"]}


class CompressionData(TaskData):
    """Pictures of a corpus made by ``polydit corpus build``, of a folder, or of a data set (DIV2K, CLIC, Kodak).

    Args:
        path: where the training pictures are.
        val_path: held-out pictures; without it those of the corpus or data set, or a tenth of the folder.
        crop: side of the crops in pixels, a multiple of 64.
        batch_size: crops per step.
        reduce_max: crops are taken from up to so many times as large ones, reduced: fewer traces of earlier JPEGs.
        num_workers: processes that prepare crops; 0 prepares them in the training process.
        samples_per_epoch: length of an epoch; crops are drawn at random.
        cache_megabytes: decoded pictures kept per worker.
        strict: fail on an unreadable picture instead of naming it and going on.
        seed: of all draws.

    Raises:
        PolyditError: the crop does not fit the codec.
    """

    drawn = True

    def __init__(
        self,
        path: str = "data/corpus",
        val_path: str | None = None,
        crop: int = 192,
        batch_size: int = 4,
        reduce_max: float = 2.5,
        num_workers: int = 1,
        samples_per_epoch: int = 1_000_000,
        cache_megabytes: int = 800,
        strict: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if crop < MULTIPLE or crop % MULTIPLE:
            raise PolyditError(f"--data.crop {crop}: must be a multiple of {MULTIPLE}")
        self.path, self.val_path = path, val_path
        self.crop, self.batch_size, self.reduce_max = crop, batch_size, reduce_max
        self.num_workers, self.samples_per_epoch = num_workers, samples_per_epoch
        self.cache_megabytes, self.strict, self.seed = cache_megabytes, strict, seed

    def setup(self, stage: str | None = None) -> None:
        """Find the pictures; unreadable or too small ones are named and left out.

        Raises:
            PolyditError: a folder is missing, or holds nothing that can be used.
        """
        held_out = pictures_in(self.val_path or self.path, None if self.val_path else "val")
        options = {
            "size": self.crop,
            "seed": self.seed,
            "strict": self.strict,
            "cache_mb": self.cache_megabytes,
        }
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*are smaller than.*")
            self.train_set = Crops(
                PictureCrops(
                    pictures_in(self.path, "train"),
                    length=self.samples_per_epoch,
                    reduce_max=self.reduce_max,
                    **options,
                )
            )
            self.val_set = Crops(PictureCrops(held_out, center=True, **options))
