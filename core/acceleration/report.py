"""What a cache did in a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .plan import Plan

__all__ = ["Report"]


@dataclass(frozen=True)
class Report:
    """A run, or as much of it as has passed.

    Attributes:
        policy: the method.
        plan: what was computed in each step, in the first branch; can be replayed.
        calls: how often the network was called, all branches together.
        asked: how often a site was reached, which is less than calls x sites where one lies within another.
        computed: how often one was computed.
        bytes: most memory that was held.
    """

    policy: str
    plan: Plan
    calls: int
    asked: int
    computed: int
    bytes: int

    @property
    def speed_up(self) -> float:
        """Sites reached for each that was computed: the gain if nothing else took time."""
        return self.asked / self.computed if self.computed else 1.0

    def summary(self) -> dict[str, Any]:
        """JSON-ready, without the plan."""
        return {
            "policy": self.policy,
            "steps": self.plan.steps,
            "full_steps": self.plan.full_steps,
            "computed": self.computed,
            "of": self.asked,
            "cache_bytes": self.bytes,
        }

    def __str__(self) -> str:
        head = (
            f"{self.policy}: {len(self.plan.full_steps)} of {self.plan.steps} steps in full, "
            f"{self.computed} of {self.asked} sites computed, {self.bytes / 2**20:.1f} MiB kept"
        )
        return f"{head}\n{self.plan}"
