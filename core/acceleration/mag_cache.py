"""MagCache: leave the blocks out while the size of what they add is known to stay the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PolyditError
from .clock import Moment
from .delta_dit import span
from .estimators import Taylor
from .policy import Policy
from .sites import CacheSite, SpanSite

__all__ = ["MagCache", "magnitude_ratios"]


class MagCache(Policy):
    """Leave out all blocks by ratios that were measured once ("MagCache", arXiv 2506.09045).

    From step to step what the blocks add changes its size by a ratio that hardly depends on the prompt. Behind the
    first steps, ``R *= ratio[step]`` and ``error += |1 - R|`` are accumulated; blocks are left out while the error
    stays below the threshold and not more than ``max_skip`` steps in a row.

    Args:
        ratios: of each step to the step before, as :func:`magnitude_ratios` measures them; the first is 1. A run of
            another length takes the nearest.
        threshold: of the accumulated error.
        max_skip: most steps left out in a row.
        retention: part of the steps, at the begin, that are full.

    Raises:
        PolyditError: there are no ratios, or the threshold is negative.
    """

    def __init__(
        self, ratios: Sequence[float], threshold: float = 0.06, max_skip: int = 3, retention: float = 0.2
    ) -> None:
        if not ratios:
            raise PolyditError(
                "ratios: MagCache needs those of this network; magnitude_ratios() measures them"
            )
        if not threshold >= 0:
            raise PolyditError(f"threshold {threshold}: of the accumulated error; give 0 or more")
        if max_skip < 0 or not 0 <= retention <= 1:
            raise PolyditError(
                f"max_skip {max_skip}, retention {retention}: steps in a row, 0 or more, and a part from 0 to 1"
            )
        self.ratios = [float(ratio) for ratio in ratios]
        self.threshold, self.max_skip, self.retention = threshold, max_skip, retention
        self._schedules: dict[int, list[bool]] = {}

    def sites(self, model: nn.Module) -> list[CacheSite]:
        """One span: all blocks."""
        return [span(model, 0, None, Taylor())]

    def computes(self, moment: Moment, site: CacheSite) -> bool | None:
        """By the accumulated ratios; a run of which nobody says the length has that of the ratios."""
        total = len(self.ratios) if moment.total is None else moment.total
        if moment.step >= total:
            raise PolyditError(
                f"{self}: its ratios are of {total} steps, and the run goes on; sample inside "
                "`with handle.run(steps):`, or accelerate the pipeline rather than its network"
            )
        if total not in self._schedules:
            self._schedules[total] = self.schedule(total)
        return self._schedules[total][moment.step]

    def schedule(self, total: int) -> list[bool]:
        """For each step, whether it is full."""
        ratios = _nearest(self.ratios, total)
        kept = int(self.retention * total + 0.5)
        full, ratio, error, skipped = [], 1.0, 0.0, 0
        for step in range(total):
            compute = True
            if step >= kept:
                ratio, skipped = ratio * ratios[step], skipped + 1
                error += abs(1 - ratio)
                compute = step == 0 or error > self.threshold or skipped > self.max_skip
                if compute:
                    ratio, error, skipped = 1.0, 0.0, 0
            full.append(compute)
        return full

    def __repr__(self) -> str:
        return f"MagCache(threshold={self.threshold}, max_skip={self.max_skip}, retention={self.retention})"


def _nearest(values: Sequence[float], length: int) -> list[float]:
    if length == len(values):
        return list(values)
    if length == 1:
        return [values[-1]]
    scale = (len(values) - 1) / (length - 1)
    return [values[round(index * scale)] for index in range(length)]


def magnitude_ratios(target: Any, run: Callable[[], object]) -> list[float]:
    """Measure the ratios of a network in one uncached run, for :class:`MagCache`.

    Args:
        target: as of :func:`~polydit.core.acceleration.accelerate`.
        run: samples once; with separate guidance the first branch is measured.

    Returns:
        For each step the mean over the tokens of ``|added| / |added in the step before|``, 1 first.
    """
    from .handle import accelerate

    policy = _Measuring()
    with accelerate(target, policy):
        run()
    return policy.site.ratios


class _Measuring(Policy):
    """Computes everything and looks at what the blocks add."""

    def sites(self, model: nn.Module) -> list[CacheSite]:
        plain = span(model, 0, None, Taylor())
        self.site = _MeasuringSpan(plain.name, [port.block for port in plain.ports], Taylor())
        return [self.site]

    def begin(self, total: int | None) -> None:
        self.site.ratios = []

    def computes(self, moment: Moment, site: CacheSite) -> bool | None:
        assert isinstance(site, _MeasuringSpan)
        site.measuring = moment.branch == 0
        return True

    def __repr__(self) -> str:
        return "MagCache's measurement"


class _MeasuringSpan(SpanSite):
    measuring = False

    def __init__(self, name: str, blocks: Sequence[nn.Module], estimator: Taylor) -> None:
        super().__init__(name, blocks, estimator)
        self.ratios: list[float] = []

    @torch.compiler.disable
    def keep(self, value: Any) -> None:
        """Compare with what was kept, then keep."""
        if self.measuring:
            ratio = 1.0
            if self.memory.factors:
                ratio = float((_sizes(value[0]) / (_sizes(self.memory.factors[0][0]) + 1e-8)).mean())
            self.ratios.append(ratio)
        super().keep(value)


def _sizes(tokens: Tensor) -> Tensor:
    return torch.linalg.vector_norm(tokens.detach().float(), dim=-1)
