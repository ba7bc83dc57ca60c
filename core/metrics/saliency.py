"""How well a soft mask fits a binary one: the measures of salient-object and dichotomous segmentation.

All follow one convention of the literature: the truth is set above 128 of 255; a prediction is stretched to [0, 1]
per picture unless it is constant, so one of .05 and .95 scores as one of 0 and 1.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .hce import human_correction_effort

__all__ = [
    "FCurve",
    "adaptive_e_measure",
    "adaptive_f_measure",
    "e_measure_curve",
    "f_measure_curve",
    "prepare",
    "s_measure",
    "saliency_scores",
    "weighted_f_measure",
]

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

_BETA_SQUARED = 0.3
_EPS = float(np.spacing(1))


class FCurve(NamedTuple):
    """Precision, recall and their mean with beta^2 = 0.3 at 256 thresholds, from 255 down to 0: (256,) each."""

    precision: Floats
    recall: Floats
    f: Floats


def prepare(
    prediction: NDArray | Tensor, target: NDArray | Tensor, binarize: float | None = None
) -> tuple[Floats, Bools]:
    """Bring a prediction and its truth into the form that the measures take.

    Args:
        prediction: soft mask, 8-bit or float in [0, 1]; (H, W), also with leading axes of length 1. Published figures
            are of 8-bit files: round to 8 bits to compare with them.
        target: mask of the same size, bool, 8-bit or float; set above 128 of 255.
        binarize: threshold that makes the prediction 0 or 1 first (set above it). DiffDIS publishes figures at 0.5,
            which lowers MAE and raises weighted F; others publish those of soft masks (None).

    Returns:
        the prediction, stretched to [0, 1] unless it is constant, and the truth.

    Raises:
        ValueError: the sizes differ, or there is more than one mask in one of them.
    """
    p, g = _plane(prediction), _plane(target)
    if p.shape != g.shape:
        raise ValueError(
            f"the prediction has {p.shape[1]}x{p.shape[0]} pixels and its mask {g.shape[1]}x{g.shape[0]}"
        )
    truth = g if g.dtype == bool else g > (128 if g.dtype == np.uint8 else 128 / 255)
    values = p / 255 if p.dtype == np.uint8 else p.astype(np.float64)
    if binarize is not None:
        values = (values > binarize).astype(np.float64)
    low, high = values.min(), values.max()
    if low != high:
        values = (values - low) / (high - low)
    return values, truth


def f_measure_curve(prediction: Floats, target: Bools) -> FCurve:
    """F-measure over the thresholds, of what :func:`prepare` returns.

    "Frequency-tuned Salient Region Detection" (Achanta et al., 2009). The threshold is met by what truncates to it in
    8 bits. The published ``max F`` is the maximum of the mean curve of a data set, ``mean F`` the mean of it.
    """
    inside, outside = _above(prediction, target)
    precision = inside / np.maximum(inside + outside, 1)
    recall = inside / max(int(target.sum()), 1)
    return FCurve(precision, recall, f_measure(precision, recall))


def f_measure(precision: Any, recall: Any) -> Any:
    """Mean of precision and recall with beta^2 = 0.3; 0 where both are."""
    product = (1 + _BETA_SQUARED) * precision * recall
    return product / np.where(product == 0, 1, _BETA_SQUARED * precision + recall)


def adaptive_f_measure(prediction: Floats, target: Bools) -> float:
    """F-measure at one threshold, twice the prediction's mean (1 at most)."""
    binary = prediction >= _adaptive_threshold(prediction)
    hits = int((binary & target).sum())
    if not hits:
        return 0.0
    return float(f_measure(hits / binary.sum(), hits / target.sum()))


def weighted_f_measure(prediction: Floats, target: Bools) -> float:
    """Weighted F-measure with beta = 1: near misses of the outline cost less, and so do errors beside others.

    "How to Evaluate Foreground Maps?" (Margolin et al., 2014). 0 for an empty truth. 1024x1024 take 0.3 s.
    """
    from scipy.ndimage import convolve1d, distance_transform_edt

    if not target.any():
        return 0.0
    distance, (rows, columns) = distance_transform_edt(~target, return_indices=True)
    error = np.abs(prediction - target)
    moved = error[
        rows, columns
    ]  # background takes the error of its nearest object pixel; the object keeps its own
    gauss = np.exp(-(np.arange(-3.0, 4.0) ** 2) / (2 * 5.0**2))
    gauss /= gauss.sum()
    for axis in (0, 1):
        moved = convolve1d(moved, gauss, axis, mode="constant")
    importance = 2 - np.exp(np.log(0.5) / 5 * distance)  # 1 on the object, where the distance is 0
    weighted = np.where(target & (moved < error), moved, error) * importance
    missed = weighted[target].sum()
    hits = target.sum() - missed
    recall = 1 - missed / target.sum()
    precision = hits / (hits + weighted[~target].sum() + _EPS)
    return float(2 * recall * precision / (recall + precision + _EPS))


def s_measure(prediction: Floats, target: Bools) -> float:
    """Structure measure: half likeness of object and background, half of the four parts around the centroid.

    "Structure-measure: A New Way to Evaluate Foreground Maps" (Fan et al., 2017, arXiv 1708.00786).
    """
    share = float(target.mean())
    if share == 0:
        return float(1 - prediction.mean())
    if share == 1:
        return float(prediction.mean())
    likeness = share * _likeness(prediction[target]) + (1 - share) * _likeness(1 - prediction[~target])
    return max(0.0, 0.5 * likeness + 0.5 * _regions(prediction, target))


def e_measure_curve(prediction: Floats, target: Bools) -> Floats:
    """Enhanced-alignment measure at the thresholds of :func:`f_measure_curve`: (256,).

    "Enhanced-alignment Measure for Binary Foreground Map Evaluation" (Fan et al., 2018, arXiv 1805.10421). A perfect
    mask of N pixels scores N / (N - 1).
    """
    inside, outside = _above(prediction, target)
    return _alignment(inside, outside, int(target.sum()), target.size)


def adaptive_e_measure(prediction: Floats, target: Bools) -> float:
    """Enhanced-alignment measure at twice the prediction's mean (1 at most)."""
    binary = prediction >= _adaptive_threshold(prediction)
    inside, outside = float((binary & target).sum()), float((binary & ~target).sum())
    return float(_alignment(inside, outside, int(target.sum()), target.size))


def saliency_scores(
    prediction: NDArray | Tensor, target: NDArray | Tensor, binarize: float | None = None, hce: bool = True
) -> dict[str, float]:
    """All measures of one picture.

    A 1024x1024 picture takes a second on one core, most of it the weighted F-measure and the effort; the effort
    of a very ragged mask takes seconds.

    Args:
        prediction: see :func:`prepare`.
        target: see :func:`prepare`.
        binarize: see :func:`prepare`.
        hce: whether to estimate the effort, too.

    Returns:
        ``max_f``, ``mean_f``, ``adaptive_f``, ``weighted_f``, ``mae``, ``s``, ``max_e``, ``mean_e``, ``adaptive_e``,
        ``iou`` (at half of the stretched range) and ``hce``. Over a data set use `SaliencyMetrics`: its ``max_f`` is
        the maximum of the mean curve, not the mean of these.
    """
    p, g = prepare(prediction, target, binarize)
    f, e = f_measure_curve(p, g).f, e_measure_curve(p, g)
    scores = {"max_f": f.max(), "mean_f": f.mean(), "max_e": e.max(), "mean_e": e.mean()}
    scores |= point_scores(p, g, hce)
    return {name: float(score) for name, score in scores.items()}


def point_scores(p: Floats, g: Bools, hce: bool) -> dict[str, float]:
    """What is one number per picture, of what :func:`prepare` returns."""
    union = int(((p > 0.5) | g).sum())
    scores = {
        "adaptive_f": adaptive_f_measure(p, g),
        "weighted_f": weighted_f_measure(p, g),
        "mae": float(np.abs(p - g).mean()),
        "s": s_measure(p, g),
        "adaptive_e": adaptive_e_measure(p, g),
        "iou": int(((p > 0.5) & g).sum()) / max(union, 1),
    }
    if hce:
        scores["hce"] = float(human_correction_effort(p > 0.5, g))
    return scores


def _plane(mask: NDArray | Tensor) -> NDArray:
    if isinstance(mask, Tensor):
        mask = mask.detach().cpu()
        mask = mask.float() if mask.is_floating_point() else mask  # NumPy knows no bfloat16
    values = np.asarray(mask)
    if values.ndim < 2 or any(length != 1 for length in values.shape[:-2]):
        raise ValueError(f"one mask (H, W) at a time, not {values.shape}")
    return values.reshape(values.shape[-2:])


def _adaptive_threshold(prediction: Floats) -> float:
    return min(2 * float(prediction.mean()), 1.0)


def _above(prediction: Floats, target: Bools) -> tuple[Floats, Floats]:
    """How many object and background pixels reach 255, 254, ... 0: (256,) each."""
    levels = (prediction * 255).astype(np.uint8)
    inside = np.bincount(levels[target], minlength=256)
    outside = np.bincount(levels[~target], minlength=256)
    return np.cumsum(inside[::-1]).astype(np.float64), np.cumsum(outside[::-1]).astype(np.float64)


def _alignment(hits: Any, false_alarms: Any, positives: int, size: int) -> Any:
    """The measure from counts, since the alignment has one value for each of the four outcomes."""
    found = hits + false_alarms
    if positives == 0:
        return (size - found) / (size - 1 + _EPS)
    if positives == size:
        return found / (size - 1 + _EPS)
    mean_found, mean_true = found / size, positives / size
    outcomes = (
        (hits, 1 - mean_found, 1 - mean_true),
        (false_alarms, 1 - mean_found, -mean_true),
        (positives - hits, -mean_found, 1 - mean_true),
        (size - positives - false_alarms, -mean_found, -mean_true),
    )
    total = np.zeros_like(found)
    for count, a, b in outcomes:
        aligned = 2 * a * b / (a**2 + b**2 + _EPS)
        total = total + count * (1 + aligned) ** 2 / 4
    return total / (size - 1 + _EPS)


def _likeness(values: Floats) -> float:
    mean = values.mean()
    spread = values.std(ddof=1) if values.size > 1 else 0.0
    return float(2 * mean / (mean**2 + 1 + spread + _EPS))


def _regions(prediction: Floats, target: Bools) -> float:
    """Structural similarity of the four parts that meet at the truth's centroid, weighted by area."""
    height, width = target.shape
    y, x = (round(float(i.mean())) + 1 for i in np.nonzero(target))
    total = 0.0
    for rows in (slice(0, y), slice(y, height)):
        for columns in (slice(0, x), slice(x, width)):
            part, truth = prediction[rows, columns], target[rows, columns]
            if part.size:
                total += part.size / target.size * _similarity(part, truth.astype(np.float64))
    return total


def _similarity(a: Floats, b: Floats) -> float:
    mean_a, mean_b, degrees = a.mean(), b.mean(), max(a.size - 1, 1)
    variances = (((a - mean_a) ** 2).sum() + ((b - mean_b) ** 2).sum()) / degrees
    covariance = ((a - mean_a) * (b - mean_b)).sum() / degrees
    upper, lower = 4 * mean_a * mean_b * covariance, (mean_a**2 + mean_b**2) * variances
    if upper != 0:
        return float(upper / (lower + _EPS))
    return 1.0 if lower == 0 else 0.0
