"""The learned variance of discrete-time models and its variational bound, as DiT trains it.

A second half of output channels v in [-1, 1] (not clipped) interpolates the log variance of one reverse step
between its posterior value and beta: "Improved Denoising Diffusion Probabilistic Models", arXiv 2102.09672.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .paths import DiscretePath, expand_like


def _lookup(table: Tensor, index: Tensor, like: Tensor) -> Tensor:
    dtype = torch.promote_types(like.dtype, torch.float32)
    return expand_like(table.to(dtype).to(like.device)[index], like)


def log_variance_range(path: DiscretePath) -> tuple[Tensor, Tensor]:
    """Log of the posterior variance and log of beta, per index.

    The posterior variance of index 0 is 0; that of index 1 stands in for it.
    """
    previous = torch.cat([torch.ones(1, dtype=torch.float64), path.alphas_cumprod[:-1]])
    posterior = path.betas * (1 - previous) / (1 - path.alphas_cumprod)
    posterior[0] = posterior[1]
    return posterior.log(), path.betas.log()


def log_variance(path: DiscretePath, v: Tensor, index: Tensor) -> Tensor:
    """Log variance of the step from ``index`` (B,) down: v = -1 is the posterior's, v = +1 is beta."""
    low, high = log_variance_range(path)
    fraction = (v + 1) / 2
    return fraction * _lookup(high, index, v) + (1 - fraction) * _lookup(low, index, v)


def posterior_mean(path: DiscretePath, x0: Tensor, x_t: Tensor, index: Tensor) -> Tensor:
    """Mean of ``x_{index-1}`` given ``x_t`` at ``index`` (B,) and the clean data."""
    abar = path.alphas_cumprod
    previous = torch.cat([torch.ones(1, dtype=torch.float64), abar[:-1]])
    of_x0 = previous.sqrt() * path.betas / (1 - abar)
    of_x_t = (1 - path.betas).sqrt() * (1 - previous) / (1 - abar)
    return _lookup(of_x0, index, x0) * x0 + _lookup(of_x_t, index, x_t) * x_t


def variational_bound(
    path: DiscretePath, x0: Tensor, x_t: Tensor, index: Tensor, epsilon: Tensor, v: Tensor
) -> Tensor:
    """Bound of the negative log likelihood for one step, in bits per dimension, (B,).

    The divergence between the true posterior and the predicted step; at index 0 the code length of the data
    in 256 bins over [-1, 1]. The predicted noise is detached: this loss trains only the variance.
    """
    t = path.time_of_index(index).to(x_t.device)
    predicted_x0 = path.to_x0(epsilon.detach(), x_t, t, "epsilon")
    mean = posterior_mean(path, predicted_x0, x_t, index)
    log_var = log_variance(path, v, index)
    true_mean = posterior_mean(path, x0, x_t, index)
    true_log_var = _lookup(log_variance_range(path)[0], index, x0)
    divergence = 0.5 * (
        log_var
        - true_log_var
        - 1
        + torch.exp(true_log_var - log_var)
        + (true_mean - mean) ** 2 * torch.exp(-log_var)
    )
    code_length = -_log_probability_of_bin(x0, mean, 0.5 * log_var)
    nats = torch.where(expand_like(index == 0, x0) > 0, code_length, divergence)
    return nats.flatten(1).mean(1) / math.log(2)


def _log_probability_of_bin(x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Log mass that a Gaussian puts on the 8-bit bin around ``x``; the outermost bins reach to infinity."""
    precision = torch.exp(-log_std)
    upper = torch.where(x > 0.999, torch.inf, (x - mean + 1 / 255) * precision)
    lower = torch.where(x < -0.999, -torch.inf, (x - mean - 1 / 255) * precision)
    mass = torch.special.ndtr(upper) - torch.special.ndtr(lower)
    return mass.clamp(min=1e-12).log()
