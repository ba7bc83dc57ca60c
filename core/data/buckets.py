"""Pictures of many shapes: each is brought to the nearest of a few sizes, and a batch holds one size only."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, default_collate

from ..errors import PolyditError
from .images import MAX_PIXELS, image_size, read_image, to_uint8
from .picture_lists import pictures_of

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

__all__ = ["BucketSampler", "BucketedPictures", "bucket_loader", "bucket_sizes", "nearest_bucket"]

Size = tuple[int, int]
"""Height and width in pixels."""


def bucket_sizes(resolution: int, divisor: int = 16, max_ratio: float = 2.0) -> list[Size]:
    """Sizes of about equal area, from upright to wide.

    Args:
        resolution: Side of the square among them, pixels; no size has more than ``resolution ** 2``.
        divisor: Every side is a multiple of it: the patch size times the factor of the autoencoder.
        max_ratio: Greatest ratio of the sides.

    Raises:
        PolyditError: the resolution is no multiple of the divisor, or the ratio is below one.
    """
    if resolution < divisor or resolution % divisor:
        raise PolyditError(f"resolution {resolution}: must be a multiple of {divisor}; choose another one")
    if max_ratio < 1:
        raise PolyditError(f"max_ratio {max_ratio}: must be 1 or more")
    sizes = []
    for width in range(divisor, math.isqrt(int(resolution**2 * max_ratio)) + 1, divisor):
        height = resolution**2 // width // divisor * divisor
        if height and max(width, height) <= max_ratio * min(width, height):
            sizes.append((height, width))
    return sizes


def nearest_bucket(size: Size, buckets: Sequence[Size]) -> int:
    """Number of the bucket whose ratio of sides is nearest; of equal ones, the largest."""
    ratio = math.log(size[1] / size[0])
    return min(
        range(len(buckets)),
        key=lambda i: (
            round(abs(math.log(buckets[i][1] / buckets[i][0]) - ratio), 9),
            -buckets[i][0] * buckets[i][1],
        ),
    )


class BucketedPictures(Dataset[dict[str, Any]]):
    """Whole pictures, reduced until they just cover their bucket and cut to its middle.

    Args:
        root: A folder, a pattern, a list of files or a corpus; see `pictures_of`.
        resolution: See `bucket_sizes`.
        divisor: See `bucket_sizes`.
        max_ratio: See `bucket_sizes`.
        enlarge: By how much a picture that is too small may be enlarged; smaller ones are left out.
        split: Of a corpus or folder.
        max_pixels: Larger pictures are refused.

    Each sample is a dict with ``pixels`` (3, H, W) float32 in [-1, 1], ``name``, and ``caption``, the text of the file
    of the same name with the ending ``.txt`` (empty without one).

    Raises:
        PolyditError: no picture can be used; says how many there are and why they were refused.
    """

    def __init__(
        self,
        root: str | Path | Sequence[str | Path],
        resolution: int = 512,
        divisor: int = 16,
        max_ratio: float = 2.0,
        enlarge: float = 1.0,
        split: str | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.sizes = bucket_sizes(resolution, divisor, max_ratio)
        self.max_pixels = max_pixels
        self.paths: list[Path] = []
        self.bucket_of: list[int] = []
        self.refused: dict[str, list[str]] = {"unreadable": [], "too small": []}
        listed = pictures_of(root, split)
        for path, known in listed:
            try:
                width, height = known or image_size(path, max_pixels=max_pixels)
            except PolyditError as error:
                self.refused["unreadable"].append(str(error))
                continue
            bucket = nearest_bucket((height, width), self.sizes)
            if _cover((height, width), self.sizes[bucket]) > enlarge:
                self.refused["too small"].append(f"{path}: {width}x{height}")
                continue
            self.paths.append(path)
            self.bucket_of.append(bucket)
        if not self.paths:
            why = "; ".join(
                f"{len(lines)} {why} ({lines[0]})" for why, lines in self.refused.items() if lines
            )
            raise PolyditError(
                f"{root}: none of {len(listed)} pictures fits {resolution} pixels: {why}; give larger pictures, a "
                "smaller resolution or more enlargement"
            )

    @property
    def settings(self) -> dict[str, Any]:
        """What the pixels depend on besides the file and its bucket; see `TensorCache`."""
        return {"preparation": "cover and centre, lanczos"}

    def describe(self) -> list[str]:
        """A line for each bucket that has pictures, and one for each reason to refuse some."""
        counts = np.bincount(self.bucket_of, minlength=len(self.sizes))
        lines = [f"{w}x{h}: {n} pictures" for (h, w), n in zip(self.sizes, counts, strict=True) if n]
        return lines + [f"{why}: {len(names)}, {names[0]}" for why, names in self.refused.items() if names]

    def caption(self, index: int) -> str:
        """The text beside a picture; empty without one."""
        file = self.paths[index].with_suffix(".txt")
        try:
            return file.read_text(encoding="utf-8").strip() if file.is_file() else ""
        except (OSError, UnicodeDecodeError) as error:
            raise PolyditError(f"{file}: is no caption in UTF-8 ({error}); write it anew") from error

    def pixels(self, index: int) -> Tensor:
        """(3, H, W) float32 in [-1, 1], of the size of its bucket."""
        height, width = self.sizes[self.bucket_of[index]]
        picture = Image.fromarray(to_uint8(read_image(self.paths[index], max_pixels=self.max_pixels)[0]))
        factor = _cover((picture.height, picture.width), (height, width))
        # the part of the picture that fills the bucket, in its own pixels; rounding must not lead over its edge
        part = (min(width / factor, picture.width), min(height / factor, picture.height))
        left, top = (picture.width - part[0]) / 2, (picture.height - part[1]) / 2
        box = (left, top, left + part[0], top + part[1])
        array = np.array(picture.resize((width, height), Image.Resampling.LANCZOS, box=box))
        return torch.from_numpy(array).permute(2, 0, 1).float().div_(127.5).sub_(1).contiguous()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"pixels": self.pixels(index), "caption": self.caption(index), "name": str(self.paths[index])}


class BucketSampler(DistributedSampler[list[int]]):
    """Batches of one bucket each, in an order that depends on seed and epoch only, from where a run stopped.

    All processes take their share of the same bucket at the same time, since unequal sizes would make them wait for
    one another. The last batch of a bucket is filled up from its beginning, so that no picture is left out.

    Args:
        bucket_of: Number of the bucket of each sample.
        trainer: Of the run; None starts at the beginning, alone.
        batch_size: Samples in a batch of one process.
        shuffle: False keeps the order of the data set, bucket after bucket.
        seed: Of the order.
    """

    def __init__(
        self,
        bucket_of: Sequence[int],
        trainer: Trainer | None,
        batch_size: int,
        shuffle: bool = True,
        seed: int = 0,
    ) -> None:
        world, rank = (trainer.world_size, trainer.global_rank) if trainer is not None else (1, 0)
        self.buckets = [np.flatnonzero(np.asarray(bucket_of) == number) for number in sorted(set(bucket_of))]
        self.trainer, self.batch_size = trainer, batch_size
        self.batches = sum(-(-len(members) // (batch_size * world)) for members in self.buckets)
        limit = 1.0 if trainer is None else trainer.limit_train_batches
        self.limit = min(self.batches, limit) if isinstance(limit, int) else int(self.batches * limit)
        super().__init__(range(self.batches), num_replicas=world, rank=rank, shuffle=shuffle, seed=seed)  # type: ignore[arg-type]
        self.epoch = 0

    def __len__(self) -> int:
        """Batches of this process in an epoch."""
        return self.batches

    def set_epoch(self, epoch: int) -> None:
        """Nothing: the epoch follows from the samples that the run has seen."""

    def place(self) -> tuple[int, int]:
        """The epoch, and how many of its samples this process has used."""
        seen = getattr(getattr(self.trainer, "lightning_module", None), "samples_seen", 0)
        epoch, batch = (
            divmod(seen // (self.num_replicas * self.batch_size), self.limit) if self.limit else (0, 0)
        )
        return epoch, batch * self.batch_size

    def order(self, epoch: int) -> list[np.ndarray]:
        """The batches of all processes in an epoch."""
        rng = np.random.default_rng([self.seed, epoch])
        size = self.batch_size * self.num_replicas
        batches = []
        for members in self.buckets:
            members = rng.permutation(members) if self.shuffle else members
            full = np.resize(members, -(-len(members) // size) * size)
            batches += list(full.reshape(-1, size))
        return [batches[i] for i in rng.permutation(len(batches))] if self.shuffle else batches

    def __iter__(self) -> Iterator[list[int]]:  # type: ignore[override]
        """This process' share of the batches that are left in this epoch."""
        self.epoch, used = self.place()
        for batch in self.order(self.epoch)[used // self.batch_size :]:
            yield batch[self.rank :: self.num_replicas].tolist()


class _Batches(Dataset[Any]):
    """Whole batches by the list of their samples: a loader whose sampler makes the batches itself."""

    def __init__(self, data: Dataset[Any]) -> None:
        self.data = data

    def __getitem__(self, numbers: list[int]) -> Any:
        return default_collate([self.data[number] for number in numbers])


def bucket_loader(
    data: Dataset[Any],
    bucket_of: Sequence[int],
    trainer: Trainer | None,
    batch_size: int,
    *,
    shuffle: bool = True,
    seed: int = 0,
    **options: Any,
) -> DataLoader[Any]:
    """A training loader over buckets that goes on where a run stopped.

    Args:
        data: `BucketedPictures`, or anything else whose samples of one bucket can be stacked, such as their latents.
        bucket_of: Number of the bucket of each sample.
        trainer: ``self.trainer`` of the data module.
        batch_size: Samples in a batch of one process.
        shuffle: Another order in each epoch.
        seed: Of the order.
        options: Further ones of :class:`torch.utils.data.DataLoader`.
    """
    sampler = BucketSampler(bucket_of, trainer, batch_size, shuffle, seed)
    generator = torch.Generator().manual_seed(seed)  # else an epoch's beginning draws from the global state
    return DataLoader(_Batches(data), None, sampler=sampler, generator=generator, **options)


def _cover(size: Size, bucket: Size) -> float:
    """Factor on a picture that just covers a bucket."""
    return max(bucket[0] / size[0], bucket[1] / size[1])
