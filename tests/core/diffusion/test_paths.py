"""Closed forms of the paths, and that every conversion undoes its inverse."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import torch

from polydit.core.diffusion import (
    DiscretePath,
    GVPPath,
    LinearPath,
    Parameterization,
    TimeConvention,
    VPPath,
    preset,
)
from polydit.core.diffusion.paths import PREDICTIONS, expand_like, path_from_config

PATHS = [LinearPath(), GVPPath(), VPPath(), DiscretePath(), DiscretePath("scaled_linear", 0.00085, 0.012)]
PATHS += [DiscretePath("scaled_linear", 0.00085, 0.012, snr_shift=3.0, ends_in_noise=True)]  # CogVideoX-2B
ids = [repr(path) for path in PATHS]


@pytest.fixture(params=PATHS, ids=ids)
def path(request):
    return request.param


def test_conversions_are_mutually_inverse(path, generator):
    x0, noise = (torch.randn(6, 2, 3, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    t = torch.tensor([0.05, 0.2, 0.4, 0.5, 0.77, 0.95], dtype=torch.float64)
    x_t = path.add_noise(x0, noise, t)
    for source, target in itertools.product(PREDICTIONS, PREDICTIONS):
        there = path.convert(path.target(x0, noise, t, source), x_t, t, source, target)
        torch.testing.assert_close(there, path.target(x0, noise, t, target), rtol=1e-8, atol=1e-9)
        back = path.convert(there, x_t, t, target, source)
        torch.testing.assert_close(back, path.target(x0, noise, t, source), rtol=1e-8, atol=1e-9)


def test_named_conversions_read_what_they_say(path, generator):
    x0, noise = (torch.randn(4, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    t = torch.tensor([0.1, 0.3, 0.6, 0.9], dtype=torch.float64)
    x_t, v = path.add_noise(x0, noise, t), path.velocity(x0, noise, t)
    torch.testing.assert_close(path.to_x0(v, x_t, t, "velocity"), x0)
    torch.testing.assert_close(path.to_noise(v, x_t, t, "velocity"), noise)
    torch.testing.assert_close(path.to_score(v, x_t, t, "velocity"), -noise / path.sigma(t)[:, None])
    torch.testing.assert_close(path.to_velocity(noise, x_t, t, "epsilon"), v)


def test_velocity_is_the_time_derivative_of_the_state(path, generator):
    x0, noise = (torch.randn(3, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    # Away from the table's indices, where a discrete path has a kink.
    t = torch.tensor([0.2503, 0.5006, 0.9004], dtype=torch.float64)
    h = 1e-5
    numeric = (path.add_noise(x0, noise, t + h) - path.add_noise(x0, noise, t - h)) / (2 * h)
    torch.testing.assert_close(path.velocity(x0, noise, t), numeric, rtol=1e-6, atol=1e-6)


def test_gain_is_the_slope_of_a_conversion(path):
    t = torch.tensor([0.15, 0.5, 0.85], dtype=torch.float64)
    x_t = torch.full((3, 1), 0.3, dtype=torch.float64)
    for source, target in itertools.product(PREDICTIONS, PREDICTIONS):
        low, high = (
            path.convert(torch.full((3, 1), value, dtype=torch.float64), x_t, t, source, target)
            for value in (0.0, 1.0)
        )
        torch.testing.assert_close(path.gain(t, source, target), (high - low)[:, 0], rtol=1e-7, atol=1e-9)


def test_ends(path):
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    assert path.alpha(zero) == 1
    assert path.sigma(zero) == 0
    assert path.sigma(one) > 0.99
    assert (path.alpha(one) < 1e-12) == path.ends_in_noise


def test_time_is_found_by_signal_to_noise_ratio(path):
    t = torch.linspace(0.01, 0.99, 23, dtype=torch.float64)
    scale = torch.linspace(0.5, 2, 23, dtype=torch.float64)
    torch.testing.assert_close(path.time_at(path.alpha(t) * scale, path.sigma(t) * scale), t)
    pure_noise = path.time_at(torch.tensor(0.0, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64))
    assert pure_noise == 1


def test_config_round_trip(path):
    assert path_from_config(json.loads(json.dumps(path.config()))) == path
    assert path != (GVPPath() if isinstance(path, LinearPath) else LinearPath())
    with pytest.raises(ValueError, match="unknown path 'cubic'"):
        path_from_config({"name": "cubic"})


def test_linear_and_gvp_closed_forms():
    t = torch.tensor([0.25], dtype=torch.float64)
    x0, noise = torch.tensor([[3.0]], dtype=torch.float64), torch.tensor([[-1.0]], dtype=torch.float64)
    assert LinearPath().add_noise(x0, noise, t).item() == 0.75 * 3 - 0.25
    assert LinearPath().velocity(x0, noise, t).item() == -4
    assert GVPPath().alpha(t).item() == pytest.approx(math.cos(math.pi / 8))
    assert GVPPath().velocity(x0, noise, t).item() == pytest.approx(
        math.pi / 2 * (-math.cos(math.pi / 8) - 3 * math.sin(math.pi / 8))
    )
    assert LinearPath().diffusion(t).item() == pytest.approx(0.25 / 0.75)


def test_vp_path_solves_its_sde():
    path, t = VPPath(0.1, 20.0), torch.linspace(0.01, 1, 50, dtype=torch.float64)
    beta = 0.1 + t * 19.9
    torch.testing.assert_close(path.d_log_alpha(t), -beta / 2)
    torch.testing.assert_close(path.diffusion(t), beta / 2)  # d sigma^2 = beta (1 - sigma^2) dt
    torch.testing.assert_close(path.alpha(t) ** 2 + path.sigma(t) ** 2, torch.ones_like(t))


@pytest.mark.parametrize(
    ("path", "index", "abar"),
    [
        (DiscretePath(), 0, 0.9999),
        (DiscretePath(), 499, 0.078587),
        (DiscretePath(), 999, 4.0358e-5),
        (DiscretePath("scaled_linear", 0.00085, 0.012), 499, 0.27767),
        (DiscretePath("scaled_linear", 0.00085, 0.012), 999, 0.0046601),
        (DiscretePath("scaled_linear", 0.0015, 0.0155), 999, 6.687e-4),
        (DiscretePath(), 400, 0.43997**2),  # DifFace's start
    ],
)
def test_published_noise_tables(path, index, abar):
    assert path.alphas_cumprod[index].item() == pytest.approx(abar, rel=1e-4)
    alpha = path.alpha(path.time_of_index(torch.tensor([index])))  # through float32 time
    assert alpha.item() == pytest.approx(abar**0.5, rel=1e-4)


def test_every_discrete_index_survives_float32_time():
    path, time = DiscretePath(), TimeConvention(scale=1000, discrete=True)
    indices = torch.arange(1000)
    t = path.time_of_index(indices)
    assert t.dtype == torch.float32
    assert torch.equal(path.index_of_time(t), indices)
    assert torch.equal(time.model_timestep(t), indices)
    assert torch.equal(time.model_timestep(time.project_time(indices)), indices)
    torch.testing.assert_close(path.alpha(t).double(), path.alphas_cumprod.sqrt(), rtol=1e-5, atol=0)


def test_slope_at_an_index_belongs_to_the_step_that_leads_there():
    path = DiscretePath()
    slope = path.d_log_alpha(path.time_of_index(torch.arange(1000)))  # through float32 time
    torch.testing.assert_close(slope.double(), 500 * torch.log1p(-path.betas), rtol=2e-3, atol=0)


@pytest.mark.parametrize("path", [VPPath(), DiscretePath()], ids=lambda p: p.name)
def test_little_noise_keeps_its_digits_in_float32(path):
    t = torch.tensor([1e-5, 1e-4, 1e-3], dtype=torch.float64)
    torch.testing.assert_close(path.sigma(t.float()).double(), path.sigma(t), rtol=1e-5, atol=0)


def test_discrete_time_is_uniform_over_indices(generator):
    draws = TimeConvention(scale=10, discrete=True).model_timestep(torch.rand(100_000, generator=generator))
    torch.testing.assert_close(torch.bincount(draws) / 1e5, torch.full((10,), 0.1), rtol=0, atol=5e-3)


def test_times_broadcast_per_sample_and_per_element():
    x = torch.zeros(2, 3, 4, 5)
    assert expand_like(torch.tensor([0.1, 0.2]), x).shape == (2, 1, 1, 1)
    per_frame = torch.rand(2, 1, 4, 1)
    assert expand_like(per_frame, x) is per_frame
    assert expand_like(torch.tensor([0.5]), x.double()).dtype == torch.float64
    assert expand_like(torch.tensor([0.5]), x.bfloat16()).dtype == torch.float32
    with pytest.raises(ValueError, match=r"times of shape \(3,\)"):
        expand_like(torch.rand(3), x)
    path, noise = LinearPath(), torch.ones(2, 3, 4, 5)
    assert torch.equal(path.add_noise(x, noise, per_frame), per_frame.expand(2, 3, 4, 5))


def test_time_conventions():
    t = torch.tensor([0.0, 0.25, 1.0])
    assert TimeConvention().model_timestep(t).tolist() == [0, 250, 1000]
    flipped = preset("sit").time
    assert flipped.model_timestep(t).tolist() == [1, 0.75, 0]
    for time in (TimeConvention(), flipped):
        torch.testing.assert_close(time.project_time(time.model_timestep(t)), t)
    assert preset("dit").model_timestep(torch.tensor([0.0, 0.001, 0.5, 1.0])).tolist() == [0, 0, 499, 999]
    with pytest.raises(ValueError, match="discrete time"):
        TimeConvention(discrete=True, flip=True)


def test_flipped_time_turns_the_velocity_around(generator):
    """RAE counts as the project does, SiT the other way: v_RAE(x, t) = -v_SiT(x, 1 - t)."""
    x0, noise, t = torch.randn(3, 4), torch.randn(3, 4), torch.tensor([0.1, 0.5, 0.8])
    ours, sit = Parameterization(), preset("sit")
    torch.testing.assert_close(sit.target(x0, noise, t), -ours.target(x0, noise, t))
    torch.testing.assert_close(sit.target(x0, noise, t), x0 - noise)
    x_t = ours.path.add_noise(x0, noise, t)
    for parameterization in (ours, sit):
        raw = parameterization.target(x0, noise, t)
        torch.testing.assert_close(parameterization.x0(raw, x_t, t), x0)
        torch.testing.assert_close(parameterization.velocity(raw, x_t, t), noise - x0)


def test_parameterization_config_round_trip():
    for name in ("flow", "sit", "lightningdit", "dit"):
        parameterization = preset(name)
        copy = Parameterization.from_config(json.loads(json.dumps(parameterization.config())))
        assert copy.config() == parameterization.config()
        assert repr(copy) == repr(parameterization)
    with pytest.raises(ValueError, match="unknown preset"):
        preset("edm")
    with pytest.raises(ValueError, match="unknown prediction 'eps'"):
        Parameterization(prediction="eps")
    with pytest.raises(ValueError, match="1000 indices"):
        Parameterization(DiscretePath(), "epsilon", TimeConvention(scale=500, discrete=True))


def test_learned_variance_channels_are_left_out_of_reading():
    parameterization, x_t, t = preset("dit"), torch.randn(2, 4, 3, 3), torch.tensor([0.3, 0.6])
    raw = torch.randn(2, 8, 3, 3)
    assert torch.equal(parameterization.read(raw, x_t, t, "epsilon"), raw[:, :4])
