"""Delta-DiT and its relatives: blocks left out as a whole, what they added before added again."""

from __future__ import annotations

from torch import nn

from ..errors import PolyditError
from .blocks import find_blocks
from .clock import Moment
from .estimators import Taylor
from .plan import check_order, first_then_every
from .policy import Policy, need_total
from .sites import CacheSite, SpanSite

__all__ = ["BlockSpan", "DeltaDiT"]


class BlockSpan(Policy):
    """Leave out one run of blocks between full steps: DeepCache as it is adapted to transformers.

    Args:
        start: first block left out; blocks of several lists are counted on.
        stop: first block behind them; negative counts from the end, None is the end.
        interval: every how many steps all is computed.
        order: of the forecast of what the blocks add; 0 is the last value.
        residual: False keeps the output of the blocks instead of what they add to their input, which forgets the
            present state; for comparison.
    """

    def __init__(
        self, start: int = 1, stop: int | None = -1, interval: int = 2, order: int = 0, residual: bool = True
    ) -> None:
        self.start, self.stop, self.interval, self.order = start, stop, interval, order
        self.residual = residual
        self.schedule = first_then_every(interval)
        self.estimator = Taylor(order)

    def sites(self, model: nn.Module) -> list[CacheSite]:
        """One span."""
        return [span(model, self.start, self.stop, self.estimator, self.residual)]

    def begin(self, total: int | None) -> None:
        """Refuse an order that the run has too few full steps for."""
        if total is not None:
            check_order(str(self), self.schedule, self.order, total)

    def computes(self, moment: Moment, site: CacheSite) -> bool | None:
        """By the interval."""
        return self.schedule(moment.step)

    def __repr__(self) -> str:
        return f"BlockSpan({self.start}:{'' if self.stop is None else self.stop}, interval={self.interval})"


class DeltaDiT(Policy):
    """Leave out the rear blocks early and the front blocks late (arXiv 2406.01125).

    Front blocks shape the outline, rear blocks the details, and sampling draws outlines first; so what matters less is
    left out: the rear of the network while the outline is drawn, its front once details are. What a span adds is kept
    rather than its output, so that the newest state is not lost.

    Args:
        interval: every how many steps all is computed.
        blocks: how many blocks are left out, or which part of them (published: 21 of 28).
        switch: with this many steps left to do, and more, the rear is left out; or which part of the steps (published:
            12 of 20).

    Raises:
        PolyditError: an interval below 1, or a part that is none.
    """

    def __init__(self, interval: int = 2, blocks: int | float = 0.75, switch: int | float = 0.6) -> None:
        self.schedule = first_then_every(interval)
        for name, value in (("blocks", blocks), ("switch", switch)):
            if value < 0 or (isinstance(value, float) and value > 1):
                raise PolyditError(f"{name} {value}: give a number of them, or a part from 0.0 to 1.0")
        self.interval, self.blocks, self.switch = interval, blocks, switch

    def sites(self, model: nn.Module) -> list[CacheSite]:
        """The front span and the rear one; they may overlap."""
        count = len(find_blocks(model))
        left_out = round(self.blocks * count) if isinstance(self.blocks, float) else self.blocks
        if not 0 < left_out <= count:
            raise PolyditError(f"{self}: cannot leave out {left_out} of {count} blocks; give 1 to {count}")
        estimator = Taylor()
        return [span(model, 0, left_out, estimator), span(model, count - left_out, None, estimator)]

    def begin(self, total: int | None) -> None:
        """The switch is counted from the end."""
        need_total(self, total)

    def computes(self, moment: Moment, site: CacheSite) -> bool | None:
        """All on a full step; else all but the span of the stage."""
        if self.schedule(moment.step):
            return True
        total = need_total(self, moment.total)
        switch = round(self.switch * total) if isinstance(self.switch, float) else self.switch
        rear_is_out = total - moment.step >= switch
        is_front = site.name.startswith("front")
        return is_front if rear_is_out else not is_front

    def learns(self, moment: Moment, site: CacheSite) -> bool:
        """On full steps only: elsewhere a span may hold blocks that the other one left out."""
        return self.schedule(moment.step)

    def __repr__(self) -> str:
        return f"DeltaDiT(interval={self.interval}, blocks={self.blocks}, switch={self.switch})"


def span(
    model: nn.Module, start: int, stop: int | None, estimator: Taylor, residual: bool = True
) -> SpanSite:
    """The site of a run of blocks.

    Raises:
        PolyditError: it has no block.
    """
    blocks = find_blocks(model)
    first, last, _ = slice(start, stop).indices(len(blocks))
    if last <= first:
        raise PolyditError(
            f"span {start}:{'' if stop is None else stop}: holds none of the {len(blocks)} blocks of "
            f"{type(model).__name__}"
        )
    chosen = blocks[first:last]
    kind = "front" if first == 0 else "rear" if last == len(blocks) else "middle"
    name = f"{kind} {chosen[0][0]} to {chosen[-1][0]}"
    return SpanSite(name, [block for _, block in chosen], estimator, residual)
