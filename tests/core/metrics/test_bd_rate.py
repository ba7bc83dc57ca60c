"""BD-rate on its worked example."""

from __future__ import annotations

import pytest

from polydit.core.errors import PolyditError
from polydit.core.metrics.bd_rate import bd_rate, within_rates

FIRST = [(686.76, 40.28), (309.58, 37.18), (157.11, 34.24), (85.95, 31.42)]
SECOND = [(893.34, 40.39), (407.8, 37.21), (204.93, 34.17), (112.75, 31.24)]


@pytest.mark.parametrize(("method", "value"), [("cubic", 0.31397), ("pchip", 0.31380), ("akima", 0.31384)])
def test_the_classic_example(method, value: float):
    assert bd_rate(FIRST, SECOND, method) == pytest.approx(value, abs=5e-6)


@pytest.mark.parametrize("method", ["cubic", "pchip", "akima"])
def test_a_constant_factor_is_found_exactly(method):
    assert bd_rate(FIRST, FIRST, method) == pytest.approx(0, abs=1e-12)
    assert bd_rate(FIRST, [(1.1 * rate, quality) for rate, quality in FIRST], method) == pytest.approx(0.1)


def test_lower_may_be_better():
    worse = [(1.1 * rate, -quality) for rate, quality in FIRST]
    assert bd_rate(
        [(rate, -quality) for rate, quality in FIRST], worse, higher_is_better=False
    ) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("test", "method", "message"),
    [
        (FIRST[:3], "akima", "at least four"),
        ([(rate, quality + 7) for rate, quality in FIRST], "akima", "less than half"),
        ([(1, 3), (2, 2), (3, 4), (4, 5)], "akima", "does not rise"),
        ([(0, 30), (1, 33), (2, 35), (3, 39)], "akima", "above zero"),
        ([*FIRST, (50.0, 29.0)], "cubic", "exactly four"),
    ],
)
def test_curves_that_cannot_be_compared_are_refused(test, method, message: str):
    with pytest.raises(PolyditError, match=message):
        bd_rate(FIRST, test, method)


def test_a_curve_is_cut_at_rates():
    cut = within_rates(FIRST, 100, 500)
    assert [round(rate) for rate, _ in cut] == [100, 157, 310, 500]
    assert 31.42 < cut[0][1] < 34.24
    assert within_rates(FIRST, 1, 1e4) == sorted(FIRST)
