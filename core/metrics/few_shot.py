"""Intersection over union as few-shot segmentation counts it: per class over all episodes."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

__all__ = ["FewShotIoU"]


class FewShotIoU(Metric):
    """mIoU and FB-IoU of binary masks, also across processes.

    Intersections and unions are summed over all episodes of a class, divided, and averaged over the classes that had
    an episode; that is not the mean of the pictures' own ratios. FB-IoU does the same for foreground and background
    of all episodes, and averages the two.

    Example:
        >>> metric = FewShotIoU(classes=20)
        >>> metric.update(found, truth, labels)
        >>> metric.compute()["miou"]
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    intersection: Tensor
    union: Tensor

    def __init__(self, classes: int) -> None:
        """Prepare the sums.

        Args:
            classes: how many there are.
        """
        super().__init__()
        for name in ("intersection", "union"):  # [background, foreground] of each class
            self.add_state(name, torch.zeros(2, classes, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, found: Tensor, truth: Tensor, labels: Tensor, counted: Tensor | None = None) -> None:
        """Add episodes.

        Args:
            found: boolean masks (B, ...).
            truth: boolean masks of the same shape.
            labels: number of each episode's class, (B,).
            counted: boolean, False where a pixel does not count.
        """
        found, truth = found.flatten(1).bool(), truth.flatten(1).bool()
        here = torch.ones_like(found) if counted is None else counted.flatten(1).bool()
        for side, (mine, theirs) in enumerate(((~found, ~truth), (found, truth))):
            both = (mine & theirs & here).sum(1).double()
            either = ((mine | theirs) & here).sum(1).double()
            self.intersection[side].index_add_(0, labels.to(both.device), both)
            self.union[side].index_add_(0, labels.to(both.device), either)

    def per_class(self) -> Tensor:
        """IoU of each class, NaN for those without an episode."""
        return self.intersection[1] / self.union[1]

    def compute(self) -> dict[str, Tensor]:
        """``miou`` and ``fb_iou``, float64 scalars."""
        sides = self.intersection.sum(1) / self.union.sum(1)
        return {"miou": self.per_class().nanmean(), "fb_iou": sides.mean()}
