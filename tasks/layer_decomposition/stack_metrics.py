"""Stacks of layers against true ones: LayerD's order-aware protocol, and RGBA pictures against true ones.

LayerD: "Decomposing Raster Graphic Designs into Layers", whose published evaluation this follows: two stacks may cut a
picture at different places, so layers are aligned in order by dynamic time warping, and adjacent layers may be merged,
a few times, where that brings the stacks closer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .metrics import alpha_error, alpha_sad, soft_iou

__all__ = [
    "StackScore",
    "align",
    "group_layers",
    "layer_cost",
    "merge",
    "rgba_scores",
    "stack_scores",
]

Layer = NDArray[np.floating]  # (H, W, 4), straight alpha, in [0, 1]
Pair = tuple[int, int]


@dataclass(frozen=True)
class StackScore:
    """Means along the alignment of two stacks.

    Attributes:
        merges: how many adjacent layers were merged to get there.
        rgb_l1: mean absolute difference of the colours where the true layer is visible.
        alpha_iou: soft IoU of the alphas; 0 where both are empty.
        cost: ``(rgb_l1 + 1 - alpha_iou) / 2``.
        path: which layer of the prediction goes with which true one, bottom to top.
    """

    merges: int
    rgb_l1: float
    alpha_iou: float
    cost: float
    path: tuple[Pair, ...]


def layer_cost(predicted: Layer, true: Layer) -> tuple[float, float, float]:
    """L1 of the colours over what is visible in the true layer, soft IoU of the alphas, and the cost of both."""
    visible = true[..., 3] > 0
    difference = np.abs(predicted[..., :3] - true[..., :3])
    l1 = float(difference[visible].mean(dtype=np.float64)) if visible.any() else 0.0
    iou = soft_iou(predicted[..., 3], true[..., 3])
    return l1, iou, (l1 + 1 - iou) / 2


def merge(below: Layer, above: Layer) -> Layer:
    """Two layers as one: the upper over the lower."""
    alpha = above[..., 3:]
    backing = below[..., 3:]
    total = alpha + backing * (1 - alpha)
    colour = alpha * above[..., :3] + (1 - alpha) * backing * below[..., :3]
    return np.concatenate([colour / np.maximum(total, 1e-6), total], axis=-1)


def group_layers(layers: Sequence[Layer]) -> list[Layer]:
    """Layers, bottom first, where neighbours that overlap nowhere are one layer: their order says nothing.

    From the top down: a layer joins the group above it unless it overlaps one of its members.
    """
    groups: list[Layer] = []
    for layer in reversed(list(layers)):
        if groups and not ((groups[0][..., 3] > 0) & (layer[..., 3] > 0)).any():
            groups[0] = merge(layer, groups[0])
        else:
            groups.insert(0, layer)
    return groups


def align(costs: NDArray[np.floating]) -> list[Pair]:
    """The cheapest way through a table of costs (P, G) that never goes back and leaves no layer out.

    Steps go up in one stack, the other, or both; among equally cheap ways the diagonal is preferred.
    """
    rows, columns = costs.shape
    total = np.full((rows, columns), np.inf)
    came: dict[Pair, Pair] = {}
    for i in range(rows):
        for j in range(columns):
            before = [(i - 1, j - 1), (i - 1, j), (i, j - 1)]
            before = [(a, b) for a, b in before if a >= 0 and b >= 0]
            if not before:
                total[i, j] = costs[i, j]
                continue
            best = min(before, key=lambda place: total[place])
            total[i, j], came[i, j] = costs[i, j] + total[best], best
    path = [(rows - 1, columns - 1)]
    while path[-1] in came:
        path.append(came[path[-1]])
    return path[::-1]


def stack_scores(
    predicted: Sequence[Layer], true: Sequence[Layer], merges: int = 5, group: bool = True
) -> list[StackScore]:
    """Scores of a stack with 0, 1, ... merges, as far as there is something to merge.

    Args:
        predicted: layers, bottom first.
        true: layers, bottom first.
        merges: at most; each is the one, in either stack, that lowers the mean cost most.
        group: see :func:`group_layers`; of both stacks, before anything else.

    Raises:
        ValueError: a stack is empty, or the sizes differ.
    """
    if not len(predicted) or not len(true):
        raise ValueError("stack_scores: a stack without layers")
    if len({layer.shape for layer in (*predicted, *true)}) > 1:
        raise ValueError("stack_scores: layers of different sizes")
    ours = group_layers(predicted) if group else list(predicted)
    theirs = group_layers(true) if group else list(true)
    scores = [_score(ours, theirs, 0)]
    for count in range(1, merges + 1):
        tried = [(_merged(ours, i), theirs) for i in range(len(ours) - 1)]
        tried += [(ours, _merged(theirs, i)) for i in range(len(theirs) - 1)]
        if not tried:
            break
        ours, theirs = min(tried, key=lambda pair: _score(*pair, count).cost)
        scores.append(_score(ours, theirs, count))
    return scores


def _merged(layers: list[Layer], index: int) -> list[Layer]:
    return [*layers[:index], merge(layers[index], layers[index + 1]), *layers[index + 2 :]]


def _score(predicted: list[Layer], true: list[Layer], merges: int) -> StackScore:
    table = np.array([[layer_cost(one, other) for other in true] for one in predicted])  # (P, G, 3)
    path = align(table[..., 2])
    l1, iou, cost = (float(value) for value in np.mean([table[place] for place in path], axis=0))
    return StackScore(merges, l1, iou, cost, tuple(path))


def rgba_scores(predicted: Layer, true: Layer) -> dict[str, float]:
    """How close an RGBA picture is to the true one.

    Returns:
        ``psnr``: mean of the PSNR in dB of both on black, on white and on grey; ``psnr_rgba``: of the four channels,
        colours times alpha; ``alpha_mae``, ``alpha_sad`` (thousands), ``alpha_iou``. Equal pictures have an infinite
        PSNR.
    """
    on_grounds = [_psnr(_on(predicted, ground), _on(true, ground)) for ground in (0.0, 0.5, 1.0)]
    premultiplied = [
        np.concatenate([layer[..., :3] * layer[..., 3:], layer[..., 3:]], -1) for layer in (predicted, true)
    ]
    return {
        "psnr": float(np.mean(on_grounds)),
        "psnr_rgba": _psnr(*premultiplied),
        "alpha_mae": alpha_error(predicted[..., 3], true[..., 3]),
        "alpha_sad": alpha_sad(predicted[..., 3], true[..., 3]),
        "alpha_iou": soft_iou(predicted[..., 3], true[..., 3]),
    }


def _on(layer: Layer, ground: float) -> Layer:
    return layer[..., :3] * layer[..., 3:] + ground * (1 - layer[..., 3:])


def _psnr(picture: Layer, truth: Layer) -> float:
    error = float(((picture.astype(np.float64) - truth.astype(np.float64)) ** 2).mean())
    return float("inf") if error == 0 else -10 * float(np.log10(error))
