"""FORA and TaylorSeer: attention and MLP outputs of a block, reused or forecast between full steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .estimators import Taylor
from .plan import check_order, check_steps, first_then_every
from .policy import BranchPolicy

__all__ = ["FORA", "TaylorSeer"]


class TaylorSeer(BranchPolicy):
    """Forecast features instead of reusing them ("From Reusing to Forecasting", arXiv 2503.06923).

    Gates and modulation are those of the present step; only the outputs of attention and MLP are forecast.

    Args:
        interval: every how many steps all is computed; 1 is no cache, bit for bit.
        order: of the Taylor polynomial; 0 reuses the last value. It grows by one per full step until then.
        first_enhance: how many first steps are full.
        full_steps: the full steps themselves, instead of the two above.
        cross_attention: forecast the attention to the text too.
        dtype: precision of what is kept; None is the network's.

    Raises:
        PolyditError: an interval or a number of first steps below 1, a negative order, full steps without the first.
    """

    def __init__(
        self,
        interval: int = 4,
        order: int = 1,
        first_enhance: int = 2,
        full_steps: Sequence[int] | None = None,
        cross_attention: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        schedule = first_then_every(interval, first_enhance)
        self.full_steps = None if full_steps is None else frozenset(full_steps)
        if self.full_steps is not None:
            check_steps(sorted(self.full_steps), None)
            schedule = self.full_steps.__contains__
        # As released: of the first steps, the last two give the first difference.
        begin = 0 if full_steps is not None else first_enhance - 1
        super().__init__(schedule, Taylor(order, dtype, begin), cross_attention)
        self.interval, self.order, self.first_enhance = interval, order, first_enhance

    def begin(self, total: int | None) -> None:
        """Refuse an order that the run has too few full steps for.

        Raises:
            PolyditError: see above.
        """
        if total is None:
            return
        if self.full_steps is not None:
            check_steps(sorted(self.full_steps), total)
        check_order(str(self), self.schedule, self.order, total, self.estimator.begin)

    def __repr__(self) -> str:
        if self.full_steps is not None:
            return f"TaylorSeer(order={self.order}, full_steps={sorted(self.full_steps)})"
        return f"TaylorSeer(interval={self.interval}, order={self.order}, first_enhance={self.first_enhance})"


class FORA(TaylorSeer):
    """Reuse attention and MLP outputs for ``interval - 1`` steps ("FORA: Fast-Forward Caching", arXiv 2407.01425).

    Args:
        interval: every how many steps all is computed.
        cross_attention: reuse the attention to the text too.
    """

    def __init__(self, interval: int = 3, cross_attention: bool = False) -> None:
        super().__init__(interval, order=0, first_enhance=1, cross_attention=cross_attention)

    def __repr__(self) -> str:
        return f"FORA(interval={self.interval})"
