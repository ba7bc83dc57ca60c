"""Guidance on toy networks; the published forward_with_cfg is in test_reference_vectors.py."""

from __future__ import annotations

import pytest
import torch

from polydit.core.diffusion import Guidance, TimeConvention, guide, preset

FLOW = TimeConvention()


class Toy:
    """Answers the state times a condition, and counts its calls and samples."""

    def __init__(self, outputs=1):
        self.calls, self.samples, self.outputs = 0, 0, outputs

    def __call__(self, x_t, timestep, scale=None, tokens=None, size=None):
        self.calls += 1
        self.samples += x_t.shape[0]
        return torch.cat([x_t * scale.view(-1, 1, 1, 1)] * self.outputs, dim=1)


def conditions(batch=2, **fixed):
    return {"scale": torch.full((batch,), 3.0), **fixed}, {"scale": torch.full((batch,), 1.0), **fixed}


@pytest.fixture
def x_t(generator):
    return torch.randn(2, 4, 3, 3, generator=generator)


def test_guide():
    conditional, reference = torch.full((1, 4, 1, 1), 3.0), torch.full((1, 4, 1, 1), 1.0)
    assert guide(conditional, reference, 2.0).flatten().tolist() == [5, 5, 5, 5]
    assert guide(conditional, reference, 2.0, channels=3).flatten().tolist() == [5, 5, 5, 3]
    assert torch.equal(guide(conditional, reference, 1.0), conditional)
    assert torch.equal(guide(conditional, reference, 0.0), reference)


def test_scale_one_is_the_conditional_network_alone(x_t):
    model = Toy()
    cond, uncond = conditions()
    timestep = torch.full((2,), 500.0)
    ours = Guidance(1.0).doubled(model, cond, uncond, FLOW)(x_t, timestep)
    assert torch.equal(ours, 3 * x_t)
    assert (model.calls, model.samples) == (1, 2)


def test_doubled_and_separate_agree(x_t):
    cond, uncond = conditions()
    timestep = torch.full((2,), 500.0)
    one, two = Toy(), Toy()
    doubled = Guidance(4.0, channels=3).doubled(one, cond, uncond, FLOW)(x_t, timestep)
    separate = Guidance(4.0, channels=3).separate(
        lambda x, t: two(x, t, **cond), lambda x, t: two(x, t, **uncond), FLOW
    )(x_t, timestep)
    torch.testing.assert_close(doubled, separate)
    torch.testing.assert_close(doubled[:, :3], x_t[:, :3] * (1 + 4 * 2))
    assert torch.equal(doubled[:, 3], 3 * x_t[:, 3])  # channel 4 stays the unguided conditional
    assert (one.calls, one.samples) == (1, 4)
    assert (two.calls, two.samples) == (2, 4)


def test_learned_variance_is_never_guided(x_t):
    cond, uncond = conditions()
    ours = Guidance(2.0).doubled(Toy(outputs=2), cond, uncond, FLOW)(x_t, torch.full((2,), 500.0))
    torch.testing.assert_close(ours[:, :4], 5 * x_t)
    assert torch.equal(ours[:, 4:], 3 * x_t)


def test_interval_is_in_project_time(x_t):
    guidance = Guidance(2.0, interval=(0.0, 0.7))
    cond, uncond = conditions()
    model = Toy()
    denoise = guidance.doubled(model, cond, uncond, FLOW)
    torch.testing.assert_close(denoise(x_t, torch.full((2,), 700.0)), 5 * x_t)
    assert model.samples == 4
    assert torch.equal(denoise(x_t, torch.full((2,), 710.0)), 3 * x_t)
    assert model.samples == 6  # outside, only the conditional half runs
    # LightningDiT's start 0.125 in its own time is project time 0.875.
    lightning, time = Guidance(2.0, interval=(0.0, 1 - 0.125)), preset("lightningdit").time
    denoise = lightning.doubled(Toy(), cond, uncond, time)
    torch.testing.assert_close(denoise(x_t, torch.full((2,), 0.125)), 5 * x_t)
    assert torch.equal(denoise(x_t, torch.full((2,), 0.12)), 3 * x_t)


def test_growing_scale():
    guidance = Guidance(5.0, power=2.0)
    assert guidance.scale_at(1.0) == 1
    assert guidance.scale_at(0.0) == pytest.approx(5)
    assert guidance.scale_at(1 - 0.5**0.5) == pytest.approx(3)  # (1 - t)^2 = 1/2, half way
    scales = [guidance.scale_at(t / 10) for t in range(11)]
    assert scales == sorted(scales, reverse=True)


def test_autoguidance_moves_away_from_the_weak_network(x_t):
    guided = Guidance(1.5).separate(lambda x, t: 2 * x, lambda x, t: x, FLOW)(x_t, torch.full((2,), 300.0))
    torch.testing.assert_close(guided, 2.5 * x_t)


def test_conditions_that_do_not_fit_are_refused(x_t):
    timestep = torch.full((2,), 500.0)
    cond, uncond = conditions(size=(3, 3), tokens=None)
    assert Guidance(2.0).doubled(Toy(), cond, uncond, FLOW)(x_t, timestep).shape == x_t.shape
    with pytest.raises(ValueError, match=r"conditions differ in \['size', 'tokens'\]"):
        Guidance(2.0).doubled(Toy(), cond, {"scale": uncond["scale"]}, FLOW)
    with pytest.raises(ValueError, match="'size' differs between the branches"):
        Guidance(2.0).doubled(Toy(), cond, uncond | {"size": (4, 4)}, FLOW)(x_t, timestep)
