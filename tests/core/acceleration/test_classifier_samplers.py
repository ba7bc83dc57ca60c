"""EluCD's samplers: without guidance they are DDPM's and EDM's, with it they reach the class."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from polydit.core.acceleration.classifier_guidance import smooth
from polydit.core.acceleration.classifier_samplers import guided_ancestral, guided_heun
from polydit.core.diffusion import (
    DiscretePath,
    Parameterization,
    TimeConvention,
    make_scheduler,
    respace,
    with_scheduler,
)
from polydit.core.errors import PolyditError

LABELS = torch.arange(24) % 4
DDPM = Parameterization(DiscretePath(), "epsilon", TimeConvention(1000, discrete=True))


@pytest.fixture
def noise():
    return torch.randn(24, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def classifier():
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Flatten(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 4)).double()
    return smooth(layers, 3.0)


def network(parameterization, spread=1.0, variance=None):
    """The best answer for normal data of a standard deviation."""

    def denoise(x, timestep):
        t = parameterization.time.project_time(timestep)
        path = parameterization.path
        alpha, sigma = (value.to(x).view(-1, 1, 1, 1) for value in (path.alpha(t), path.sigma(t)))
        x0 = x * alpha * spread**2 / (alpha**2 * spread**2 + sigma**2)
        answer = path.convert(x0, x, t, "x0", parameterization.prediction)
        return answer if variance is None else torch.cat([answer, torch.full_like(answer, variance)], 1)

    return denoise


def accuracy(classifier, samples):
    return float((classifier(samples).argmax(1) == LABELS).double().mean())


@pytest.mark.parametrize("variance", [None, -1.0])
@torch.no_grad()
def test_without_guidance_it_is_ddpm(noise, classifier, variance):
    indices = respace(20)
    scheduler = make_scheduler("ddpm", DDPM, variance_type="fixed_small")
    denoise = network(DDPM)
    expected = with_scheduler(
        denoise, noise, DDPM, scheduler, None, set_timesteps={"timesteps": indices},
        generator=torch.Generator().manual_seed(2),
    )  # fmt: skip
    found = guided_ancestral(
        network(DDPM, variance=variance), noise, LABELS, classifier, DDPM, indices, scale=0.0,
        generator=torch.Generator().manual_seed(2),
    )  # fmt: skip
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_guided_ancestral_reaches_the_class(noise, classifier):
    denoise, indices = network(DDPM), respace(20)

    def run(**options):
        generator = torch.Generator().manual_seed(2)
        return guided_ancestral(
            denoise, noise, LABELS, classifier, DDPM, indices, generator=generator, **options
        )

    plain, guided = run(scale=0.0), run(scale=40.0)
    assert accuracy(classifier, plain) < 0.5
    assert accuracy(classifier, guided) > 0.9
    assert not torch.equal(run(scale=1.0, gamma=0.0), run(scale=1.0))
    assert run(clip=True).isfinite().all()
    with pytest.raises(PolyditError, match="take guided_heun"):
        guided_ancestral(denoise, noise, LABELS, classifier, Parameterization(), indices)


@torch.no_grad()
def test_guided_heun(noise, classifier):
    flow, spread = Parameterization(), 0.5
    denoise = network(flow, spread)

    def run(steps, **options):
        times = [0.98 * (1 - step / steps) for step in range(steps)] + [0.0]
        return guided_heun(denoise, noise, LABELS, classifier, flow, times, **options)

    sigma = 0.98 / 0.02
    exact = noise * sigma * spread / (sigma**2 + spread**2) ** 0.5  # the flow of normal data in closed form
    errors = [float((run(steps, weight=0.0) - exact).abs().max()) for steps in (40, 80, 160)]
    assert errors[2] < 2e-3
    assert errors[0] / errors[1] > 2.8  # of second order but for the last step, which is Euler's
    assert accuracy(classifier, run(18, weight=0.0)) < 0.5
    assert accuracy(classifier, run(18, weight=0.3)) > 0.9
    with pytest.raises(PolyditError, match="begin where data is left"):
        guided_heun(denoise, noise, LABELS, classifier, flow, [1.0, 0.5, 0.0])
