"""Calls of a model's blocks that go past its ``forward``, as whoever watches the model should take them.

A cache counts the calls of a model by its ``forward``. What runs the blocks by hand, as groups of tokens do, says here
where such a call begins and ends, and what is run beside it.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from torch import nn

__all__ = ["WATCHER", "Watcher", "beside", "call_of"]

WATCHER = "_polydit_cache"
"""Attribute of a model that names who watches it."""


class Watcher(Protocol):
    """Who is told of calls."""

    def call(self, arguments: dict[str, Any]) -> AbstractContextManager[None]:
        """What is done within is a call of the model with these arguments, or a part of the one that is going on."""

    def paused(self) -> AbstractContextManager[None]:
        """What is done within is no part of the call that is going on."""


def call_of(model: nn.Module, **arguments: Any) -> AbstractContextManager[None]:
    """Run the model's blocks within; part of the call that is going on, if one is."""
    watcher: Watcher | None = model.__dict__.get(WATCHER)
    return nullcontext() if watcher is None else watcher.call(arguments)


def beside(model: nn.Module) -> AbstractContextManager[None]:
    """Run the model's blocks within for something else, such as keys and values to keep."""
    watcher: Watcher | None = model.__dict__.get(WATCHER)
    return nullcontext() if watcher is None else watcher.paused()
