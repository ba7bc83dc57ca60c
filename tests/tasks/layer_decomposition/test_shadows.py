from __future__ import annotations

import numpy as np
import pytest
import torch

from polydit.core.alpha import join, over
from polydit.tasks.layer_decomposition.shadows import (
    ShadowOptions,
    cast_shadow,
    contact_shadow,
    reflection,
    with_effects,
)

NO_BLUR = (0.0, 0.0)


def pillar(height: int = 64, width: int = 64) -> np.ndarray:
    alpha = np.zeros((height, width), np.float32)
    alpha[16:40, 28:36] = 1
    return alpha


def extent(shadow: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero((shadow > 0.5).any(1)), np.flatnonzero((shadow > 0.5).any(0))
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def test_a_shadow_stands_on_the_foot_line_with_the_length_it_is_given():
    assert extent(cast_shadow(pillar(), 0.5, 0.0, NO_BLUR)) == (28, 40, 28, 36)
    assert extent(cast_shadow(pillar(), -0.5, 0.0, NO_BLUR)) == (40, 52, 28, 36)


def test_slant_shifts_the_far_end():
    shadow = cast_shadow(pillar(), -0.5, 1.0, NO_BLUR)
    near, far = (np.flatnonzero(shadow[row] > 0.5).mean() for row in (40, 51))
    assert near == pytest.approx(32, abs=1.5)
    assert far == pytest.approx(31.5 + 24 * 11.5 / 12, abs=1.5)


def test_the_far_end_is_softer():
    sharp = cast_shadow(pillar(), -0.8, 0.0, (0.0, 0.05))
    edges = np.abs(np.diff(sharp, axis=1)).max(1)
    assert edges[41] > 2 * edges[56]


def test_an_empty_object_has_no_effects():
    empty = np.zeros((8, 8), np.float32)
    assert cast_shadow(empty, 0.5, 0.2).max() == 0
    assert contact_shadow(empty, 0.1).max() == 0
    assert reflection(torch.zeros(4, 8, 8), 0.4, 0.5).abs().max() == 0


def test_contact_shadow_lies_at_the_foot():
    patch = contact_shadow(pillar(), 0.1)
    assert patch.sum(1).argmax() in (39, 40)
    assert patch[:30].max() < 0.01


def test_reflection_mirrors_and_fades():
    cutout = torch.cat([torch.rand(3, 64, 64), torch.from_numpy(pillar())[None]])
    mirrored = reflection(cutout, 0.4, 0.5)
    assert torch.equal(mirrored[:3, 40], cutout[:3, 39])
    assert torch.equal(mirrored[:3, 45], cutout[:3, 34])
    assert mirrored[3, 40, 30] == pytest.approx(0.4, abs=0.02)
    assert mirrored[3, 60, 30] < mirrored[3, 45, 30] < mirrored[3, 40, 30]
    assert mirrored[3, :40].max() == 0


def test_one_foreground_is_object_over_shadow_exactly():
    cutout = torch.cat([torch.rand(3, 64, 64), torch.from_numpy(pillar())[None] * 0.9]).double()
    background = torch.rand(3, 64, 64).double()
    options = ShadowOptions(shadow=1.0, reflection=0.0)
    foreground, alpha = with_effects(cutout.float(), np.random.default_rng(0), options)
    shadow = join(torch.zeros(3, 64, 64), alpha)
    expected = over(cutout.float(), over(shadow, background.float()))
    torch.testing.assert_close(over(foreground, background.float()), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(foreground[3:], 1 - (1 - cutout[3:].float()) * (1 - alpha))


def test_draws_are_within_the_options_and_repeat():
    cutout = torch.cat([torch.rand(3, 64, 64), torch.from_numpy(pillar())[None]])
    options = ShadowOptions(shadow=1.0, contact=1.0, reflection=0.0)
    for seed in range(8):
        foreground, alpha = with_effects(cutout, np.random.default_rng(seed), options)
        assert 0.1 < alpha.max() <= 0.7 + 1e-3
        again, _ = with_effects(cutout, np.random.default_rng(seed), options)
        assert torch.equal(foreground, again)
    untouched, alpha = with_effects(cutout, np.random.default_rng(0), ShadowOptions.none())
    assert alpha.max() == 0
    assert torch.equal(untouched[3], cutout[3])
