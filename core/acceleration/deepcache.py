"""DeepCache: the deep part of a UNet, which changes little from step to step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from ..errors import PolyditError
from .clock import Moment
from .estimators import Taylor
from .plan import first_then_every, non_uniform_steps
from .policy import Policy, need_total
from .sites import BranchSite, CacheSite

__all__ = ["DeepCache"]

LAYERS = 3
"""What a branch number counts in a block, as released, whatever the block has."""


class DeepCache(Policy):
    """Compute only the outer layers of a UNet between full steps (arXiv 2312.00858).

    Args:
        interval: every how many steps all is computed.
        branch: how deep the layers reach that are always computed: block ``branch // 3``, layer ``branch % 3``.
        centre: full steps are dense around this step; None spaces them evenly.
        power: how dense.

    Raises:
        PolyditError: an interval below 1, or a negative branch.
    """

    def __init__(
        self, interval: int = 3, branch: int = 0, centre: int | None = None, power: float = 1.4
    ) -> None:
        if branch < 0:
            raise PolyditError(f"branch {branch}: counts layers from the outside; give 0 or more")
        self.uniform = first_then_every(interval)
        self.interval, self.branch, self.centre, self.power = interval, branch, centre, power

    def sites(self, model: nn.Module) -> list[CacheSite]:
        """The outermost modules that are left out.

        Raises:
            PolyditError: the network is no UNet, or has no layers so deep.
        """
        levels = getattr(model, "down_blocks", None)
        if levels is None or not hasattr(model, "up_blocks"):
            raise PolyditError(
                f"{self}: {type(model).__name__} has no down_blocks and up_blocks; for a transformer take BlockSpan"
            )
        block, layer = divmod(self.branch, LAYERS)
        found = [BranchSite(name, module, Taylor()) for name, module in _deep(model, block, layer)]
        if not found:
            raise PolyditError(
                f"{self}: {type(model).__name__} has {len(levels)} levels, and nothing below branch "
                f"{self.branch}; take a lower one"
            )
        return list(found)

    def begin(self, total: int | None) -> None:
        """Uneven steps are counted from the total."""
        if self.centre is not None:
            non_uniform_steps(need_total(self, total), self.interval, self.centre, self.power)

    def computes(self, moment: Moment, site: CacheSite) -> bool | None:
        """By the schedule."""
        if self.centre is None:
            return self.uniform(moment.step)
        total = need_total(self, moment.total)
        return moment.step in non_uniform_steps(total, self.interval, self.centre, self.power)

    def __repr__(self) -> str:
        around = f", centre={self.centre}, power={self.power}" if self.centre is not None else ""
        return f"DeepCache(interval={self.interval}, branch={self.branch}{around})"


def _deep(model: Any, block: int, layer: int) -> Iterator[tuple[str, nn.Module]]:
    """The outermost modules at or below a layer, by name."""
    for index, down in enumerate(model.down_blocks):
        if index > block or (index == block and layer == 0):
            yield f"down_blocks.{index}", down
        elif index == block:
            yield from _layers(f"down_blocks.{index}", down, lambda j, count: j >= layer)
            for name, sampler in _children(down, "downsamplers"):  # behind all layers of its block
                yield f"down_blocks.{index}.{name}", sampler
    if getattr(model, "mid_block", None) is not None:
        yield "mid_block", model.mid_block
    levels = len(model.up_blocks)
    for index, up in enumerate(model.up_blocks):
        mirrored = levels - 1 - index
        if mirrored > block:
            yield f"up_blocks.{index}", up
        elif mirrored == block:
            yield from _layers(f"up_blocks.{index}", up, lambda j, count: count - 1 - j > layer)


def _layers(
    name: str, block: nn.Module, left_out: Callable[[int, int], bool]
) -> Iterator[tuple[str, nn.Module]]:
    for kind in ("resnets", "attentions"):
        modules = _children(block, kind)
        for j, (child, module) in enumerate(modules):
            if left_out(j, len(modules)):
                yield f"{name}.{child}", module


def _children(block: nn.Module, kind: str) -> list[tuple[str, nn.Module]]:
    return [(f"{kind}.{j}", module) for j, module in enumerate(getattr(block, kind, None) or [])]
