"""Metrics of clouds and solids: recorded values of the published evaluation, and closed forms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from polydit.core.errors import PolyditError
from polydit.core.metrics.point_sets import (
    chamfer_distance,
    coverage,
    distance_matrix,
    earth_mover_distance,
    f_score,
    generation_scores,
    jensen_shannon_divergence,
    minimum_matching_distance,
    nearest_neighbour_accuracy,
    nearest_squared,
)
from polydit.core.metrics.volumes import normal_consistency, volume_iou

GOLDEN = Path(__file__).parents[2] / "data" / "golden" / "metrics_3d"


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDEN / "inputs.safetensors"), load_file(GOLDEN / "outputs.safetensors")


def clouds(count, points=32, seed=0, spread=0.1):
    return np.random.default_rng(seed).normal(scale=spread, size=(count, points, 3))


def test_figures_of_clouds_equal_the_published_evaluation(golden):
    inputs, expected = golden
    samples, references = inputs["sample"], inputs["ref"]
    between, within = distance_matrix(references, samples), distance_matrix(references)
    own = distance_matrix(samples)
    for name, matrix in (("ref_sample", between), ("ref_ref", within), ("sample_sample", own)):
        np.testing.assert_allclose(matrix, expected[f"cd.{name}"], atol=1e-7)
    assert minimum_matching_distance(between) == pytest.approx(
        float(expected["from_clouds.lgan_mmd"]), abs=1e-7
    )
    assert coverage(between) == float(expected["from_clouds.lgan_cov"])
    found = nearest_neighbour_accuracy(within, between, own)
    assert found.accuracy == pytest.approx(float(expected["from_clouds.1nn.acc"]))
    assert found.of_references == pytest.approx(float(expected["from_clouds.1nn.acc_t"]))
    assert found.of_samples == pytest.approx(float(expected["from_clouds.1nn.acc_f"]))
    for resolution in (10, 28):
        value = jensen_shannon_divergence(samples, references, resolution)
        assert value == pytest.approx(float(expected[f"jsd.resolution{resolution}"]), abs=1e-6)
    for row in range(2):
        first, second = nearest_squared(samples[row], references[row])
        np.testing.assert_allclose(second, expected["chamfer.first_return"][row], atol=1e-7)
        np.testing.assert_allclose(first, expected["chamfer.second_return"][row], atol=1e-7)
        for threshold in (0.001, 0.01):
            value = f_score(samples[row], references[row], threshold)
            assert value == pytest.approx(float(expected[f"fscore.{threshold}"][row]), abs=1e-6)


@pytest.mark.parametrize("neighbours", [1, 3])
def test_figures_of_given_distances_equal_the_published_evaluation(golden, neighbours):
    inputs, expected = golden
    matrices = [inputs[f"given.{name}"] for name in ("ref_ref", "ref_sample", "sample_sample")]
    found = nearest_neighbour_accuracy(*matrices, neighbours)
    assert found.accuracy == pytest.approx(float(expected[f"given.{neighbours}nn.acc"]))
    assert found.of_references == pytest.approx(float(expected[f"given.{neighbours}nn.acc_t"]))
    assert found.of_samples == pytest.approx(float(expected[f"given.{neighbours}nn.acc_f"]))
    if neighbours == 1:
        assert coverage(matrices[1]) == pytest.approx(float(expected["given.lgan_cov"]))
        assert minimum_matching_distance(matrices[1]) == pytest.approx(float(expected["given.lgan_mmd"]))


def test_earth_mover_distance_of_a_shift_is_its_length():
    cloud = clouds(1)[0]
    shift = np.array([0.3, -0.4, 1.2])
    shuffled = np.random.default_rng(1).permutation(cloud + shift)
    assert earth_mover_distance(cloud, shuffled) == pytest.approx(1.3)
    assert earth_mover_distance(cloud, shuffled, "l2sq") == pytest.approx(1.69)
    assert earth_mover_distance(cloud, cloud) == 0
    other = clouds(1, seed=2)[0]
    assert chamfer_distance(cloud, other) <= 2 * earth_mover_distance(cloud, other, "l2sq")
    with pytest.raises(ValueError, match="equally many"):
        earth_mover_distance(cloud, other[:10])
    with pytest.raises(ValueError, match="l2sq"):
        earth_mover_distance(cloud, other, "l3")


def test_a_set_that_is_apart_is_told_apart_and_the_same_law_is_not():
    references, same, far = clouds(24, seed=1), clouds(24, seed=2), clouds(24, seed=3) + 3
    close, apart = generation_scores(same, references), generation_scores(far, references)
    assert apart.accuracy == 1
    assert 0.3 < close.accuracy < 0.7
    assert close.mmd < 0.05 < apart.mmd
    assert close.coverage > apart.coverage
    assert close.jsd < apart.jsd


def test_batches_give_another_number_and_it_is_the_mean_of_theirs():
    references, samples = clouds(8, seed=1), clouds(8, seed=2)
    halves = [generation_scores(samples[i : i + 4], references[i : i + 4]) for i in (0, 4)]
    batched = generation_scores(samples, references, per_batch=4)
    assert batched.mmd == pytest.approx(np.mean([half.mmd for half in halves]))
    assert batched.coverage == pytest.approx(np.mean([half.coverage for half in halves]))
    assert batched.mmd > generation_scores(samples, references).mmd  # fewer to choose from


def test_by_earth_mover_distance_too():
    scores = generation_scores(clouds(4, 16, 1), clouds(4, 16, 2), "emd")
    assert scores.distance == "emd"
    assert 0 < scores.mmd < 1


def test_what_cannot_be_scored_is_refused():
    with pytest.raises(PolyditError, match="2 samples and 3 references"):
        generation_scores(clouds(2), clouds(3))
    with pytest.raises(PolyditError, match="distance 'chamfer': is unknown"):
        generation_scores([np.zeros((4, 3))], [np.zeros((4, 3))], "chamfer")
    for size in (0, -2):
        with pytest.raises(PolyditError, match=f"batches of {size} shapes: give 1 or more"):
            generation_scores(clouds(2), clouds(2), per_batch=size)
    with pytest.raises(ValueError, match="N, 3"):
        chamfer_distance(np.zeros((4, 2)), np.zeros((4, 3)))


def test_solids():
    points = np.random.default_rng(0).uniform(-1, 1, (200_000, 3))
    ball = np.linalg.norm(points, axis=1) < 0.8
    moved = np.linalg.norm(points - [0.4, 0, 0], axis=1) < 0.8
    # Two equal balls of radius r at distance d share pi (4 r + d) (2 r - d)^2 / 12.
    lens = np.pi * (4 * 0.8 + 0.4) * (1.6 - 0.4) ** 2 / 12
    # The second ball is cut by the box at x = 1.
    cap = np.pi * 0.2**2 * (3 * 0.8 - 0.2) / 3
    whole = 4 / 3 * np.pi * 0.8**3
    assert volume_iou(ball, moved) == pytest.approx(lens / (2 * whole - cap - lens), abs=0.01)
    assert volume_iou(ball, ball) == 1
    assert volume_iou(np.zeros(3, bool), np.zeros(3, bool)) == 1
    normals = points / np.linalg.norm(points, axis=1, keepdims=True)
    surface = normals[:2000]
    assert normal_consistency(surface, surface, surface, -surface) == pytest.approx(1)
    turned = surface[:, [1, 2, 0]] * [1, -1, 1]
    assert normal_consistency(surface, surface, surface, turned) < 0.9
