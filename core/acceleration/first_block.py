"""First-block caches: the first blocks are always computed, and say whether the others are worth computing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PolyditError
from .blocks import BlockPort, find_blocks
from .clock import Moment
from .delta_dit import span
from .estimators import Taylor
from .policy import Policy
from .sites import CacheSite, SpanSite, Unbind, bind

__all__ = ["FirstBlock"]


class FirstBlock(Policy):
    """Leave out the other blocks while the first ones add what they added when all was last computed.

    FBCache of ParaAttention, as in diffusers' ``FirstBlockCacheConfig``; with more blocks at the two ends it is the
    DBCache of cache-dit. A step is computed iff ``mean|r - r_ref| / mean|r_ref| > threshold``, where r is what the
    first blocks add to the image tokens and r_ref that of the last computed step. The comparison waits for the device,
    so compiled code is broken there; replay a report's plan to avoid it.

    Args:
        threshold: of the relative change; 0 is no cache, bit for bit.
        first: how many blocks are always computed and compared.
        last: how many blocks at the end are always computed.
        warmup: how many first steps are full.
        order: of the forecast of what the other blocks add.

    Raises:
        PolyditError: a negative threshold, or no first block.
    """

    def __init__(
        self, threshold: float = 0.05, first: int = 1, last: int = 0, warmup: int = 0, order: int = 0
    ) -> None:
        if not threshold >= 0:  # nor what is no number
            raise PolyditError(f"threshold {threshold}: of the relative change; give 0 or more")
        if first < 1 or last < 0:
            raise PolyditError(f"first {first}, last {last}: at least the first block is always computed")
        self.threshold, self.first, self.last, self.warmup = threshold, first, last, warmup
        self.order = order
        self.estimator = Taylor(order)

    def sites(self, model: nn.Module) -> list[CacheSite]:
        """One span, which watches the blocks in front of it."""
        blocks = [block for _, block in find_blocks(model)]
        if len(blocks) <= self.first + self.last:
            raise PolyditError(
                f"{self}: {type(model).__name__} has {len(blocks)} blocks, so none is left between the first "
                f"{self.first} and the last {self.last}"
            )
        plain = span(model, self.first, len(blocks) - self.last, self.estimator)
        watched = blocks[: self.first]
        left_out = [port.block for port in plain.ports]
        return [_WatchingSpan(plain.name, left_out, self.estimator, watched, self.threshold)]

    def computes(self, moment: Moment, site: CacheSite) -> bool | None:
        """The signal decides, behind the warm-up."""
        return True if moment.step < self.warmup else None

    def __repr__(self) -> str:
        usual = {"first": 1, "last": 0, "warmup": 0, "order": 0}
        more = "".join(f", {k}={getattr(self, k)}" for k, v in usual.items() if getattr(self, k) != v)
        return f"FirstBlock(threshold={self.threshold}{more})"


class _WatchingSpan(SpanSite):
    """A span that is left out while what is added in front of it hardly changes."""

    def __init__(
        self,
        name: str,
        blocks: list[nn.Module],
        estimator: Taylor,
        watched: list[nn.Module],
        threshold: float,
    ) -> None:
        super().__init__(name, blocks, estimator)
        self.watched = [BlockPort(block) for block in watched]
        self.threshold = threshold
        self._references: dict[int, Tensor] = {}
        self._branch = 0
        self._open = False  # whether the signal is to decide
        self._arrived: Tensor | None = None

    def enter(self, step: int, branch: int, compute: bool | None, learn: bool = True) -> None:
        """As any site; a decision that is made already is left alone."""
        super().enter(step, branch, compute, learn)
        self._branch, self._open = branch, compute is None

    def forget(self, branch: int | None = None) -> None:
        """The references too."""
        super().forget(branch)
        if branch is None:
            self._references.clear()
        else:
            self._references.pop(branch, None)

    def attach(self) -> list[Unbind]:
        """Watch the first blocks, bind the others."""
        watching = [
            bind(port.block, "forward", self._watch(port, index, port.block.forward))
            for index, port in enumerate(self.watched)
        ]
        return watching + super().attach()

    def _watch(self, port: BlockPort, index: int, inner: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            output = inner(*args, **kwargs)
            if self.active:
                if index == 0:
                    self._arrived = port.read(args, kwargs)[0]
                if index == len(self.watched) - 1:
                    left = port.streams(output)[0]
                    assert left is not None
                    assert self._arrived is not None
                    self._judge(left - self._arrived)
                    self._arrived = None
            return output

        return forward

    @torch.compiler.disable
    def _judge(self, added: Tensor) -> None:
        reference = self._references.get(self._branch)
        if self._open:
            compute = reference is None
            if reference is not None:
                change = (added - reference).abs().mean() / reference.abs().mean()
                compute = not bool(change <= self.threshold)  # a change that is no number is one
            self.decide(compute)
        if self.compute:
            self._references[self._branch] = added
