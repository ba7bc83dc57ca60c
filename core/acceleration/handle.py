"""``accelerate``: a method of caching on a model or a pipeline, until it is taken off."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PolyditError
from ..probing.calls import WATCHER
from .attached import ONE_STEP, Attached
from .blocks import unwrap
from .clock import Moment
from .plan import Plan
from .policy import Policy
from .regions import RAS
from .report import Report
from .shortcut import shortcuts
from .sites import SpanSite

__all__ = ["Handle", "accelerate", "frozen", "handle_of", "network_of"]


def accelerate(target: Any, policy: Policy | RAS, strict: bool = False) -> Any:
    """Put a cache on a network, for all sampling runs until ``handle.remove()``.

    Every run begins without memory: runs are told apart by the samplers of this project, by the timesteps that a
    pipeline's scheduler has set, or by time going back; ``with handle.run(steps)`` says it in so many words.

    Args:
        target: a diffusers pipeline with a ``transformer`` or a ``unet``, or such a network.
        policy: the method.
        strict: refuse a run of one step, where nothing can be reused, instead of computing it.

    Returns:
        The :class:`Handle` (of :class:`RAS`, a handle of its own kind); ``report()`` says what was computed,
        ``remove()`` takes the cache off.

    Raises:
        PolyditError: no site is found, or the network has another cache.

    Example:
        >>> handle = accelerate(pipe, TaylorSeer(interval=4))
        >>> pipe(class_labels=[207], num_inference_steps=50)
        >>> print(handle.report())
    """
    return policy.attach(*network_of(target), strict)


def network_of(target: Any) -> tuple[nn.Module, Any]:
    """The network, and the pipeline that it came in or None.

    Raises:
        PolyditError: it is neither.
    """
    if isinstance(target, nn.Module):
        return target, None
    outer = getattr(target, "transformer", None) or getattr(target, "unet", None)
    if not isinstance(outer, nn.Module):
        raise PolyditError(
            f"cache: {type(target).__name__} has neither a transformer nor a unet; give the network itself"
        )
    return outer, target


def handle_of(target: Any) -> Handle | None:
    """The cache of a network or of a pipeline's, or None."""
    outer = target
    if not isinstance(target, nn.Module):
        outer = getattr(target, "transformer", None) or getattr(target, "unet", None)
    return unwrap(outer).__dict__.get(WATCHER) if isinstance(outer, nn.Module) else None


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No weight of the model asks for a gradient, so one that flows through it ends in what is trained beside it."""
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for parameter, _ in before:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, wanted in before:
            parameter.requires_grad_(wanted)


class Handle(Attached):
    """A cache on a model; made by :func:`accelerate`.

    Attributes:
        model: that it is on.
        policy: the method.
        sites: what it keeps.
        moment: run, step and branch of the last call of the model.
    """

    moment: Moment

    def __init__(self, outer: nn.Module, policy: Policy, pipe: Any = None, strict: bool = False) -> None:
        super().__init__(outer, policy, pipe, strict)
        self.sites = policy.sites(self.model)
        self._rows: list[tuple[bool, ...]] = []  # of the first branch of the present run
        self._calls = self._asked = self._computed = 0
        self._shapes: dict[int, Any] = {}
        self._inside = False
        self._bytes = 0
        self._total: int | None = None
        self._seen: set[str] = set()
        self._entry = outer if hasattr(outer, "_orig_mod") else self.model
        self._bind()

    # -- what a user calls ----------------------------------------------------------------------------------

    def report(self) -> Report:
        """What the present or last run computed.

        Raises:
            PolyditError: under ``strict``, it had one step.
        """
        names = tuple(site.name for site in self.sites)
        if self.strict and len(self._rows) < 2:
            raise PolyditError(f"{self.policy}: {ONE_STEP}")
        return Report(
            str(self.policy),
            Plan(names, tuple(self._rows)),
            self._calls,
            self._asked,
            self._computed,
            self._bytes,
        )

    @contextmanager
    def call(self, arguments: dict[str, Any]) -> Iterator[None]:
        """A call of the model that goes past its ``forward``; within one that is going on, a part of it."""
        if self._inside:
            yield
            return
        self._open(arguments)
        try:
            yield
        except BaseException:
            self._forget()
            self.clock.restart()
            raise
        self._leave(self.model, (), None)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Blocks run within are computed, and nothing of them is kept."""
        active = [site for site in self.sites if site.active]
        for site in active:
            site.active = False
        try:
            yield
        finally:
            for site in active:
                site.active = True

    def _bind(self) -> None:
        for site in self.sites:
            self._undo += site.attach()
        self._undo += shortcuts(self.model, self.sites)
        hooks = (
            self._entry.register_forward_pre_hook(torch.compiler.disable(self._enter), with_kwargs=True),
            self._entry.register_forward_hook(torch.compiler.disable(self._leave)),
        )
        self._undo += [hook.remove for hook in hooks]
        self._keep_apart()

    # -- around each call of the model ----------------------------------------------------------------------

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._inside:  # the call before was broken off
            self.clock.restart()
        self._open(self._signature.bind_partial(*args, **kwargs).arguments)

    def _open(self, call: dict[str, Any]) -> None:
        if self._steps_aside():
            self._forget()
            return
        self._check(call)
        moment = self.clock.tick(call.get("timestep", call.get("t")))
        if moment.new_run:
            self._begin(moment)
        shapes = {name: tuple(value.shape) for name, value in call.items() if isinstance(value, Tensor)}
        if self._shapes.get(moment.branch) != shapes:
            for site in self.sites:
                site.forget(moment.branch)
            self._shapes[moment.branch] = shapes
        self.moment = moment
        self._inside = True
        for site in self.sites:
            computes, learns = self.policy.computes(moment, site), self.policy.learns(moment, site)
            site.enter(moment.step, moment.branch, computes, learns)

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not self._inside:
            return
        self._inside = False
        row = tuple(site.compute for site in self.sites)
        self._calls += 1
        for site in self.sites:
            site.active = False
            self._asked += min(site.calls, 1)
            self._computed += min(site.calls, 1) * site.compute
        if self.moment.branch == 0:
            self._rows.append(row)
        if self.moment.step == 0:
            self._check_visited()
        if all(row):  # only then has anything grown
            self._bytes = max(self._bytes, sum(site.bytes for site in self.sites))

    def _begin(self, moment: Moment) -> None:
        if self.strict and moment.total == 1:
            raise PolyditError(f"{self.policy}: {ONE_STEP}")
        self.policy.begin(moment.total)
        self._rows = []
        self._shapes = {}
        self._calls = self._asked = self._computed = self._bytes = 0
        for site in self.sites:
            site.forget()

    def _check_visited(self) -> None:
        """Sites that a first, full call did not ask will never be; forget them, and refuse to go on with none."""
        left = [site for site in self.sites if site.calls or site.name in self._seen]
        self._seen |= {site.name for site in left}
        if not left:
            raise PolyditError(
                f"{self.policy}: {type(self.model).__name__} never calls what it would cache, "
                f"such as {self.sites[0].name}; there is nothing to cache"
            )

    def _check(self, call: dict[str, Any]) -> None:
        if torch.is_grad_enabled() and getattr(self.model, "gradient_checkpointing", False):
            raise PolyditError(
                f"{self.policy}: gradient checkpointing runs the blocks again in the backward pass, where the cache "
                "would stand for another step; switch one of the two off"
            )
        if call.get("block_controlnet_hidden_states") is not None and any(
            isinstance(site, SpanSite) for site in self.sites
        ):
            raise PolyditError(
                f"{self.policy}: leaves blocks out, behind which a side branch adds its own; take TaylorSeer or FORA"
            )

    def _forget(self) -> None:
        self._inside = False
        for site in self.sites:
            site.active = False
            site.forget()
