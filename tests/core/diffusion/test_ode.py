"""Adaptive solvers: tableaus that are what they say, errors that follow the tolerance, evaluations that are counted."""

from __future__ import annotations

import math

import pytest
import torch

from polydit.core.diffusion import Parameterization, TimeConvention, ddim, ddim_step, sample, solve
from polydit.core.diffusion.ode import TABLEAUS
from polydit.core.errors import PolyditError

FLOW = Parameterization(time=TimeConvention(scale=1.0))
METHODS = list(TABLEAUS)


def field(rule):
    """A network whose velocity is a rule of (x, t), and a count of its calls."""
    calls = []

    def denoise(x, t):
        calls.append(float(t[0]))
        return rule(x, t.view(-1, *[1] * (x.ndim - 1)))

    return denoise, calls


@pytest.mark.parametrize("method", METHODS)
def test_tableaus(method):
    tableau = TABLEAUS[method]
    assert sum(tableau.weights) == pytest.approx(1, abs=1e-12)
    assert sum(tableau.error) == pytest.approx(0, abs=1e-9)
    for node, row in zip(tableau.nodes, tableau.stages, strict=True):
        assert sum(row) == pytest.approx(node, abs=1e-9)
    # Quadrature of the order: exact for polynomials one degree lower.
    for degree in range(tableau.order):
        total = sum(w * node**degree for w, node in zip(tableau.weights, tableau.nodes, strict=True))
        assert total == pytest.approx(1 / (degree + 1), abs=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_order(method):
    """One step of half the length has 2 ** (order + 1) times less error: on an equation that is not linear."""
    tableau, errors = TABLEAUS[method], []
    for length in (0.1, 0.05):
        denoise, _ = field(lambda x, t: x * t + x**2 / 2)
        init = torch.ones(1, 1, dtype=torch.float64)
        limits = {"start": 1.0, "end": 1.0 - length}
        exact = solve(denoise, init, FLOW, "dopri5", rtol=0, atol=1e-13, **limits).x
        step = solve(denoise, init, FLOW, method, first_step=length, atol=1e3, **limits)
        assert step.accepted == 1
        errors.append(float((step.x - exact).abs()))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(tableau.order + 1, abs=0.8)


@pytest.mark.parametrize("method", METHODS)
def test_error_follows_the_tolerance(method):
    """dx/dt = x cos(20 t): fast and slow by turns, with a closed form."""
    errors, counts = [], []
    init = torch.ones(2, 3, dtype=torch.float64)
    exact = math.exp((math.sin(0) - math.sin(20)) / 20)
    for tolerance in (1e-2, 1e-4, 1e-6):
        if method == "heun" and tolerance == 1e-6:
            break
        denoise, calls = field(lambda x, t: x * torch.cos(20 * t))
        found = solve(denoise, init, FLOW, method, rtol=tolerance, atol=tolerance)
        assert found.evaluations == len(calls)
        assert found.times[0] == 1.0
        assert found.times[-1] == 0.0
        assert len(found.times) == found.accepted + 1
        errors.append(float((found.x - exact).abs().max()))
        counts.append(found.evaluations)
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-4
    assert counts == sorted(counts)
    euler = sample(field(lambda x, t: x * torch.cos(20 * t))[0], init, FLOW, counts[-1])
    assert errors[-1] < (0.5 if method == "heun" else 0.1) * float((euler - exact).abs().max())


def test_evaluations_of_a_step():
    """The last stage is the next step's first; a rejected step keeps its first."""
    for method, each in (("heun", 2), ("bs32", 3), ("dopri5", 6), ("tsit5", 6)):
        denoise, _ = field(lambda x, t: torch.sin(5 * x) + t)
        found = solve(denoise, torch.ones(1, 2), FLOW, method, rtol=1e-3, atol=1e-3, first_step=0.5)
        once = 0 if method == "heun" else 1
        rejected = found.rejected * (each if once else each - 1)
        assert found.evaluations == once + found.accepted * each + rejected


def test_what_is_refused():
    denoise, _ = field(lambda x, t: x / t**2)
    init = torch.ones(1, 2)
    with pytest.raises(PolyditError, match="choose from heun"):
        solve(denoise, init, FLOW, "rk4")
    with pytest.raises(PolyditError, match="tolerances"):
        solve(denoise, init, FLOW, atol=0)
    with pytest.raises(PolyditError, match=r"no numbers|were not enough"):
        solve(denoise, init, FLOW, most_evaluations=200)
    with pytest.raises(PolyditError, match="10 evaluations were not enough"):
        solve(field(lambda x, t: torch.sin(99 * x))[0], init, FLOW, rtol=1e-6, atol=1e-6, most_evaluations=10)


def test_ddim_is_euler_on_the_flow():
    denoise, _ = field(lambda x, t: x * t)
    init = torch.randn(2, 3, 4, 4)
    times = [1 - i / 7 for i in range(8)]
    visited = []
    out = ddim(denoise, init, FLOW, times, visit=lambda step, x: visited.append(step))
    torch.testing.assert_close(out, sample(denoise, init, FLOW, 7), atol=1e-5, rtol=1e-5)
    assert visited == list(range(1, 8))
    t = torch.tensor([1.0, 0.5])
    together = ddim_step(FLOW, init, init, t, t / 2)
    each = torch.cat([ddim_step(FLOW, init[i : i + 1], init[i : i + 1], t[i], t[i] / 2) for i in range(2)])
    assert torch.equal(together, each)
