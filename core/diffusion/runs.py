"""Where in which sampling run the network is being asked, for what keeps something from step to step.

The samplers of this package say it; a cache that finds nothing here must guess from the timesteps it is called with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

__all__ = ["SamplingStep", "sampling_run", "sampling_step"]


@dataclass(frozen=True)
class SamplingStep:
    """One step of one run.

    Attributes:
        run: equal for the steps of a run, and for no other run that lives.
        index: 0 for the first step.
        total: number of steps.
    """

    run: object
    index: int
    total: int


_PRESENT: ContextVar[SamplingStep | None] = ContextVar("sampling_step", default=None)


def sampling_step() -> SamplingStep | None:
    """The step that is being taken, or None outside of the samplers."""
    return _PRESENT.get()


@contextmanager
def sampling_run(total: int) -> Iterator[Callable[[int], None]]:
    """A run of ``total`` steps; call what it yields with the index of each step before the network is asked."""
    run = object()
    before = _PRESENT.get()

    def at(index: int) -> None:
        _PRESENT.set(SamplingStep(run, index, total))

    try:
        yield at
    finally:
        _PRESENT.set(before)
