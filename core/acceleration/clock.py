"""Which step of which run a call of the network belongs to.

A cache that outlives its run spoils the next one, so this is decided at every call, from the best that is known: a run
that was opened by hand, the samplers of this project, the timesteps that a pipeline's scheduler has set, or the
timestep of the call itself. Calls that share a step are its branches: conditional and unconditional, or tiles.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..diffusion.runs import sampling_step
from ..errors import PolyditError

__all__ = ["Clock", "Moment"]

MOST_BRANCHES = 256
"""Beyond so many calls with the first timestep they are taken for runs of one step."""


@dataclass(frozen=True)
class Moment:
    """A call of the network.

    Attributes:
        step: 0 for the first of the run.
        total: steps of the run, None where nobody says.
        branch: 0 for the first call of the step.
        new_run: whether nothing of what was kept may be used.
    """

    step: int
    total: int | None
    branch: int
    new_run: bool


class Clock:
    """Counts runs, steps and branches.

    Args:
        pipe: a diffusers pipeline, whose scheduler gets a new list of timesteps for each run.
    """

    def __init__(self, pipe: Any = None) -> None:
        self.pipe = pipe
        self.opened: int | None = None  # steps of a run that was opened by hand
        self._restart = True
        self._run: object = None  # the run, or the list of timesteps, seen last
        self._key: Any = None  # what tells a step from the next
        self._direction = 0.0  # +1 if the network's time grows from step to step
        self._step = 0
        self._branch = 0
        self._total: int | None = None

    def open(self, total: int) -> None:
        """A run of that many steps begins with the next call.

        Raises:
            PolyditError: another one is open, or it has no steps.
        """
        if self.opened is not None:
            raise PolyditError("a run is open already; runs do not nest, close the first one")
        if total < 1:
            raise PolyditError(f"a run of {total} steps: give 1 or more")
        self.opened = total
        self._restart = True

    def close(self) -> None:
        """The opened run is over."""
        self.opened = None
        self._restart = True

    def restart(self) -> None:
        """The next call begins a run, whatever it looks like."""
        self._restart = True

    def tick(self, timestep: Any) -> Moment:
        """The moment of a call with that timestep.

        Raises:
            PolyditError: an opened run has more steps than it said.
        """
        present = sampling_step()
        new_run, total = self._restart, self.opened
        if self.opened is None and present is not None:
            new_run = new_run or present.run is not self._run
            new_step, total = present.index != self._key, present.total
            self._run, self._key = present.run, present.index
        else:
            scheduler = getattr(self.pipe, "scheduler", None)  # asked each time: users exchange it
            # Second-order schedulers ask twice at the same time, in two steps.
            key = (_value(timestep), getattr(scheduler, "step_index", None))
            if self.opened is None and scheduler is not None:
                timesteps = getattr(scheduler, "timesteps", None)
                new_run = new_run or timesteps is not self._run
                self._run = timesteps
                if timesteps is not None:
                    total = len(timesteps) - (getattr(scheduler, "begin_index", None) or 0)
            new_step = key != self._key
            if self.opened is None and not new_run:
                new_run = self._turned(key[0])
            self._key = key
        if not new_run and not new_step and self._step == 0 and self._branch + 1 >= MOST_BRANCHES:
            new_run = True
        if new_run:
            if self._step < 2:
                self._direction = 0.0  # too short a run to have shown it
            self._step, self._branch, self._total = 0, 0, total
        elif new_step:
            self._step, self._branch = self._step + 1, 0
        else:
            self._branch += 1
        self._restart = False
        if self._total is not None and self._step >= self._total and self.opened is not None:
            raise PolyditError(
                f"step {self._step + 1} of a run that was opened with {self._total} steps; "
                "open it with as many as the sampler takes"
            )
        return Moment(self._step, self._total, self._branch, new_run)

    def _turned(self, value: float | None) -> bool:
        """Whether time has gone back, which it never does within a run."""
        before = self._key[0] if isinstance(self._key, tuple) else None
        if value is None or before is None or value == before:
            return False
        sign = 1.0 if value > before else -1.0
        if self._direction == 0.0:
            self._direction = sign
        return sign != self._direction


def _value(timestep: Any) -> float | None:
    if timestep is None:
        return None
    return float(timestep.detach().max()) if isinstance(timestep, Tensor) else float(timestep)
