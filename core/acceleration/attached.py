"""What every cache on a model is: attached once, alone, taken off again, off while the model trains."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

from torch import nn

from ..errors import PolyditError
from ..probing.calls import WATCHER
from .blocks import unwrap
from .clock import Clock
from .sites import Unbind, bind

__all__ = ["ONE_STEP", "Attached", "refuse_second"]

ONE_STEP = "the network is asked in one step only, and a cache lives from step to step; take more steps"


class Attached:
    """A method on a model; a subclass binds what it needs in :meth:`_bind`, and calls it when it is set up.

    Args:
        outer: the network, perhaps in the shell of ``torch.compile``.
        policy: the method.
        pipe: whose network it is, or None.
        strict: refuse a run of one step.

    Attributes:
        model: that it is on.
        policy: the method.

    Raises:
        PolyditError: the model has a cache.
    """

    def __init__(self, outer: nn.Module, policy: Any, pipe: Any = None, strict: bool = False) -> None:
        self.model: Any = unwrap(outer)
        self.policy, self.strict = policy, strict
        refuse_second(self.model)
        self.clock = Clock(pipe)
        self._signature = inspect.signature(self.model.forward)
        self._undo: list[Unbind] = []
        self._warned = False

    @contextmanager
    def run(self, steps: int) -> Iterator[Self]:
        """One sampling run of that many steps, for loops that the clock cannot know.

        Raises:
            PolyditError: a run is open already; within it, a step too many.
        """
        self.clock.open(steps)
        try:
            yield self
        finally:
            self.clock.close()
            self._forget()

    def remove(self) -> None:
        """Take it off; the model is as it was."""
        self._unbind()
        self._forget()

    def explains(self, error: PolyditError) -> bool:
        """Whether it is the cache that complains."""
        return str(error).startswith(f"{self.policy}: ")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()

    def _bind(self) -> None:
        """Bind what the method needs, into ``self._undo``."""
        raise NotImplementedError

    def _forget(self) -> None:
        """Drop what is kept."""
        raise NotImplementedError

    def _unbind(self) -> None:
        for undo in reversed(self._undo):
            undo()
        self._undo = []

    def _steps_aside(self) -> bool:
        """Whether the model trains: nothing is kept then and nothing is left out; said once."""
        if not self.model.training:
            return False
        if not self._warned:
            warnings.warn(
                f"{self.policy}: the model is in training mode, so its cache is off; model.eval() switches it on",
                stacklevel=3,
            )
            self._warned = True
        self.clock.restart()
        return True

    def _keep_apart(self) -> None:
        """Mark the model as having a cache, refuse one of diffusers beside it, keep copies without."""
        model = self.model

        def refuse(*args: Any, **kwargs: Any) -> None:
            raise PolyditError(f"cache: the model has one already, {self.policy}; remove() it first")

        def copied(memo: dict[int, Any]) -> nn.Module:
            # What is bound are closures over this model's own modules: a copy that kept them would run those.
            self._unbind()
            try:
                return copy.deepcopy(model, memo)
            finally:
                self._bind()

        object.__setattr__(model, WATCHER, self)
        self._undo += [lambda: object.__delattr__(model, WATCHER), bind(model, "__deepcopy__", copied)]
        if hasattr(model, "enable_cache"):
            self._undo.append(bind(model, "enable_cache", refuse))


def refuse_second(model: nn.Module) -> None:
    """Refuse a model that has a cache, of ours or of diffusers.

    Raises:
        PolyditError: it has.
    """
    other = model.__dict__.get(WATCHER)
    if other is not None:
        raise PolyditError(f"cache: the model has one already, {other.policy}; remove() it first")
    if getattr(model, "is_cache_enabled", False):
        raise PolyditError("cache: the model has one of diffusers; call disable_cache() first")
