"""Average difference of rate between two rate-distortion curves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import PolyditError

__all__ = ["Interpolation", "bd_rate", "within_rates"]

Interpolation = Literal["akima", "pchip", "cubic"]
Curve = Sequence[tuple[float, float]]


def bd_rate(
    anchor: Curve, test: Curve, method: Interpolation = "akima", *, higher_is_better: bool = True
) -> float:
    """How much more rate a curve needs for the quality of another, on average: -0.25 is a quarter less.

    G. Bjontegaard, "Calculation of average PSNR differences between RD-curves" (VCEG-M33, 2001): the logarithm of the
    rate is interpolated as a function of quality, and the difference is averaged over the qualities that both reach.

    Args:
        anchor: points (rate, quality), in any order; at least four.
        test: the other curve.
        method: ``akima`` or ``pchip`` (piecewise), or ``cubic``, the original's polynomial for exactly four points.
        higher_is_better: of the quality; False for LPIPS and the like.

    Raises:
        PolyditError: fewer than four points, rates that are not above zero, a curve that falls with the rate, or curves
            that share less than half of the shorter one's range of quality.
    """
    curves = [_sorted(curve, higher_is_better) for curve in (anchor, test)]
    if method == "cubic" and any(len(quality) != 4 for quality, _ in curves):
        raise PolyditError("BD-rate: the cubic polynomial is for exactly four points; use akima or pchip")
    low = max(quality[0] for quality, _ in curves)
    high = min(quality[-1] for quality, _ in curves)
    shorter = min(quality[-1] - quality[0] for quality, _ in curves)
    if high - low < 0.5 * shorter:
        raise PolyditError(
            "BD-rate: the curves share less than half of the shorter one's range of quality; measure more rates"
        )
    areas = [_integral(quality, rate, low, high, method) for quality, rate in curves]
    return float(np.exp((areas[1] - areas[0]) / (high - low)) - 1)


def within_rates(curve: Curve, low: float, high: float) -> list[tuple[float, float]]:
    """The part of a curve between two rates, with points at the ends where it goes further.

    Args:
        curve: points (rate, quality).
        low: lowest rate kept.
        high: highest rate kept.
    """
    from scipy.interpolate import PchipInterpolator

    points = sorted(curve)
    rates = np.array([rate for rate, _ in points])
    at = PchipInterpolator(np.log(rates), [quality for _, quality in points])
    kept = [point for point in points if low < point[0] < high]
    ends = [(rate, float(at(np.log(rate)))) for rate in (low, high) if rates[0] <= rate <= rates[-1]]
    return sorted({*kept, *ends})


def _sorted(curve: Curve, higher_is_better: bool) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Quality, rising, and the logarithm of the rate."""
    points = np.array(curve, dtype=np.float64)
    if points.ndim != 2 or len(points) < 4:
        raise PolyditError(f"BD-rate: {len(points)} points; at least four are needed")
    if not (points[:, 0] > 0).all() or not np.isfinite(points).all():
        raise PolyditError("BD-rate: rates must be above zero, and all values finite")
    points = points[points[:, 0].argsort()]
    quality = points[:, 1] if higher_is_better else -points[:, 1]
    if not (np.diff(quality) > 0).all():
        raise PolyditError("BD-rate: the quality of a curve does not rise with its rate; measure it again")
    return quality, np.log(points[:, 0])


def _integral(
    quality: NDArray[np.float64], rate: NDArray[np.float64], low: float, high: float, method: str
) -> float:
    from scipy.interpolate import Akima1DInterpolator, PchipInterpolator

    if method == "cubic":
        whole = np.polyint(np.polyfit(quality, rate, 3))
        return float(np.polyval(whole, high) - np.polyval(whole, low))
    kinds: dict[str, Callable] = {"akima": Akima1DInterpolator, "pchip": PchipInterpolator}
    if method not in kinds:
        raise PolyditError(f"BD-rate: {method!r} is unknown; choose akima, pchip or cubic")
    return float(kinds[method](quality, rate).integrate(low, high))
