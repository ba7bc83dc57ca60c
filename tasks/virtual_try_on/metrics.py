"""The task's test protocol: how near a dressed person is to the photograph, inside the mask and as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...core.data.masks import bounding_box
from ...core.media import ResultsTable
from ...core.metrics import FrechetDistance, KernelDistance, psnr, ssim
from ...core.metrics.pictures import levels

__all__ = ["Dress", "Evaluation", "distribution_distances", "evaluate", "masked_psnr", "pasted"]

Sample = Mapping[str, Tensor]
Dress = Callable[[Sample, torch.Generator], Tensor]
"""Gives pictures (B, 3, H, W) in [-1, 1] for a batch of samples."""

SSIM_WINDOW = 11


def masked_psnr(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """PSNR over the pixels of the mask only, of each picture: (B,) float64 dB.

    Args:
        prediction: (B, 3, H, W) in [-1, 1]; rounded to 8 bits first, like ``target``.
        target: likewise.
        mask: (B, 1, H, W); above one half is inside.

    Raises:
        ValueError: a mask is empty.
    """
    inside = (mask > 0.5).to(prediction.device)
    counts = inside.sum((1, 2, 3)).double() * prediction.shape[1]
    if not counts.all():
        raise ValueError("PSNR inside the mask: a mask is empty")
    difference = (levels(prediction) - levels(target).to(prediction.device)) * inside
    return 10 * (255**2 * counts / difference.square().sum((1, 2, 3))).log10()


def pasted(sample: Sample, where: str = "mask") -> Tensor:
    """The baseline: every garment, cut out, stretched to a bounding box on its person.

    What is left of the mask gets the mean colour of the pixels around it.

    Args:
        sample: a batch, see `polydit.tasks.virtual_try_on.data`; the garment's own box comes from ``garment_mask``, or
            from what is not nearly white.
        where: ``mask``: the box of the agnostic mask, which every method knows; ``worn_mask``: of the garment as it is
            really worn, which only the drawn scenes know.

    Returns:
        (B, 3, H, W) in [-1, 1].
    """
    results = []
    for number in range(len(sample["person"])):
        person, mask = sample["person"][number], sample["mask"][number]
        garment = sample["garment"][number]
        if "garment_mask" in sample:
            shape = sample["garment_mask"][number]
        else:
            shape = (garment.amin(0, keepdim=True) < 0.85).float()
        around = F.max_pool2d(mask, 7, 1, 3) - mask
        share = around.sum().clamp(min=1)
        ground = (person * around).sum((1, 2)) / share
        result = person * (1 - mask) + ground[:, None, None] * mask
        source, target = bounding_box(shape[0]), bounding_box(sample[where][number, 0])
        if source is not None and target is not None:
            size = (target.height, target.width)
            part, cover = (
                F.interpolate(picture[None][(..., *source.slices)], size, mode="bilinear", antialias=True)[0]
                for picture in (garment, shape)
            )
            place = (..., *target.slices)
            cover = cover * mask[place]
            result[place] = result[place] * (1 - cover) + part * cover
        results.append(result)
    return torch.stack(results)


@dataclass
class Evaluation:
    """Figures of several methods on the same paired samples.

    Attributes:
        count: samples.
        figures: method -> figure -> one value per sample: ``psnr_mask`` and ``psnr`` in dB, ``ssim``, ``lpips``.
        distances: method -> ``fid`` and ``kid`` of unpaired dressing, where features were given.
    """

    count: int = 0
    figures: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    distances: dict[str, dict[str, float]] = field(default_factory=dict)

    def mean(self, method: str, figure: str) -> float | None:
        """Mean over the samples, of decibels as such."""
        values = self.figures[method].get(figure)
        return float(np.mean(values)) if values else None

    def table(self) -> ResultsTable:
        """One row per method."""
        names = {"psnr_mask": "PSNR in mask", "psnr": "PSNR", "ssim": "SSIM", "lpips": "LPIPS"}
        given = [name for name in names if any(name in own for own in self.figures.values())]
        distances = [name for name in ("fid", "kid") if any(name in own for own in self.distances.values())]
        heads = [*(names[name] for name in given), *(f"{name.upper()} unpaired" for name in distances)]
        table = ResultsTable(["method", *heads], title=f"{self.count} pairs", digits=3)
        for method in self.figures:
            own = self.distances.get(method, {})
            table.add(
                method, *(self.mean(method, name) for name in given), *(own.get(name) for name in distances)
            )
        return table

    def record(self) -> dict[str, Any]:
        """JSON-ready: means and all values."""
        return {
            "count": self.count,
            "mean": {
                method: {name: self.mean(method, name) for name in own}
                for method, own in self.figures.items()
            },
            "unpaired": self.distances,
            "values": self.figures,
        }


def evaluate(
    methods: Mapping[str, Dress],
    samples: Iterable[Sample],
    *,
    seed: int = 0,
    lpips: Callable[[Tensor, Tensor], Tensor] | None = None,
    progress: Callable[[int], None] | None = None,
    look: Callable[[int, Sample, dict[str, Tensor]], None] | None = None,
) -> Evaluation:
    """Dress people in what they wear and compare with their photographs.

    Outside of the mask every method's picture is the person's own ("repaint"), which the figures of whole pictures
    depend on.

    Args:
        methods: name -> what dresses a batch.
        samples: batches of pairs, in which the person wears the garment.
        seed: of the noise; batch number i gets the same whatever the method.
        lpips: `polydit.core.metrics.LPIPS`, or anything that compares batches.
        progress: called with the samples done.
        look: called with the number of the batch, the batch, and the picture of each method.
    """
    result = Evaluation(figures={name: {} for name in methods})
    for number, sample in enumerate(samples):
        target, mask = sample["person"], (sample["mask"] > 0.5).float()
        made: dict[str, Tensor] = {}
        for name, dress in methods.items():
            generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
            picture = dress(sample, generator).float().cpu()
            picture = picture * mask + target * (1 - mask)
            made[name] = picture
            own = result.figures[name]
            _extend(own, "psnr_mask", masked_psnr(picture, target, mask))
            _extend(own, "psnr", psnr(picture, target))
            if min(target.shape[-2:]) >= SSIM_WINDOW:
                _extend(own, "ssim", ssim(picture, target))
            if lpips is not None:
                with torch.no_grad():
                    _extend(own, "lpips", lpips(picture, target))
        result.count += len(target)
        if progress is not None:
            progress(result.count)
        if look is not None:
            look(number, sample, made)
    return result


def distribution_distances(
    methods: Mapping[str, Dress],
    samples: Iterable[Sample],
    features: Callable[[Tensor], Tensor],
    size: int,
    *,
    seed: int = 0,
    subsets: int = 100,
    subset_size: int = 1000,
    count: int | None = None,
) -> dict[str, dict[str, float]]:
    """FID and KID between people in garments of others and people as they are photographed.

    Args:
        methods: name -> what dresses a batch.
        samples: unpaired batches: ``person`` as photographed, ``garment`` another one.
        features: maps (B, 3, H, W) in [-1, 1] to (B, size); Inception's give the published distances.
        size: number of features.
        seed: of noise and subsets.
        subsets: of KID.
        subset_size: pictures in each; at most ``count``.
        count: how many samples there are, for the size of the subsets.
    """
    smaller = subset_size if count is None else max(2, min(subset_size, count))
    frechet = {name: FrechetDistance(features, size) for name in methods}
    kernel = {name: KernelDistance(features, subsets, smaller, seed) for name in methods}
    for number, sample in enumerate(samples):
        mask = (sample["mask"] > 0.5).float()
        for name, dress in methods.items():
            generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
            picture = dress(sample, generator).float().cpu() * mask + sample["person"] * (1 - mask)
            for metric in (frechet[name], kernel[name]):
                metric.update(sample["person"], real=True)
                metric.update(picture, real=False)
    return {
        name: {"fid": float(frechet[name].compute()), "kid": float(kernel[name].compute()[0])}
        for name in methods
    }


def _extend(figures: dict[str, list[float]], name: str, values: Tensor | Sequence[float]) -> None:
    found = values.detach().flatten().tolist() if isinstance(values, Tensor) else list(values)
    figures.setdefault(name, []).extend(float(value) for value in found)
