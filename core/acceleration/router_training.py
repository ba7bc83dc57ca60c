"""Learning what to compute: HarmoniCa on sampling trajectories, Learning-to-Cache on pairs of steps of noised data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ..diffusion import Denoise, Parameterization, ddim_step
from ..errors import PolyditError
from .handle import accelerate, frozen
from .routers import Router, SoftRouting

__all__ = ["RouterTerm", "RouterTraining"]


@dataclass(frozen=True)
class RouterTerm:
    """What one step gives the router to learn.

    Attributes:
        step: of the sampler.
        loss: data error x image error + penalty x scores; has the gradient.
        data_loss: mean square difference of the routed and the full prediction.
        score: sum of the step's scores.
        student: the routed prediction.
        teacher: the full prediction for the same state.
        state: the state that both have seen.
    """

    step: int
    loss: Tensor
    data_loss: Tensor
    score: Tensor
    student: Tensor
    teacher: Tensor
    state: Tensor


class RouterTraining:
    """Trains a router on a frozen network.

    Args:
        model: frozen, in eval mode.
        router: what learns.
        denoise: the network with conditions and guidance filled in; must call ``model`` once.
        parameterization: what it answers.
        times: of the sampler, descending; one more than the router has steps.
        threshold: from which score on a site counts as computed.
        penalty: weight of the sum of scores, which is what computing costs.

    Example:
        >>> training = RouterTraining(model, router, denoise, parameterization, times)
        >>> weights = training.image_errors(noise)
        >>> for term in training.trajectory(noise, weights):
        ...     optimizer.zero_grad()
        ...     term.loss.backward()
        ...     optimizer.step()
        ...     router.clamp_()
    """

    def __init__(
        self,
        model: nn.Module,
        router: Router,
        denoise: Denoise,
        parameterization: Parameterization,
        times: Sequence[float],
        threshold: float = 0.1,
        penalty: float = 7e-8,
        straight_through: bool = False,
    ) -> None:
        if len(times) != router.steps + 1:
            raise PolyditError(f"router of {router.steps} steps: {len(times) - 1} steps of times are given")
        if model.training:
            raise PolyditError("router: the network must be frozen, in eval mode")
        self.model, self.router, self.denoise = model, router, denoise
        self.parameterization, self.times = parameterization, list(times)
        self.threshold, self.penalty, self.straight_through = threshold, penalty, straight_through

    def trajectory(self, noise: Tensor, weights: Tensor | None = None) -> Iterator[RouterTerm]:
        """HarmoniCa's step-wise denoising training (arXiv 2410.01723): each step of a sampling run, but the first.

        The next state comes from the routed prediction, detached: its errors add up as they will in use. Take a step
        of the optimiser for each term, before the next is asked for.

        Args:
            noise: state at the first time.
            weights: (steps,) of the data errors, see :meth:`image_errors`; None is 1.
        """
        with self._soft() as soft:
            state = self._fill(soft, noise)
            for step in range(1, self.router.steps):
                term = self._term(soft, step, state, 1.0 if weights is None else weights[step])
                yield term
                state = self._next(term.student.detach(), state, step)

    @torch.no_grad()
    def image_errors(
        self, noise: Tensor, proxy: Literal["leave_one_out", "cumulative"] = "leave_one_out"
    ) -> Tensor:
        """How much of the final error each step's routing is responsible for: (steps,), 0 for the first.

        ``leave_one_out`` compares the final state with that of a run which computes everything in the one step (the
        paper); ``cumulative`` switches the router on step by step from the first, and takes the change that each step
        makes (the released code).
        """
        steps = self.router.steps
        errors = torch.zeros(steps, device=noise.device)
        with self._soft() as soft:
            if proxy == "leave_one_out":
                routed = self._roll(soft, noise, set(range(1, steps)))
                for step in range(1, steps):
                    without = self._roll(soft, noise, set(range(1, steps)) - {step})
                    errors[step] = (routed - without).square().mean()
            else:
                before = self._roll(soft, noise, set())
                for step in range(1, steps):
                    present = self._roll(soft, noise, set(range(1, step + 1)))
                    errors[step] = (present - before).square().mean()
                    before = present
        return errors

    def pair(self, x0: Tensor, noise: Tensor, step: int) -> RouterTerm:
        """Learning-to-Cache (arXiv 2406.01733): a full step on noised data, and the routed one behind it.

        Args:
            x0: clean data.
            noise: of the same shape.
            step: of the full one.
        """
        if not 0 <= step < self.router.steps - 1:
            raise PolyditError(f"step {step}: give 0 to {self.router.steps - 2}, there must be one behind it")
        with self._soft() as soft:
            t = torch.full((x0.shape[0],), self.times[step], device=x0.device)
            noised = self.parameterization.path.add_noise(x0, noise, t)
            return self._term(soft, step + 1, self._fill(soft, noised, step), 1.0)

    @contextmanager
    def _soft(self) -> Iterator[SoftRouting]:
        policy = SoftRouting(self.router, self.threshold, self.straight_through)
        with frozen(self.model), accelerate(self.model, policy) as handle:
            self._restart = handle.clock.restart
            yield policy

    def _ask(self, state: Tensor, step: int) -> Tensor:
        t = torch.full((state.shape[0],), self.times[step], device=state.device)
        return self.denoise(state, self.parameterization.model_timestep(t))

    def _next(self, raw: Tensor, state: Tensor, step: int) -> Tensor:
        return ddim_step(self.parameterization, raw, state, self.times[step], self.times[step + 1])

    @torch.no_grad()
    def _fill(self, soft: SoftRouting, state: Tensor, step: int = 0) -> Tensor:
        self._restart()
        soft.set("fill")
        return self._next(self._ask(state, step), state, step)

    def _term(self, soft: SoftRouting, step: int, state: Tensor, weight: Tensor | float) -> RouterTerm:
        # The routed call comes first: what was kept belongs to the first call of a step.
        soft.set("mix", step)
        student = self._ask(state, step)
        soft.set("plain")
        with torch.no_grad():
            teacher = self._ask(state, step)
        data_loss = (student - teacher).square().mean()
        score = self.router.scores(step).sum()
        return RouterTerm(
            step, data_loss * weight + self.penalty * score, data_loss, score, student, teacher, state
        )

    def _roll(self, soft: SoftRouting, noise: Tensor, routed: set[int]) -> Tensor:
        state = self._fill(soft, noise)
        for step in range(1, self.router.steps):
            # Without routing a step computes all, and all of it is kept.
            soft.set("mix", step) if step in routed else soft.set("fill")
            state = self._next(self._ask(state, step), state, step)
        return state
