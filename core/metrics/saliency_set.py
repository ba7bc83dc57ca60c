"""The measures of `saliency` over a data set."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from . import saliency

__all__ = ["SaliencyMetrics"]

_POINTS = ("adaptive_f", "weighted_f", "mae", "s", "adaptive_e", "iou", "hce")


class SaliencyMetrics(Metric):
    """Scores of soft masks over pictures of any size, also across processes.

    ``max_f``, ``mean_f``, ``max_e`` and ``mean_e`` are of the mean curve over pictures, as PySODMetrics and DiffDIS
    have them. ``max_f_dataset`` is the F-measure of mean precision and mean recall, as IS-Net and PDFNet have it: a
    different number.

    Example:
        >>> metric = SaliencyMetrics()
        >>> metric.update(prediction, target)
        >>> metric.compute()["max_f"]
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False
    curves: Tensor
    points: Tensor
    count: Tensor

    def __init__(self, binarize: float | None = None, hce: bool = True) -> None:
        """Prepare the sums.

        Args:
            binarize: see `saliency.prepare`.
            hce: whether to estimate the human correction effort, the slowest.
        """
        super().__init__()
        self.binarize, self.hce = binarize, hce
        self.add_state("curves", torch.zeros(4, 256, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("points", torch.zeros(len(_POINTS), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, prediction: Any, target: Any) -> None:
        """Add one mask (H, W) or a batch (B, 1, H, W), see `saliency.prepare`."""
        if prediction.ndim != target.ndim:
            raise ValueError(
                f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)}: not of one shape"
            )
        pairs = [(prediction, target)] if prediction.ndim < 3 else zip(prediction, target, strict=True)
        for one, truth in pairs:
            p, g = saliency.prepare(one, truth, self.binarize)
            curve = saliency.f_measure_curve(p, g)
            curves = np.stack([*curve, saliency.e_measure_curve(p, g)])
            points = {"hce": 0.0, **saliency.point_scores(p, g, self.hce)}
            self.curves += torch.from_numpy(curves).to(self.curves.device)
            self.points += torch.tensor([points[name] for name in _POINTS], dtype=torch.float64).to(
                self.points.device
            )
            self.count += 1

    def compute(self) -> dict[str, Tensor]:
        """Return the scores by name, float64 scalars; NaN without pictures."""
        precision, recall, f, e = self.curves / self.count
        of_means = saliency.f_measure(precision.cpu().numpy(), recall.cpu().numpy())
        scores = {
            "max_f": f.max(),
            "mean_f": f.mean(),
            "max_f_dataset": torch.tensor(of_means.max()),
            "max_e": e.max(),
            "mean_e": e.mean(),
        }
        scores |= dict(zip(_POINTS, self.points / self.count, strict=True))
        if not self.hce:
            del scores["hce"]
        return scores
