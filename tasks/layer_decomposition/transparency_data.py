"""Transparent pictures: cut-outs of a corpus or a folder, and drawn discs and glass."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from ...core.data.images import read_image, to_uint8
from ...core.data.picture_lists import pictures_of
from ...core.errors import PolyditError
from ...core.training.data import TaskData

__all__ = ["TransparencyData", "TransparentPictures", "draw_transparent"]


def draw_transparent(rng: np.random.Generator, side: int) -> np.ndarray:
    """Discs, rings and glass in straight RGBA (side, side, 4), in [0, 1]."""
    y, x = np.mgrid[:side, :side].astype(np.float32)
    total = np.zeros((side, side, 4), np.float32)
    for _ in range(int(rng.integers(1, 5))):
        cx, cy = rng.uniform(0.15, 0.85, 2) * side
        radius = rng.uniform(0.12, 0.4) * side
        distance = np.hypot(x - cx, y - cy)
        edge = rng.uniform(1.0, 0.15 * side) if rng.random() < 0.4 else 1.2  # a glow, or a hard edge
        alpha = np.clip((radius - distance) / edge + 0.5, 0, 1)
        if rng.random() < 0.35:  # glass: clear inside, opaque at the rim
            alpha *= np.clip((distance / radius) ** rng.uniform(1, 4), rng.uniform(0.1, 0.4), 1)
        if rng.random() < 0.25:  # a ring
            alpha *= np.clip((distance - 0.6 * radius) / 1.2 + 0.5, 0, 1)
        angle = rng.uniform(0, 2 * math.pi)
        blend = np.clip((np.cos(angle) * (x - cx) + np.sin(angle) * (y - cy)) / radius / 2 + 0.5, 0, 1)[
            ..., None
        ]
        colour = rng.uniform(0, 1, 3) * blend + rng.uniform(0, 1, 3) * (1 - blend)
        layer = np.concatenate([colour, alpha[..., None]], -1).astype(np.float32)
        a, b = layer[..., 3:], total[..., 3:]
        out = a + b * (1 - a)
        total[..., :3] = (a * layer[..., :3] + (1 - a) * b * total[..., :3]) / np.maximum(out, 1e-6)
        total[..., 3:] = out
    return total


class TransparentPictures(Dataset[dict[str, Any]]):
    """Random crops of transparent pictures; sample i is a pure function of seed and i.

    Args:
        files: with an alpha channel.
        side: of the crops, in pixels.
        length: samples in all.
        drawn: how often a picture is drawn instead.
        seed: of every draw.
    """

    def __init__(self, files: list[Path], side: int, length: int, drawn: float = 0.5, seed: int = 0) -> None:
        self.files, self.side, self.length, self.seed = files, side, length, seed
        self.drawn = drawn if files else 1.0

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng((self.seed, index))
        rgba = draw_transparent(rng, self.side) if rng.random() < self.drawn else self._crop(rng)
        return {"rgba": torch.from_numpy(np.ascontiguousarray(rgba.transpose(2, 0, 1)))}

    def _crop(self, rng: np.random.Generator) -> np.ndarray:
        from PIL import Image

        colour, info = read_image(self.files[int(rng.integers(len(self.files)))], background=None)
        alpha = info.alpha if info.alpha is not None else np.full(colour.shape[:2], 255, np.uint8)
        picture = Image.fromarray(np.dstack([to_uint8(colour), to_uint8(alpha)]))
        scale = self.side * rng.uniform(1.0, 1.6) / min(picture.size)
        width, height = (max(self.side, round(length * scale)) for length in picture.size)
        # Pillow averages RGBA with its alpha premultiplied.
        picture = picture.resize((width, height), Image.Resampling.BOX)
        top, left = int(rng.integers(height - self.side + 1)), int(rng.integers(width - self.side + 1))
        crop = np.asarray(picture, np.float32)[top : top + self.side, left : left + self.side] / 255
        return crop[:, ::-1] if rng.random() < 0.5 else crop


class TransparencyData(TaskData):
    """Transparent pictures for training.

    Args:
        path: a corpus with cut-outs, or a folder of PNGs with alpha.
        side: of the crops, in pixels; divides by 8.
        batch_size: crops per step.
        drawn: share of drawn discs and glass; 1 needs no files.
        held_out: drawn pictures, and as many of the files, that validation looks at.
        num_workers: processes that prepare crops.
        samples_per_epoch: length of an epoch; crops are drawn at random.
        seed: of all draws.

    Raises:
        PolyditError: an option is out of range.
    """

    def __init__(
        self,
        path: str = "data/corpus",
        side: int = 64,
        batch_size: int = 8,
        drawn: float = 0.5,
        held_out: int = 32,
        num_workers: int = 0,
        samples_per_epoch: int = 1_000_000,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if side % 8 or side < 8 or not 0 <= drawn <= 1:
            raise PolyditError(
                f"--data.side {side}, --data.drawn {drawn}: give a multiple of 8 and a share between 0 and 1"
            )
        self.path, self.side, self.batch_size, self.drawn = Path(path).expanduser(), side, batch_size, drawn
        self.held_out, self.num_workers, self.seed = held_out, num_workers, seed
        self.samples_per_epoch = samples_per_epoch

    def setup(self, stage: str | None = None) -> None:
        """Find the pictures.

        Raises:
            PolyditError: there are none.
        """
        train, val = (
            ([], [])
            if self.drawn == 1
            else ([f for f, _ in pictures_of(self.path, part, kind="cutouts")] for part in ("train", "val"))
        )
        self.train_set = TransparentPictures(
            list(train), self.side, self.samples_per_epoch, self.drawn, self.seed
        )
        self.val_set = TransparentPictures(list(val), self.side, self.held_out, self.drawn, self.seed + 1)
