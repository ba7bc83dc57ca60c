"""Mean of a per-picture metric over a data set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

__all__ = ["PictureMean"]


class PictureMean(Metric):
    """Average ``function(prediction, target)`` over pictures, as the papers do, also across processes.

    The mean of per-picture decibels is not the decibels of the mean error. A picture that is reproduced
    exactly has infinite PSNR and makes the mean infinite.

    Example:
        >>> metric = PictureMean(psnr, channels="y", crop=4)
        >>> metric.update(prediction, target)
        >>> metric.compute()
    """

    is_differentiable = False
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(
        self, function: Callable[..., Tensor], higher_is_better: bool = True, **settings: Any
    ) -> None:
        """Prepare the sum.

        Args:
            function: takes prediction and target, returns one value per picture, (B,).
            higher_is_better: for those who pick the best checkpoint.
            settings: passed to ``function``.
        """
        super().__init__()
        # In a list a network is not a submodule: its weights stay out of the checkpoints of the metric's
        # user.
        self._function: list[Callable[..., Tensor]] = [function]
        self.settings = settings
        self._higher_is_better = higher_is_better
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    @property
    def higher_is_better(self) -> bool:  # type: ignore[override]  # torchmetrics has a constant per class
        """Which direction is better."""
        return self._higher_is_better

    def update(self, prediction: Any, target: Any) -> None:
        """Add a batch."""
        values = self._function[0](prediction, target, **self.settings).detach()
        self.total += values.cpu().double().sum().to(self.total.device)
        self.count += values.numel()

    def compute(self) -> Tensor:
        """Return the mean, a float64 scalar."""
        return self.total / self.count
