"""The task's test protocol: what a pipeline gains over bicubic enlargement, picture by picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...core.data.degradation import Degradation
from ...core.data.images import read_image, to_uint8
from ...core.data.pairs import Pair
from ...core.data.pictures import sample_generator
from ...core.errors import PolyditError
from ...core.media import ResultsTable
from ...core.metrics import psnr, ssim
from .formulation import upsample
from .pipeline import SuperResolutionPipeline

__all__ = ["Evaluation", "Score", "evaluate"]

SSIM_WINDOW = 11


@dataclass
class Score:
    """Figures of one picture; PSNR in dB; ``y`` is studio-range luma. The border of ``scale`` pixels is left out."""

    picture: str
    width: int
    height: int
    psnr_bicubic: float
    psnr: float
    psnr_y_bicubic: float
    psnr_y: float
    ssim_bicubic: float | None = None
    ssim: float | None = None
    ssim_y_bicubic: float | None = None
    ssim_y: float | None = None

    @property
    def gain(self) -> float:
        """PSNR (RGB) over bicubic, dB."""
        return self.psnr - self.psnr_bicubic


@dataclass
class Evaluation:
    """Scores of a set of pictures under one degradation and factor.

    Attributes:
        degradation: preset, or ``pairs``.
        scale: the factor.
        scores: one per picture.
    """

    degradation: str
    scale: int
    scores: list[Score] = field(default_factory=list)

    def mean(self, name: str) -> float | None:
        """Mean of a figure over the pictures that have it, as the papers average: decibels, not errors."""
        values = [value for score in self.scores if (value := getattr(score, name)) is not None]
        return float(np.mean(values)) if values else None

    def table(self) -> ResultsTable:
        """One row per picture and their mean."""
        figures = {
            "PSNR bicubic": "psnr_bicubic",
            "PSNR": "psnr",
            "gain": "gain",
            "SSIM bicubic": "ssim_bicubic",
            "SSIM": "ssim",
            "PSNR-Y bicubic": "psnr_y_bicubic",
            "PSNR-Y": "psnr_y",
            "SSIM-Y bicubic": "ssim_y_bicubic",
            "SSIM-Y": "ssim_y",
        }
        title = f"x{self.scale}, {self.degradation}"
        table = ResultsTable(["picture", "size", *figures], title=title, digits=3)
        for score in self.scores:
            size = f"{score.width}x{score.height}"
            table.add(score.picture, size, *(getattr(score, name) for name in figures.values()))
        table.add("mean", "", *(self.mean(name) for name in figures.values()))
        return table

    def record(self) -> dict[str, Any]:
        """JSON-ready: settings, means, and every picture."""
        names = [f.name for f in fields(Score) if f.name not in ("picture", "width", "height")]
        return {
            "degradation": self.degradation,
            "scale": self.scale,
            "border": self.scale,
            "mean": {name: self.mean(name) for name in ("gain", *names)},
            "pictures": [{**asdict(score), "gain": score.gain} for score in self.scores],
        }


def evaluate(
    pipe: SuperResolutionPipeline,
    pictures: Sequence[Path] | Sequence[Pair],
    *,
    degradation: str = "bicubic",
    scale: int = 4,
    limit_side: int | None = None,
    num_inference_steps: int = 1,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> Evaluation:
    """Reduce pictures, enlarge them again and compare, beside bicubic enlargement.

    High-resolution pictures are cut to a multiple of the factor (right and bottom). The degradation of picture
    number i depends on ``seed`` and i only.

    Args:
        pipe: the pipeline.
        pictures: high-resolution pictures, or pairs, which need no degradation.
        degradation: preset of ``polydit.core.data.degradation``.
        scale: the factor.
        limit_side: larger pictures are cut to their middle of at most this side.
        num_inference_steps: of the pipeline.
        seed: of degradation and noise.
        progress: called with (pictures done, pictures in all).
        **options: further ones of the pipeline (``tile``, ``overlap``, ``color_fix``).

    Raises:
        PolyditError: a picture cannot be read, is too small, or has no partner of the right size.
    """
    pipe.check_scale(scale)
    if not pictures:
        raise PolyditError("evaluate: there are no pictures; give a folder with some")
    result = Evaluation("pairs" if isinstance(pictures[0], Pair) else degradation, scale)
    for number, picture in enumerate(pictures):
        if isinstance(picture, Pair):
            name, (low, high) = picture.stem, _read_pair(picture, scale, limit_side)
        else:
            name, high = picture.stem, _cut(_unit(picture), picture, scale, limit_side)
            low = Degradation(degradation, scale)(high, sample_generator(seed, number)).lq
        low, high = low[None] * 2 - 1, high[None] * 2 - 1
        strips = pipe.strips(
            low,
            scale=scale,
            num_inference_steps=num_inference_steps,
            generator=torch.Generator().manual_seed(seed),
            **options,
        )
        restored = torch.cat(list(strips), dim=-2)
        result.scores.append(_compare(name, restored, upsample(low, scale), high, scale))
        if progress is not None:
            progress(number + 1, len(pictures))
    return result


def _compare(name: str, restored: Tensor, bicubic: Tensor, high: Tensor, scale: int) -> Score:
    height, width = high.shape[-2:]
    pictures = {"": restored, "_bicubic": bicubic}
    figures: dict[str, float] = {}
    for suffix, picture in pictures.items():
        for metric in (psnr, ssim):
            if metric is ssim and min(height, width) < SSIM_WINDOW + 2 * scale:
                continue
            for channels, part in (("rgb", ""), ("y", "_y")):
                key = f"{metric.__name__}{part}{suffix}"
                figures[key] = float(metric(picture, high, channels=channels, crop=scale))
    return Score(picture=name, width=width, height=height, **figures)


def _unit(path: Path) -> Tensor:
    """(3, H, W) in [0, 1] on 8-bit levels."""
    return torch.from_numpy(to_uint8(read_image(path)[0]).transpose(2, 0, 1).copy()).float() / 255


def _window(length: int, limit: int | None, scale: int) -> tuple[int, int]:
    """First position and size of what is kept of an axis; both multiples of the factor."""
    size = min(length, limit or length) // scale * scale
    return (length - size) // 2 // scale * scale if limit else 0, size


def _cut(high: Tensor, path: Path, scale: int, limit: int | None) -> Tensor:
    top, height = _window(high.shape[1], limit, scale)
    left, width = _window(high.shape[2], limit, scale)
    if min(height, width) <= 2 * scale:
        raise PolyditError(
            f"{path}: {high.shape[2]}x{high.shape[1]} leaves nothing inside a border of {scale}; leave it out"
        )
    return high[:, top : top + height, left : left + width]


def _read_pair(pair: Pair, scale: int, limit: int | None) -> tuple[Tensor, Tensor]:
    high, low = _unit(pair.hr), _unit(pair.lr)
    if (high.shape[1] // scale, high.shape[2] // scale) != tuple(low.shape[1:]):
        raise PolyditError(
            f"{pair.lr}: {low.shape[2]}x{low.shape[1]} is not {pair.hr.name} ({high.shape[2]}x{high.shape[1]}) "
            f"divided by {scale}; give its --scale"
        )
    (top, height), (left, width) = (_window(side, limit, scale) for side in high.shape[1:])
    cut = _cut(high, pair.hr, scale, limit)
    rows, columns = (
        slice(start // scale, (start + size) // scale) for start, size in ((top, height), (left, width))
    )
    return low[:, rows, columns], cut
