"""What a method of caching answers: which sites of a model it keeps, and in which steps it computes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from ..errors import PolyditError
from .blocks import find_blocks
from .clock import Moment
from .estimators import Taylor
from .plan import Plan, check_steps
from .sites import CacheSite, branch_sites

__all__ = ["BranchPolicy", "Policy", "Replay"]


class Policy:
    """A method. Its state lives in its sites and in the handle, so one policy may serve several models.

    A subclass answers `sites` and `computes`; one whose sites decide within a call, by what they see (a threshold),
    answers None there.
    """

    def attach(self, outer: nn.Module, pipe: Any, strict: bool) -> Any:
        """Put the method on a network; what ``accelerate`` returns."""
        from .handle import Handle

        return Handle(outer, self, pipe, strict)

    def sites(self, model: nn.Module) -> list[CacheSite]:
        """The places that are kept.

        Raises:
            PolyditError: the model has none.
        """
        raise NotImplementedError

    def computes(self, moment: Moment, site: CacheSite) -> bool | None:
        """Whether a site is computed in a step; None if only the call itself will tell."""
        raise NotImplementedError

    def learns(self, moment: Moment, site: CacheSite) -> bool:
        """Whether what a site computes is kept."""
        return True

    def begin(self, total: int | None) -> None:
        """A run begins; refuse one that cannot work.

        Raises:
            PolyditError: the settings do not fit the number of steps.
        """

    def plan(self, steps: int, sites: Sequence[CacheSite]) -> Plan:
        """The plan of a run of that many steps.

        Raises:
            PolyditError: the decisions depend on what the network computes; record a run and take its report's plan.
        """
        self.begin(steps)
        by_name = {site.name: site for site in sites}

        def computes(step: int, name: str) -> bool:
            answer = self.computes(Moment(step, steps, 0, step == 0), by_name[name])
            if answer is None:
                raise PolyditError(f"{self}: decides while it runs; take report().plan of a run")
            return answer

        return Plan.build(by_name, steps, computes)


class BranchPolicy(Policy):
    """Attention and MLP of every block, before the gates, all in the same steps.

    Args:
        schedule: rule that says whether a step is full.
        estimator: what stands in elsewhere.
        cross_attention: keep the attention to the text too.
    """

    def __init__(
        self, schedule: Callable[[int], bool], estimator: Taylor, cross_attention: bool = False
    ) -> None:
        self.schedule = schedule
        self.estimator = estimator
        self.cross_attention = cross_attention

    def sites(self, model: nn.Module) -> list[CacheSite]:
        """Two and more per block."""
        found = branch_sites(find_blocks(model), self.estimator, self.cross_attention)
        if not found:
            raise PolyditError(
                f"{self}: no attention and no MLP found in the blocks of {type(model).__name__}; there is nothing to "
                "cache"
            )
        return found

    def computes(self, moment: Moment, site: CacheSite) -> bool | None:
        """By the schedule."""
        return self.schedule(moment.step)


class Replay(Policy):
    """A method with decisions that were recorded or written by hand: the same in every run.

    Args:
        policy: whose sites and estimators are taken.
        plan: the decisions.
    """

    def __init__(self, policy: Policy, plan: Plan) -> None:
        self.policy = policy
        self.recorded = plan

    def sites(self, model: nn.Module) -> list[CacheSite]:
        """Those of the method; the plan must know all of them."""
        found = self.policy.sites(model)
        missing = [site.name for site in found if site.name not in self.recorded.sites]
        if missing:
            raise PolyditError(
                f"plan: does not say when to compute {missing[0]} of {type(model).__name__}; it was recorded on "
                f"another model, with sites such as {self.recorded.sites[0]}"
            )
        return found

    def begin(self, total: int | None) -> None:
        """Refuse a run that is longer than the plan."""
        if total is not None and total > self.recorded.steps:
            raise PolyditError(
                f"plan: has {self.recorded.steps} steps, the run {total}; record one of that length"
            )
        check_steps([step for step, row in enumerate(self.recorded.computed) if all(row)], None)

    def computes(self, moment: Moment, site: CacheSite) -> bool | None:
        """As recorded."""
        if moment.step >= self.recorded.steps:
            raise PolyditError(f"plan: has {self.recorded.steps} steps, the run goes on; record a longer one")
        return self.recorded.computed[moment.step][self.recorded.sites.index(site.name)]

    def learns(self, moment: Moment, site: CacheSite) -> bool:
        """As the method does."""
        return self.policy.learns(moment, site)

    def __repr__(self) -> str:
        return f"Replay({self.policy!r}, {self.recorded.steps} steps)"


def need_total(policy: Policy, total: int | None) -> int:
    """The number of steps, for a method that cannot do without.

    Raises:
        PolyditError: nobody has said it.
    """
    if total is None:
        raise PolyditError(
            f"{policy}: must know the number of steps; sample inside `with handle.run(steps):`, or accelerate the "
            "pipeline rather than its network"
        )
    return total
