"""What stands in for a site that is not computed: its last value, or a forecast from its last few.

An estimator is a description; its memory holds what one site gave in one branch of one run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..errors import PolyditError

__all__ = ["Memory", "Taylor", "map_tensors", "tensors_in"]


def map_tensors(function: Callable[..., Tensor], first: Any, *others: Any) -> Any:
    """Apply a function to the tensors at equal places of nested tuples; everything else is taken from the first."""
    if isinstance(first, Tensor):
        return function(first, *others)
    if isinstance(first, (tuple, list)):
        return type(first)([map_tensors(function, *parts) for parts in zip(first, *others, strict=True)])
    return first


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors of nested tuples."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from tensors_in(part)


@dataclass(frozen=True)
class Taylor:
    """Taylor polynomial on backward differences of the computed steps (TaylorSeer, arXiv 2503.06923).

    Order 0 is the last value. Each computed step adds an order until there are that many; the distance of the last two
    computed steps divides the differences of all orders.

    Args:
        order: highest order of a difference.
        dtype: precision in which values are kept; None is their own.
        begin: first step that forms differences; before it a value replaces the last.
    """

    order: int = 0
    dtype: torch.dtype | None = None
    begin: int = 0

    def __post_init__(self) -> None:
        if self.order < 0 or self.order != int(self.order):
            raise PolyditError(f"order {self.order}: of the Taylor forecast; give 0 (reuse) or more")

    def memory(self) -> Memory:
        """An empty one."""
        return Memory(self.order, self.dtype, self.begin)


@lru_cache(maxsize=512)
def _number(value: float) -> Tensor:
    """A number as torch.compile leaves it open: a Python float would be compiled into the code, one by one."""
    with torch.inference_mode(False):
        return torch.tensor(value, dtype=torch.float64)


class Memory:
    """What is kept of one site in one branch.

    A call of the model first says, outside of what is compiled, what the site will do (`plan`); then either `update`
    or `predict` does it.

    Attributes:
        factors: the last value, then its differences, each a tensor or nested tuples of tensors.
        last: the step of the last value; None before the first.
    """

    def __init__(self, order: int = 0, dtype: torch.dtype | None = None, begin: int = 0) -> None:
        self.order, self.dtype, self.begin = order, dtype, begin
        self.factors: list[Any] = []
        self.last: int | None = None
        self._gap: Tensor | None = None  # between the last two values, if a difference is to be formed
        self._weights: list[Tensor] = []  # of the differences in a forecast
        self._like: Any = None

    def plan(self, step: int, compute: bool) -> None:
        """What is to come in this call: a value, or the need for one."""
        if compute:
            # A second value in the same step replaces the first.
            differs = self.last is not None and step > self.last and step >= self.begin
            self._gap = _number(float(step - (self.last or 0))) if differs and self.order else None
            self.last = step
        else:
            assert self.last is not None
            ahead = step - self.last
            self._weights = [
                _number(ahead**order / math.factorial(order)) for order in range(1, len(self.factors))
            ]

    def update(self, value: Any) -> None:
        """Take the value that was computed."""
        if self.dtype is not None:
            self._like = map_tensors(lambda t: t.new_empty(0), value)
            value = map_tensors(lambda t: t.to(self.dtype), value)
        factors = [value]
        if self._gap is not None:
            gap = self._gap
            for earlier in self.factors[: self.order]:
                factors.append(map_tensors(lambda new, old: (new - old).div_(gap), factors[-1], earlier))
        self.factors = factors

    def predict(self) -> Any:
        """The value expected in this step."""
        value = self.factors[0]
        for weight, factor in zip(self._weights, self.factors[1:], strict=True):
            value = map_tensors(lambda sum_, part, weight=weight: (part * weight).add_(sum_), value, factor)
        if self.dtype is not None:
            value = map_tensors(lambda t, like: t.to(like.dtype), value, self._like)
        return value

    @property
    def bytes(self) -> int:
        """Memory that the tensors take."""
        return sum(t.numel() * t.element_size() for factor in self.factors for t in tensors_in(factor))
