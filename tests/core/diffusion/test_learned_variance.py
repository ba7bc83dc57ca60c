"""DiT's learned variance and its bound, in bits per dimension."""

from __future__ import annotations

import math

import pytest
import torch

from polydit.core.diffusion import DiscretePath, LinearPath, Objective, TimeConvention
from polydit.core.diffusion.learned_variance import (
    log_variance,
    log_variance_range,
    posterior_mean,
    variational_bound,
)

PATH = DiscretePath()
INDEX = torch.tensor([1, 250, 999])


def test_interpolation_ends_at_beta_and_at_the_posterior():
    v = torch.ones(3, 2, dtype=torch.float64)
    betas = PATH.betas[INDEX]
    previous, abar = PATH.alphas_cumprod[INDEX - 1], PATH.alphas_cumprod[INDEX]
    posterior = betas * (1 - previous) / (1 - abar)
    torch.testing.assert_close(log_variance(PATH, v, INDEX).exp()[:, 0], betas)
    torch.testing.assert_close(log_variance(PATH, -v, INDEX).exp()[:, 1], posterior)
    torch.testing.assert_close(log_variance(PATH, 0 * v, INDEX).exp()[:, 0], (betas * posterior).sqrt())


def test_index_zero_takes_the_posterior_of_index_one():
    low, _ = log_variance_range(PATH)
    assert torch.isfinite(low).all()
    assert low[0] == low[1]


def test_posterior_mean_is_that_of_the_forward_chain():
    """Bayes on scalars: x_{t-1} given x0 times x_t given x_{t-1}."""
    x0, x_t = torch.tensor([[0.3]] * 3, dtype=torch.float64), torch.tensor([[-0.8]] * 3, dtype=torch.float64)
    previous, beta = PATH.alphas_cumprod[INDEX - 1][:, None], PATH.betas[INDEX][:, None]
    prior_mean, prior_var = previous.sqrt() * x0, 1 - previous
    precision = 1 / prior_var + (1 - beta) / beta
    mean = (prior_mean / prior_var + (1 - beta).sqrt() * x_t / beta) / precision
    torch.testing.assert_close(posterior_mean(PATH, x0, x_t, INDEX), mean)
    torch.testing.assert_close(
        log_variance(PATH, -torch.ones(3, 1, dtype=torch.float64), INDEX).exp(), 1 / precision
    )


def bound(epsilon_error, v, index, generator):
    x0 = torch.rand(1, 2, 4, 4, generator=generator, dtype=torch.float64) - 0.5
    noise = torch.randn(1, 2, 4, 4, generator=generator, dtype=torch.float64)
    index = torch.tensor([index])
    x_t = PATH.add_noise(x0, noise, PATH.time_of_index(index).double())
    v = torch.full_like(x0, v).requires_grad_()
    epsilon = (noise + epsilon_error).requires_grad_()
    return variational_bound(PATH, x0, x_t, index, epsilon, v), epsilon, v


def test_the_true_step_costs_nothing(generator):
    assert bound(0.0, -1.0, 500, generator)[0].abs() < 1e-6
    assert bound(0.0, 0.5, 20, generator)[0] > 1e-3  # where the posterior and beta differ
    assert bound(1.0, -1.0, 500, generator)[0] > 1e-4


def test_divergence_closed_form(generator):
    """A wrong variance with the right mean: (log r - 1 + 1 / r) / 2 nats for the ratio r."""
    low, high = (table[20].item() for table in log_variance_range(PATH))
    expected = 0.5 * (high - low - 1 + math.exp(low - high)) / math.log(2)
    assert bound(0.0, 1.0, 20, generator)[0].item() == pytest.approx(expected, rel=1e-5)


def test_only_the_variance_learns_from_the_bound(generator):
    loss, epsilon, v = bound(0.3, 0.2, 300, generator)
    loss.sum().backward()
    assert epsilon.grad is None
    assert v.grad.abs().max() > 0


def test_code_length_at_index_zero(generator):
    """The exact data in a narrow Gaussian on its bin: -log2 of the bin's mass."""
    std = math.exp(0.5 * log_variance_range(PATH)[0][0])
    mass = 2 * torch.special.ndtr(torch.tensor(1 / 255 / std, dtype=torch.float64)) - 1
    assert bound(0.0, -1.0, 0, generator)[0].item() == pytest.approx(-math.log2(mass), rel=1e-3)
    assert bound(5.0, -1.0, 0, generator)[0] > 1


def test_objective_adds_the_bound(generator):
    objective = Objective(
        PATH, "epsilon", variance_weight=1.0, time=TimeConvention(scale=1000, discrete=True)
    )
    x0 = torch.randn(8, 2, 4, 4, generator=generator) * 0.5
    noise, t = torch.randn(8, 2, 4, 4, generator=generator), objective.draw_times(8, generator)
    true_step = objective(lambda x, _: torch.cat([noise, -torch.ones_like(noise)], 1), x0, noise, t)
    assert true_step.terms["mse"].max() == 0
    late = PATH.index_of_time(t) > 0
    assert true_step.terms["variance"][late].abs().max() < 1e-3
    other = objective(lambda x, _: torch.cat([noise, torch.ones_like(noise)], 1), x0, noise, t)
    assert other.loss > true_step.loss
    torch.testing.assert_close(other.loss_per_sample, other.terms["mse"] + other.terms["variance"])
    assert other.prediction.shape[1] == 4
    assert other.x0.shape == x0.shape
    with pytest.raises(ValueError, match="needs 4 output channels, not 2"):
        objective(lambda x, _: x, x0)
    with pytest.raises(ValueError, match="needs a DiscretePath"):
        Objective(LinearPath(), variance_weight=1.0)
