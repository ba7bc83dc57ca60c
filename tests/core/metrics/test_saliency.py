"""Equality with PySODMetrics on recorded pictures, and on figures that can be checked by hand.

tests/data/golden/segmentation_metrics/meta.json says which commit produced them and how.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from polydit.core.metrics import SaliencyMetrics, saliency, saliency_scores
from polydit.core.metrics.hce import human_correction_effort

GOLDEN = Path(__file__).parents[2] / "data" / "golden" / "segmentation_metrics"
NAMES = {
    "mae": "mae",
    "s": "s_measure",
    "weighted_f": "weighted_f",
    "adaptive_f": "f.adaptive",
    "adaptive_e": "e.adaptive",
    "iou": "iou.binary",
    "hce": "hce",
}


@pytest.fixture(scope="module")
def pictures():
    inputs = load_file(GOLDEN / "inputs.safetensors")
    return [(inputs[f"{n}.pred"], inputs[f"{n}.gt"]) for n in range(7)]


@pytest.fixture(scope="module")
def recorded():
    return load_file(GOLDEN / "outputs.safetensors")


@pytest.mark.parametrize(
    "number", range(7), ids=["soft", "soft", "binary", "no-object", "all-object", "constant", "grey"]
)
def test_one_picture_equals_the_reference(pictures, recorded, number):
    p, g = saliency.prepare(*pictures[number])
    curve = saliency.f_measure_curve(p, g)
    for ours, theirs in zip(
        (*curve, saliency.e_measure_curve(p, g)), ("precision", "recall", "f", "e"), strict=True
    ):
        np.testing.assert_allclose(ours, recorded[f"{number}.{theirs}.curve"], atol=1e-12)
    scores = saliency_scores(*pictures[number])
    for ours, theirs in NAMES.items():
        assert scores[ours] == pytest.approx(float(recorded[f"{number}.{theirs}"]), abs=1e-9), ours


def test_set_equals_the_reference(pictures, recorded):
    metric = SaliencyMetrics()
    for prediction, target in pictures:
        metric.update(prediction, torch.from_numpy(target))
    scores = metric.compute()
    for ours, theirs in {
        **{name: theirs for name, theirs in NAMES.items() if name != "iou"},
        "max_f": "f.max",
        "mean_f": "f.avg",
        "max_e": "e.max",
        "mean_e": "e.avg",
    }.items():
        assert float(scores[ours]) == pytest.approx(float(recorded[f"mean.{theirs}"]), abs=1e-9), ours
    precision, recall = (
        np.mean([recorded[f"{n}.{kind}.curve"] for n in range(7)], 0) for kind in ("precision", "recall")
    )
    expected = (1.3 * precision * recall / (0.3 * precision + recall)).max()
    assert float(scores["max_f_dataset"]) == pytest.approx(expected)
    assert abs(expected - float(scores["max_f"])) > 0.01  # it is another number


def square(rows=(64, 192), columns=(64, 192), size=256):
    mask = np.zeros((size, size), np.uint8)
    mask[slice(*rows), slice(*columns)] = 255
    return mask


def holed():
    mask = square()
    mask[120:130, 120:130] = 0
    return mask


def soft_ellipse():
    y, x = np.mgrid[:128, :128].astype(np.float64)
    target = ((x - 60) / 40) ** 2 + ((y - 70) / 28) ** 2 < 1
    radius = np.sqrt(((x - 66) / 40) ** 2 + ((y - 68) / 30) ** 2)
    prediction = (255 / (1 + np.exp(-8 * (1 - radius)))).astype(np.uint8)
    assert (int(target.sum()), int(prediction.sum())) == (3497, 1003659)
    return prediction, target


# max F, mean F, adaptive F, weighted F, S, max E, mean E, MAE, effort: measured with PySODMetrics 1.6.2
KNOWN = {
    "perfect": ((square(), square()), (1, 0.9973, 1, 1, 1, 1, 0.9971, 0, 0)),
    "inverted": ((255 - square(), square()), (0.3023, 0.0012, 0, 0, 0, 0.25, 0.0010, 1, 6)),
    "empty": ((0 * square(), square()), (0.3023, 0.0012, 0.3023, 0, 0.375, 0.25, 0.25, 0.25, 9)),
    "4 px off": (
        (square(columns=(68, 196)), square()),
        (0.9688, 0.9661, 0.9688, 0.9678, 0.9499, 0.9850, 0.9821, 0.0156, 0),
    ),
    "20 px off": (
        (square(columns=(84, 212)), square()),
        (0.8438, 0.8416, 0.8438, 0.8046, 0.8183, 0.9250, 0.9224, 0.0781, 9),
    ),
    "hole": ((holed(), square()), (0.9986, 0.9959, 0.9986, 0.9979, 0.9932, 0.9985, 0.9956, 0.0015, 1)),
    "soft": (
        soft_ellipse(),
        (0.925201, 0.796615, 0.863110, 0.750794, 0.891184, 0.957194, 0.853452, 0.091154, 11),
    ),
}


@pytest.mark.parametrize("case", KNOWN)
def test_known_figures(case):
    pictures, expected = KNOWN[case]
    scores = saliency_scores(*pictures)
    order = ("max_f", "mean_f", "adaptive_f", "weighted_f", "s", "max_e", "mean_e", "mae", "hce")
    tolerance = 1e-6 if case == "soft" else 1e-4
    assert [scores[name] for name in order] == pytest.approx(list(expected), abs=tolerance)


def test_stretch_forgives_low_contrast_and_binarising_changes_scores():
    prediction, target = soft_ellipse()
    faint = np.where(target, 0.55, 0.45)
    assert saliency_scores(faint, target)["mae"] == 0
    hard = saliency_scores(prediction, target, binarize=0.5)
    soft = saliency_scores(prediction, target)
    assert hard["mae"] < soft["mae"]
    assert hard["weighted_f"] > soft["weighted_f"]
    assert hard["s"] == saliency_scores(prediction > 127, target)["s"]
    metric = SaliencyMetrics(binarize=0.5, hce=False)
    metric.update(torch.from_numpy(prediction)[None, None], torch.from_numpy(target)[None, None])
    assert float(metric.compute()["mae"]) == pytest.approx(hard["mae"])
    assert "hce" not in metric.compute()


def test_processes_are_added_up(pictures):
    together, first, second = (SaliencyMetrics(hce=False) for _ in range(3))
    for i, (prediction, target) in enumerate(pictures):
        together.update(prediction, target)
        (first if i % 2 else second).update(prediction, target)
    for state, reduce in first._reductions.items():
        setattr(first, state, reduce(torch.stack([getattr(first, state), getattr(second, state)])))
    for name, score in together.compute().items():
        assert float(first.compute()[name]) == pytest.approx(float(score)), name


@pytest.mark.parametrize("mask", [np.zeros((1, 1), bool), np.ones((1, 7), bool), np.eye(5) > 0])
def test_tiny_pictures_have_finite_scores(mask):
    for prediction in (mask, ~mask, np.linspace(0, 1, mask.size).reshape(mask.shape)):
        assert np.isfinite(list(saliency_scores(prediction, mask).values())).all()


def test_sizes_must_agree():
    with pytest.raises(ValueError, match="4x3 pixels and its mask 3x3"):
        saliency_scores(np.zeros((3, 4)), np.zeros((3, 3)))
    with pytest.raises(ValueError, match="one mask"):
        saliency_scores(np.zeros((2, 3, 4)), np.zeros((2, 3, 4)))


def test_effort_counts_lost_thin_parts():
    """A thin spoke is inside the tolerance by area, but its skeleton is missing."""
    target = square() > 0
    target[127:129, 192:250] = True
    assert human_correction_effort(square() > 0, target) > 0
    assert human_correction_effort(target, square() > 0) == 0  # too thin to be cut away


# p is predicted only, g is of the truth only, b is both; with the clicks that PySODMetrics 1.6.2 counts on OpenCV 5.
PAIRS = (
    (
        14,
        """
        bbbbbbppbbbb bbbbbppbbbbb bbbbpppbbbbb gggbpppbbbbb ggg.ppppbbbb ggg..pppbbbg gggp...pbggg
        bbbpp..pbbbb bbbbp..pbbbb bbbb...gbbpp bbbb....pppp bbbg....pppp bbgg....pppp bggg.....ppp
        """,
    ),
    (
        17,
        """
        gbbggggbgggg.. ggggggggggg... .gggggggggbppp ..ggggggggpppp ..ggbbbgg..ppp ...bbbbgg..ppp ....ggbg......
        ......ppp..... ......ppppgggg ......ppp.gggg .......pp.gggg g.......ppgggg g......pppbbbb
        """,
    ),
    (
        27,
        """
        ..bg.p.pgpp. g.g.pbppgpb. ..bppppp.pp. ..ppb.gbbpbp pbpgpppbpppp bpp.ppp.gbpp bp.pbppb.bbb
        gbppppppgpgg
        """,
    ),
)


@pytest.mark.parametrize(("clicks", "drawn"), PAIRS, ids=["corners", "more corners", "order of outlines"])
def test_effort_equals_the_reference_count(clicks, drawn):
    cells = np.array([list(row) for row in drawn.split()])
    assert human_correction_effort(np.isin(cells, ["p", "b"]), np.isin(cells, ["g", "b"]), relax=1) == clicks


def test_outlines_come_by_what_lies_in_them_and_chains_may_close():
    from polydit.core.metrics import hce

    drawn = ["####", "#..#", "#..#", "####", "....", "#.##"]
    outlines = hce._outlines(np.array([list(row) for row in drawn]) == "#")
    assert [outline[0] for outline in outlines] == [(5, 2), (5, 0), (0, 0), (1, 0)]
    assert hce._corners([(7, 0), (8, 0), (7, 0)], 2.0) == 1
    assert hce._corners([(0, 0), (0, 9), (0, 0)], 2.0) == 2
