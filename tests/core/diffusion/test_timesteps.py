"""Distributions of training times and the time shift, against closed forms."""

from __future__ import annotations

import pytest
import torch

from polydit.core.diffusion import (
    LogitNormal,
    Shifted,
    Terminal,
    Uniform,
    dimension_shift,
    shift_time,
    unshift_time,
)

DRAWS = 200_000


def share(sampler, low, high):
    t = sampler(DRAWS, torch.Generator().manual_seed(0))
    assert t.shape == (DRAWS,)
    assert t.dtype == torch.float32
    assert 0 <= t.min() <= t.max() <= 1
    return ((t >= low) & (t <= high)).float().mean().item()


def normal_cdf(x):
    return torch.special.ndtr(torch.tensor(x, dtype=torch.float64)).item()


def test_uniform():
    assert share(Uniform(), 0.2, 0.5) == pytest.approx(0.3, abs=4e-3)
    assert share(Uniform(0.5, 0.75), 0.5, 0.75) == 1
    with pytest.raises(ValueError, match="times run from 0 to 1"):
        Uniform(0.5, 0.5)


def test_logit_normal():
    assert share(LogitNormal(), 0.4, 0.6) == pytest.approx(0.315, abs=4e-3)
    assert share(LogitNormal(), 0.0, 0.5) == pytest.approx(0.5, abs=4e-3)
    # P(t <= 1/2) = Phi(-mean / std)
    assert share(LogitNormal(0.6, 1.5), 0.0, 0.5) == pytest.approx(normal_cdf(-0.4), abs=4e-3)


def test_shifted():
    # t <= shift(u) exactly when u <= unshift(t)
    assert share(Shifted(shift=3.0), 0.0, 0.75) == pytest.approx(0.5, abs=4e-3)
    assert share(Shifted(LogitNormal(), 3.0), 0.0, 0.75) == pytest.approx(0.5, abs=4e-3)
    assert share(Shifted(shift=1.0), 0.1, 0.3) == pytest.approx(0.2, abs=4e-3)
    with pytest.raises(ValueError, match="must be positive"):
        Shifted(shift=0.0)


def test_terminal():
    assert share(Terminal(), 1.0, 1.0) == 1
    assert share(Terminal(Uniform(0, 0.5), 0.25), 1.0, 1.0) == pytest.approx(0.25, abs=4e-3)
    assert share(Terminal(Uniform(0, 0.5), 0.25), 0.0, 0.5) == pytest.approx(0.75, abs=4e-3)
    with pytest.raises(ValueError, match="probability"):
        Terminal(probability=1.5)


@pytest.mark.parametrize("sampler", [Uniform(), LogitNormal(), Shifted(shift=2.0), Terminal(probability=0.5)])
def test_a_seed_fixes_the_draw(sampler):
    first, again, other = (sampler(64, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_shift_closed_forms():
    assert shift_time(0.5, 0.3) == pytest.approx(0.2308, abs=5e-5)  # LightningDiT, in its own time
    # the same shift in project time
    assert 1 - shift_time(1 - 0.5, 0.3) == pytest.approx(shift_time(0.5, 1 / 0.3))
    rae = dimension_shift(768, 16, 16)
    assert rae == pytest.approx(6.9282, abs=5e-5)
    assert dimension_shift(768, 32, 32) == pytest.approx(13.8564, abs=5e-5)
    assert dimension_shift(4, 32, 32) == 1
    expected = {0.001: 0.0069, 0.1: 0.435, 0.25: 0.698, 0.5: 0.8739, 0.75: 0.9541, 0.9: 0.9842}
    for t, shifted in expected.items():
        assert shift_time(t, rae) == pytest.approx(shifted, abs=5e-4)


def test_shift_fixes_the_ends_and_is_inverted():
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    for shift in (0.3, 1.0, 6.9):
        shifted = shift_time(t, shift)
        assert shifted[0] == 0
        assert shifted[-1] == 1
        torch.testing.assert_close(unshift_time(shifted, shift), t)
    torch.testing.assert_close(shift_time(t, 1.0), t)
