"""Solvers that choose their own steps: embedded Runge-Kutta pairs with a controller, on the sampler's equation."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import PolyditError
from .parameterization import Denoise, Parameterization

__all__ = ["TABLEAUS", "Solution", "Tableau", "solve"]


@dataclass(frozen=True)
class Tableau:
    """An embedded pair: the solution and the one that judges it.

    Attributes:
        nodes: where in the step each stage stands.
        stages: weights of the stages before each.
        weights: of the solution.
        error: weights of the difference from the embedded one.
        order: of the solution.
    """

    nodes: tuple[float, ...]
    stages: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]
    error: tuple[float, ...]
    order: int

    @property
    def first_same_as_last(self) -> bool:
        """Whether the last stage is the first of the next step, which then costs nothing."""
        return self.nodes[-1] == 1.0 and self.stages[-1] == self.weights[: len(self.stages[-1])]


TABLEAUS: dict[str, Tableau] = {
    # Heun's second-order step, judged by Euler's.
    "heun": Tableau((0.0, 1.0), ((), (1.0,)), (0.5, 0.5), (-0.5, 0.5), 2),
    # Bogacki and Shampine, 1989.
    "bs32": Tableau(
        (0.0, 1 / 2, 3 / 4, 1.0),
        ((), (1 / 2,), (0.0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
        (2 / 9, 1 / 3, 4 / 9, 0.0),
        (2 / 9 - 7 / 24, 1 / 3 - 1 / 4, 4 / 9 - 1 / 3, -1 / 8),
        3,
    ),
    # Dormand and Prince, 1980.
    "dopri5": Tableau(
        (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0),
        (
            (),
            (1 / 5,),
            (3 / 40, 9 / 40),
            (44 / 45, -56 / 15, 32 / 9),
            (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
            (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
            (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
        ),
        (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0),
        (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40),
        5,
    ),
    # Tsitouras, 2011.
    "tsit5": Tableau(
        (0.0, 0.161, 0.327, 0.9, 0.9800255409045097, 1.0, 1.0),
        (
            (),
            (0.161,),
            (-0.008480655492356989, 0.335480655492357),
            (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
            (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525),
            (
                5.86145544294642,
                -12.92096931784711,
                8.159367898576159,
                -0.071584973281401,
                -0.028269050394068383,
            ),
            (
                0.09646076681806523,
                0.01,
                0.4798896504144996,
                1.379008574103742,
                -3.290069515436081,
                2.324710524099774,
            ),
        ),
        (
            0.09646076681806523,
            0.01,
            0.4798896504144996,
            1.379008574103742,
            -3.290069515436081,
            2.324710524099774,
            0.0,
        ),
        (
            -0.00178001105222577714,
            -0.0008164344596567469,
            0.007880878010261995,
            -0.1447110071732629,
            0.5823571654525552,
            -0.45808210592918697,
            1 / 66,
        ),
        5,
    ),
}


@dataclass(frozen=True)
class Solution:
    """Where it ended, and what that took.

    Attributes:
        x: the state.
        evaluations: calls of the network.
        accepted: steps taken.
        rejected: steps tried in vain.
        times: of the accepted steps, the start and the end included.
    """

    x: Tensor
    evaluations: int
    accepted: int
    rejected: int
    times: tuple[float, ...]


def solve(
    denoise: Denoise,
    init: Tensor,
    parameterization: Parameterization,
    method: str = "dopri5",
    *,
    start: float = 1.0,
    end: float = 0.0,
    rtol: float = 1e-3,
    atol: float = 1e-3,
    first_step: float | None = None,
    most_evaluations: int = 1000,
) -> Solution:
    """Carry a state from noise level ``start`` to ``end`` with steps as long as the tolerance allows.

    Its stages go back and forth in time, so a cache between steps has no place here.

    Args:
        denoise: network with conditions and guidance filled in.
        init: state (B, C, ...) at ``start``; all samples share the steps.
        parameterization: what the network's answer means; its velocity is the equation.
        method: ``heun``, ``bs32``, ``dopri5`` or ``tsit5``.
        start: project time of ``init``.
        end: project time at which to stop; a network whose velocity is not defined at 0 needs a little more.
        rtol: error per step allowed relative to the state, root mean square over it.
        atol: and absolutely.
        first_step: length of the first step tried; a twentieth of the way unless given.
        most_evaluations: give up behind so many.

    Raises:
        PolyditError: the method is not known, the tolerances are not positive, or the evaluations were used up.
    """
    if method not in TABLEAUS:
        raise PolyditError(f"solver {method!r}: choose from {', '.join(TABLEAUS)}")
    if rtol < 0 or atol <= 0:
        raise PolyditError(f"tolerances rtol {rtol}, atol {atol}: give 0 or more, and more than 0")
    tableau = TABLEAUS[method]
    direction = 1.0 if end > start else -1.0
    evaluations = 0

    def velocity(x: Tensor, t: float) -> Tensor:
        nonlocal evaluations
        if evaluations >= most_evaluations:
            raise PolyditError(
                f"solver {method}: {most_evaluations} evaluations were not enough to come from {start} to {t:.4f}; "
                "allow more error"
            )
        evaluations += 1
        precision = torch.promote_types(x.dtype, torch.float32)
        t_batch = torch.full((x.shape[0],), t, dtype=precision, device=x.device)
        raw = denoise(x, parameterization.model_timestep(t_batch)).to(x.dtype)
        return parameterization.velocity(raw, x, t_batch).to(x.dtype)

    x, t, rejected = init, start, 0
    times = [start]
    length = min(first_step or abs(end - start) / 20, abs(end - start))
    slope: Tensor | None = None
    before = 1.0  # error of the last accepted step
    while (end - t) * direction > 1e-12:
        length = min(length, abs(end - t))
        step = direction * length
        slopes = [velocity(x, t) if slope is None else slope]
        for node, row in zip(tableau.nodes[1:], tableau.stages[1:], strict=True):
            slopes.append(velocity(_moved(x, step, row, slopes), t + node * step))
        moved = _moved(x, step, tableau.weights, slopes)
        difference = _moved(torch.zeros_like(x), step, tableau.error, slopes)
        allowed = atol + rtol * torch.maximum(x.abs(), moved.abs())
        error = float((difference / allowed).square().mean().sqrt())
        if not math.isfinite(error):
            raise PolyditError(f"solver {method}: the network answers no numbers at time {t:.4f}")
        if error <= 1:
            t = end if length >= abs(end - t) else t + step
            times.append(t)
            x = moved
            slope = slopes[-1] if tableau.first_same_as_last else None
            # Proportional and integral: a step that only just passed does not invite a longer one.
            grown = 0.9 * max(error, 1e-8) ** (-0.7 / tableau.order) * before ** (0.4 / tableau.order)
            length *= min(5.0, max(0.2, grown))
            before = max(error, 1e-4)
        else:
            rejected += 1
            slope = slopes[0]
            length *= max(0.2, 0.9 * error ** (-1 / tableau.order))
    return Solution(x, evaluations, len(times) - 1, rejected, tuple(times))


def _moved(x: Tensor, step: float, weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    for weight, slope in zip(weights, slopes, strict=False):
        if weight:
            x = x + (step * weight) * slope
    return x
