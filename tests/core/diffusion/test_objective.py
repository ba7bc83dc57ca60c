"""The training objective: closed forms of its losses and weights, and how it is configured."""

from __future__ import annotations

import math

import pytest
import torch
from jsonargparse import ArgumentParser

from polydit.core.diffusion import (
    DiscretePath,
    GVPPath,
    LinearPath,
    LogitNormal,
    Objective,
    Shifted,
    Terminal,
    TimeConvention,
    Uniform,
    VPPath,
    preset,
)

DIT_TIME = TimeConvention(scale=1000, discrete=True)


def zero(x_t, timestep):
    return torch.zeros_like(x_t)


def truth(objective, x0, noise, t):
    """A network that knows the answer."""
    return lambda x_t, timestep: objective.target(x0, noise, t)


@pytest.mark.parametrize("prediction", ["velocity", "epsilon", "v", "x0", "score"])
@pytest.mark.parametrize("path", [LinearPath(), GVPPath(), VPPath(), DiscretePath()], ids=lambda p: p.name)
def test_the_true_answer_has_no_loss_and_returns_the_data(path, prediction, generator):
    objective = Objective(path, prediction)
    x0, noise = torch.randn(3, 2, 4, 4, generator=generator), torch.randn(3, 2, 4, 4, generator=generator)
    t = torch.tensor([0.1, 0.5, 0.8])
    out = objective(truth(objective, x0, noise, t), x0, noise, t)
    assert out.loss < 1e-9
    torch.testing.assert_close(out.x0, x0, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(out.x_t, path.add_noise(x0, noise, t))
    wrong = objective(zero, x0, noise, t)
    assert wrong.loss > 0.1
    torch.testing.assert_close(wrong.loss, wrong.loss_per_sample.mean())


def test_loss_of_a_fresh_network_is_one_plus_the_variance_of_the_data(generator):
    for std in (1.0, 0.5):
        x0 = std * torch.randn(64, 4, 16, 16, generator=generator)
        out = Objective()(zero, x0, generator=generator)
        assert out.loss.item() == pytest.approx(1 + std**2, rel=0.01)


def test_the_network_sees_its_own_time(generator):
    x0, seen = torch.randn(512, 1, 2, 2, generator=generator), {}

    def record(x_t, timestep):
        seen["timestep"] = timestep
        return zero(x_t, timestep)

    flow = Objective(timesteps=LogitNormal())(record, x0, generator=generator)
    torch.testing.assert_close(seen["timestep"], 1000 * flow.t)
    sit = Objective(time=preset("sit").time)(record, x0, generator=generator)
    torch.testing.assert_close(seen["timestep"], 1 - sit.t)
    dit = Objective(DiscretePath(), "epsilon", time=DIT_TIME)(record, x0, generator=generator)
    assert seen["timestep"].dtype == torch.int64
    assert 0 <= seen["timestep"].min() < seen["timestep"].max() <= 999
    assert torch.equal(dit.t, (seen["timestep"] + 1) / 1000)  # noised at exactly the index it is told


def test_losses_by_kind():
    x0, noise, t = torch.zeros(1, 1, 1, 4), torch.tensor([[[[0.5, -0.5, 2.0, -2.0]]]]), torch.tensor([0.5])
    expected = {
        "mse": (0.25 + 4) / 2,
        "l1": (0.5 + 2) / 2,
        "charbonnier": (math.sqrt(0.25 + 1e-6) + math.sqrt(4 + 1e-6)) / 2,
        "huber": (0.125 + 1.5) / 2,
    }
    for loss, value in expected.items():
        out = Objective(loss=loss)(zero, x0, noise, t)
        assert out.loss.item() == pytest.approx(value, rel=1e-6)
        assert list(out.terms) == [loss]
    with pytest.raises(ValueError, match="unknown loss 'l2'; one of mse, l1"):
        Objective(loss="l2")
    with pytest.raises(ValueError, match="unknown weighting"):
        Objective(weighting="snr")


@pytest.mark.parametrize("path", [LinearPath(), GVPPath(), VPPath()], ids=lambda p: p.name)
def test_weighted_loss_is_the_loss_of_the_other_quantity(path, generator):
    """Velocity MSE whatever is predicted; on the linear path x0-MSE / t^2 and epsilon-MSE / (1 - t)^2."""
    x0, noise = (torch.randn(4, 3, 2, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    t = torch.tensor([0.1, 0.4, 0.6, 0.9], dtype=torch.float64)
    x_t = path.add_noise(x0, noise, t)
    guess = torch.randn(4, 3, 2, 2, generator=generator, dtype=torch.float64)  # a velocity
    by_velocity = Objective(path)(lambda x, _: guess, x0, noise, t).loss_per_sample
    for prediction in ("x0", "epsilon", "v", "score"):
        same = path.convert(guess, x_t, t, "velocity", prediction)
        out = Objective(path, prediction, weighting="velocity")(lambda x, _, s=same: s, x0, noise, t)
        torch.testing.assert_close(out.loss_per_sample, by_velocity)
        plain = Objective(path, prediction)(lambda x, _, s=same: s, x0, noise, t).loss_per_sample
        if isinstance(path, LinearPath) and prediction in ("x0", "epsilon"):
            scale = t if prediction == "x0" else 1 - t
            torch.testing.assert_close(plain / scale**2, by_velocity)


def test_sigma_squared_weight():
    t = torch.tensor([0.1, 0.5, 0.9])
    torch.testing.assert_close(Objective(weighting="x0").weight(t), t**2)  # DiT4SR


def test_min_snr_weights():
    """The weights of the paper's table, for every prediction, gamma 5."""
    path = VPPath()
    t = torch.tensor([0.05, 0.2, 0.5, 0.9], dtype=torch.float64)
    snr = (path.alpha(t) / path.sigma(t)) ** 2
    cut = snr.clamp(max=5)
    assert snr[0] > 5 > snr[-1]
    for prediction, weight in {"epsilon": cut / snr, "x0": cut, "v": cut / (snr + 1)}.items():
        torch.testing.assert_close(Objective(path, prediction, weighting="min_snr").weight(t), weight)
    other = Objective(path, "x0", weighting="min_snr", min_snr_gamma=1.0).weight(t)
    torch.testing.assert_close(other, snr.clamp(max=1))


def test_cosine_loss_ignores_scale_and_is_zero_when_aligned(generator):
    x0, noise = torch.randn(2, 8, 4, 4, generator=generator), torch.randn(2, 8, 4, 4, generator=generator)
    t = torch.tensor([0.3, 0.7])
    for time in (TimeConvention(), preset("lightningdit").time):
        objective = Objective(cosine_weight=1.0, time=time)
        target = objective.target(x0, noise, t)
        for scale in (1.0, 7.0):
            out = objective(lambda x, _, s=scale, v=target: s * v, x0, noise, t)
            assert out.terms["cosine"].abs().max() < 1e-5
        opposite = objective(lambda x, _, v=target: -v, x0, noise, t)
        torch.testing.assert_close(opposite.terms["cosine"], torch.full((2,), 2.0))
        torch.testing.assert_close(
            opposite.loss_per_sample, opposite.terms["mse"] + opposite.terms["cosine"], rtol=1e-6, atol=0
        )


def test_element_weight_masks_the_error(generator):
    x0, noise = torch.randn(2, 1, 2, 2, generator=generator), torch.randn(2, 1, 2, 2, generator=generator)
    t = torch.tensor([0.4, 0.6])
    mask = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    out = Objective()(zero, x0, noise, t, element_weight=mask)
    torch.testing.assert_close(out.loss_per_sample, (noise - x0)[:, 0, 0, 0] ** 2 / 4)


def test_gradients_reach_the_network(generator):
    weight = torch.nn.Parameter(torch.tensor(0.1))
    out = Objective(cosine_weight=0.5)(lambda x, _: weight * x, torch.randn(4, 3, 2, 2), generator=generator)
    out.loss.backward()
    assert weight.grad.abs() > 0
    assert out.x0.requires_grad
    assert not out.terms["mse"].requires_grad


def test_low_precision_network_is_compared_in_float32(generator):
    x0 = torch.randn(2, 3, 4, 4, generator=generator)
    out = Objective()(lambda x, _: zero(x, _).bfloat16(), x0, generator=generator)
    assert out.loss.dtype == out.x0.dtype == torch.float32


def test_a_seed_fixes_time_and_noise():
    x0 = torch.zeros(4, 1, 2, 2)
    first, again, other = (
        Objective()(zero, x0, generator=torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)
    )
    assert torch.equal(first.noise, again.noise)
    assert torch.equal(first.t, again.t)
    assert not torch.equal(first.t, other.t)


@pytest.mark.parametrize(
    "objective",
    [
        Objective(prediction="epsilon"),
        Objective(prediction="x0", weighting="velocity"),
        Objective(GVPPath(), "score", weighting="likelihood"),
        Objective(VPPath()),
        Objective(DiscretePath(), "epsilon", weighting="min_snr", time=DIT_TIME),
    ],
    ids=repr,
)
def test_extreme_draws_stay_finite(objective):
    x0 = torch.zeros(2, 1, 2, 2)
    objective.timesteps = lambda batch, generator, device: torch.tensor([0.0, 1.0])
    out = objective(lambda x, _: torch.ones_like(x), x0)
    assert torch.isfinite(out.loss)
    assert torch.isfinite(out.x0).all()


def test_one_step_training_reaches_pure_noise(generator):
    x0 = torch.randn(4, 2, 3, 3, generator=generator)
    out = Objective(timesteps=Terminal())(zero, x0, generator=generator)
    assert torch.equal(out.x_t, out.noise)


def test_time_range_limits_the_draws(generator):
    objective = Objective(prediction="x0", weighting="velocity", time_range=(0.05, 0.9))
    t = objective.draw_times(1000, generator)
    assert t.min() == pytest.approx(0.05)
    assert t.max() == pytest.approx(0.9)


@pytest.mark.parametrize("prediction", ["velocity", "epsilon", "score"])
def test_the_variance_preserving_path_trains_from_its_own_bound(prediction):
    assert Objective(path=VPPath(), prediction=prediction).time_range[0] == 1e-5
    linear = Objective(prediction=prediction).time_range[0]
    assert linear == (0 if prediction == "velocity" else 1e-3)


def test_configuration_from_yaml():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Objective, "objective")
    config = parser.parse_string(
        """
objective:
  path: {class_path: polydit.core.diffusion.VPPath, init_args: {beta_max: 10.0}}
  prediction: v
  weighting: min_snr
  timesteps:
    class_path: polydit.core.diffusion.Shifted
    init_args:
      inner: {class_path: polydit.core.diffusion.LogitNormal, init_args: {mean: 0.5}}
      shift: 3.0
  time: {scale: 1.0, flip: true}
  time_range: [0.01, 1.0]
"""
    )
    # jsonargparse renamed it in 4.49; the oldest version allowed has only the old name.
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
    objective = instantiate(config).objective
    assert objective.path == VPPath(beta_max=10.0)
    assert objective.time == TimeConvention(1.0, flip=True)
    assert isinstance(objective.timesteps, Shifted)
    assert objective.timesteps.inner.mean == 0.5
    assert tuple(objective.time_range) == (0.01, 1.0)
    default = instantiate(parser.parse_args([])).objective
    assert isinstance(default.path, LinearPath)
    assert isinstance(default.timesteps, Uniform)
    with pytest.raises(Exception, match="weighting"):
        parser.parse_string("objective: {weighting: snr}")
