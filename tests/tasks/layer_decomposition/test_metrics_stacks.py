"""LayerD's protocol and the RGBA metrics in closed form."""

from __future__ import annotations

import numpy as np
import pytest

from polydit.tasks.layer_decomposition.stack_metrics import (
    align,
    group_layers,
    layer_cost,
    merge,
    rgba_scores,
    stack_scores,
)


def square(top: int, left: int, size: int, colour: float, alpha: float = 1.0, side: int = 16) -> np.ndarray:
    layer = np.zeros((side, side, 4))
    layer[top : top + size, left : left + size] = (colour, colour, colour, alpha)
    return layer


@pytest.fixture
def stack() -> list[np.ndarray]:
    return [square(0, 0, 16, 0.2), square(2, 2, 8, 0.6), square(4, 4, 8, 0.9), square(6, 6, 4, 0.1)]


def test_equal_stacks_are_perfect_along_the_diagonal(stack):
    score = stack_scores(stack, stack, merges=0)[0]
    assert (score.rgb_l1, score.alpha_iou, score.cost) == (0, 1, 0)
    assert score.path == ((0, 0), (1, 1), (2, 2), (3, 3))


def test_two_true_layers_in_one_are_repaired_by_one_merge(stack):
    predicted = [stack[0], merge(stack[1], stack[2]), stack[3]]
    before, after = stack_scores(predicted, stack, merges=1)
    assert before.cost > 0.05
    assert after.cost == pytest.approx(0, abs=1e-9)
    assert after.merges == 1
    # and the other way round
    assert stack_scores(stack, predicted, merges=1)[1].cost == pytest.approx(0, abs=1e-9)


def test_the_order_counts(stack):
    assert stack_scores(stack[::-1], stack, merges=0)[0].cost > 0.3


def test_cost_of_a_pair():
    true, predicted = square(0, 0, 8, 0.5), square(0, 4, 8, 0.5)
    l1, iou, cost = layer_cost(predicted, true)
    assert l1 == pytest.approx(0.25)  # half of the true square meets nothing: black
    assert iou == pytest.approx(32 / 96)
    assert cost == pytest.approx((0.25 + 2 / 3) / 2)
    half = square(0, 0, 8, 0.5, alpha=0.5)
    assert layer_cost(half, true)[1] == pytest.approx(0.5)
    empty = np.zeros((16, 16, 4))
    assert layer_cost(empty, empty) == (0, 0, 0.5)  # two empty layers have IoU 0 in this protocol


def test_alignment_leaves_no_layer_out_and_prefers_the_diagonal():
    costs = np.array([[0.0, 1.0, 1.0], [1.0, 0.0, 0.2]])
    assert align(costs) == [(0, 0), (1, 1), (1, 2)]
    assert align(np.zeros((3, 3))) == [(0, 0), (1, 1), (2, 2)]
    assert align(np.zeros((1, 3))) == [(0, 0), (0, 1), (0, 2)]


def test_scores_are_means_along_the_path():
    true = [square(0, 0, 16, 0.0), square(0, 0, 8, 1.0)]
    score = stack_scores([square(0, 0, 16, 0.0)], true, merges=0, group=False)[0]
    assert score.path == ((0, 0), (0, 1))
    assert score.rgb_l1 == pytest.approx((0 + 1) / 2)
    assert score.alpha_iou == pytest.approx((1 + 64 / 256) / 2)


def test_layers_that_do_not_overlap_are_one_group(stack):
    apart = [square(0, 0, 16, 0.2), square(1, 1, 4, 0.6), square(8, 8, 4, 0.9)]
    grouped = group_layers(apart)
    assert len(grouped) == 2
    assert np.array_equal(grouped[1], merge(apart[1], apart[2]))
    assert stack_scores([apart[0], apart[2], apart[1]], apart, merges=0)[0].cost == 0  # their order is free
    assert len(group_layers(stack)) == 4


def test_merging_is_compositing():
    below, above = square(0, 0, 8, 0.2, 0.5), square(0, 0, 8, 0.8, 0.5)
    pixel = merge(below, above)[0, 0]
    assert pixel[3] == pytest.approx(0.75)
    assert pixel[0] * pixel[3] == pytest.approx(0.5 * 0.8 + 0.5 * 0.5 * 0.2)


def test_refusals(stack):
    with pytest.raises(ValueError, match="without layers"):
        stack_scores([], stack)
    with pytest.raises(ValueError, match="sizes"):
        stack_scores([square(0, 0, 4, 0.1, side=8)], stack)


def test_rgba_scores():
    true = square(0, 0, 8, 0.5)
    assert rgba_scores(true, true)["psnr"] == np.inf
    off = true.copy()
    off[..., 3] = np.where(true[..., 3] > 0, 0.9, 0.0)
    scores = rgba_scores(off, true)
    assert scores["alpha_mae"] == pytest.approx(0.1 * 64 / 256)
    assert scores["alpha_sad"] == pytest.approx(6.4 / 1000)
    assert scores["alpha_iou"] == pytest.approx(0.9)
    # On black and on white a colour of 0.5 is off by 0.05 on a quarter of the picture; on grey it is right.
    assert scores["psnr"] == np.inf
    brighter = true.copy()
    brighter[..., :3] += 0.1
    brighter_scores = rgba_scores(brighter, true)
    assert brighter_scores["psnr"] == pytest.approx(-10 * np.log10(0.01 / 4))
    assert brighter_scores["psnr_rgba"] == pytest.approx(-10 * np.log10(0.01 * 3 / 4 / 4))
    hidden = true.copy()
    hidden[8:, :, :3] = 0.7  # colours that nobody sees
    assert rgba_scores(hidden, true)["psnr_rgba"] == np.inf
