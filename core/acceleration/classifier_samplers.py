"""The two samplers of EluCD, classifier guidance without a noisy classifier (arXiv 2310.11311), as they are published.

:class:`~polydit.core.acceleration.ClassifierGuidance` is our form of it, for any sampler.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ..diffusion import Denoise, DiscretePath, Parameterization
from ..diffusion.learned_variance import log_variance, log_variance_range, posterior_mean
from ..diffusion.runs import sampling_run
from ..diffusion.samplers import Generators, draw_noise
from ..errors import PolyditError
from .classifier_guidance import class_gradient, mean_shift, state_shift, weight_of_step

__all__ = ["guided_ancestral", "guided_heun"]

Classifier = Callable[[Tensor], Tensor]


def guided_ancestral(
    denoise: Denoise,
    noise: Tensor,
    labels: Tensor,
    classifier: Classifier,
    parameterization: Parameterization,
    indices: Sequence[int],
    scale: float = 1.0,
    gamma: float = 0.3,
    joint: float = 1.0,
    marginal: float = 0.5,
    clip: bool = False,
    generator: Generators = None,
) -> Tensor:
    """DDPM's ancestral sampler, each mean moved along the classifier's gradient at the clean data as predicted.

    Args:
        denoise: with conditions filled in; an answer of twice the channels brings its variance, others have the
            posterior's.
        noise: standard normal (B, C, ...).
        labels: (B,) classes.
        classifier: clean data (B, C, ...) to logits (B, classes), as a rule :func:`~.classifier_guidance.smooth`.
        parameterization: on a discrete path.
        indices: of the path that are visited, see :func:`~polydit.core.diffusion.respace`.
        scale: of the guidance; 0 is the plain sampler, bit for bit.
        gamma: of the part that is greatest half way, by the greatest variance of the chain so far.
        joint: see :func:`~.classifier_guidance.class_gradient`.
        marginal: see there.
        clip: clean data lie in [-1, 1]: pictures, not latents.
        generator: source of the noise of the steps.

    Returns:
        Samples (B, C, ...).

    Raises:
        PolyditError: the path has no indices.
    """
    path = parameterization.path
    if not isinstance(path, DiscretePath):
        raise PolyditError(f"guided_ancestral: {path!r} has no indices; take guided_heun")
    chosen = sorted(indices)
    short = copy.copy(path)  # the chain that the chosen indices make
    short.alphas_cumprod = path.alphas_cumprod[chosen]
    before = torch.cat([torch.ones(1, dtype=torch.float64), short.alphas_cumprod[:-1]])
    short.betas = 1 - short.alphas_cumprod / before
    x, total, largest = noise, len(chosen), noise.new_zeros(())
    with sampling_run(total) as at:
        for step, place in enumerate(reversed(range(total))):
            at(step)
            index = torch.full((len(x),), place, device=x.device)
            t = path.time_of_index(torch.full_like(index, chosen[place])).to(x.dtype)
            raw = denoise(x, parameterization.model_timestep(t))
            x0 = parameterization.x0(raw, x, t)
            x0 = x0.clamp(-1, 1) if clip else x0
            mean = posterior_mean(short, x0, x, index)
            if raw.shape[1] == 2 * x.shape[1]:
                variance = log_variance(short, raw[:, x.shape[1] :], index).exp()
            else:
                low = log_variance_range(short)[0][place].exp().to(x)
                variance = low.expand_as(x)
            largest = torch.maximum(largest, variance.max())
            if scale:
                gradient = class_gradient(classifier, x0, labels, joint, marginal)
                mean = mean + mean_shift(gradient, variance, largest, place, total, scale, gamma)
            x = mean if place == 0 else mean + variance.sqrt() * draw_noise(x, generator)
    return x.to(noise.dtype)


def guided_heun(
    denoise: Denoise,
    noise: Tensor,
    labels: Tensor,
    classifier: Classifier,
    parameterization: Parameterization,
    times: Sequence[float],
    weight: float = 0.004,
    bump: float = 0.3,
    joint: float = 1.0,
    marginal: float = 0.0,
) -> Tensor:
    """Heun's sampler of EDM (arXiv 2206.00364), each state moved along the classifier's gradient at the state itself.

    States are as EDM has them, clean data plus noise; the classifier sees them at the size of data. The gradient is
    added once a step, before it.

    Args:
        denoise: with conditions filled in.
        noise: standard normal (B, C, ...).
        labels: (B,) classes.
        classifier: see :func:`guided_ancestral`.
        parameterization: on any path.
        times: project times, descending, the first below pure noise, the last 0.
        weight: greatest weight of the gradient; 0 is the plain sampler, bit for bit.
        bump: see :func:`~.classifier_guidance.weight_of_step`.
        joint: see :func:`~.classifier_guidance.class_gradient`.
        marginal: see there.

    Returns:
        Samples (B, C, ...).

    Raises:
        PolyditError: the times begin at pure noise, or do not end at the data.
    """
    path, total = parameterization.path, len(times) - 1
    precise = torch.tensor(list(times), dtype=torch.float64)
    alphas = path.alpha(precise)
    if alphas[0] == 0 or times[-1] != 0:
        raise PolyditError(
            f"guided_heun: times from {times[0]:g} to {times[-1]:g}; begin where data is left (such as 0.998), end at 0"
        )
    sigmas = (path.sigma(precise) / alphas).tolist()

    def clean(x: Tensor, step: int) -> Tensor:
        t = x.new_full((len(x),), times[step])
        state = x * float(alphas[step])
        return parameterization.x0(denoise(state, parameterization.model_timestep(t)), state, t)

    x = noise * sigmas[0]
    with sampling_run(2 * total - 1) as at:
        for step, (sigma, following) in enumerate(pairwise(sigmas)):
            at(2 * step)
            if weight:
                size = x.flatten(1).square().mean(1).sqrt().clamp(min=1).view(-1, *[1] * (x.ndim - 1))
                gradient = class_gradient(classifier, x / size, labels, joint, marginal)
                x = x + state_shift(gradient, x, weight_of_step(step, total, weight, bump))
            slope = (x - clean(x, step)) / sigma
            ahead = x + (following - sigma) * slope
            if following:
                at(2 * step + 1)
                slope = (slope + (ahead - clean(ahead, step + 1)) / following) / 2
                ahead = x + (following - sigma) * slope
            x = ahead
    return x.to(noise.dtype)
