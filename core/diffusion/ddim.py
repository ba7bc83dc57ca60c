"""The deterministic DDIM sampler on any path, differentiable from end to end (DDIM, arXiv 2010.02502), and a noisy one.

A step keeps the two things that the network has said, clean data and noise, and mixes them anew. On the linear path
that is an Euler step. What trains through its sampler, or on the states of its sampler, runs this.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .parameterization import Denoise, Parameterization
from .runs import sampling_run

__all__ = ["ddim", "ddim_step", "index_times", "renoise", "stochastic_ddim"]


def index_times(indices: Sequence[int], total: int = 1000) -> list[float]:
    """Times of whole indices of a discrete schedule, descending, with 0 (the data) behind them."""
    return [*((index + 1) / total for index in sorted(indices, reverse=True)), 0.0]


def ddim_step(
    parameterization: Parameterization, raw: Tensor, x_t: Tensor, t: float | Tensor, t_next: float | Tensor
) -> Tensor:
    """The state at ``t_next`` from the network's raw answer at ``t``, without noise of its own.

    Times are one for all samples, or (B,).
    """
    precision = torch.promote_types(x_t.dtype, torch.float32)
    now, then = (
        torch.as_tensor(value, dtype=precision, device=x_t.device).expand(x_t.shape[0])
        for value in (t, t_next)
    )
    x0 = parameterization.read(raw, x_t, now, "x0")
    if not isinstance(t_next, Tensor) and t_next == 0:
        return x0.to(x_t.dtype)
    noise = parameterization.read(raw, x_t, now, "epsilon")
    return parameterization.path.add_noise(x0, noise, then).to(x_t.dtype)


def ddim(
    denoise: Denoise,
    init: Tensor,
    parameterization: Parameterization,
    times: Sequence[float],
    *,
    recompute: bool = False,
    visit: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Carry a state (B, C, ...) along descending times; gradients flow through all steps.

    Args:
        denoise: network with conditions and guidance filled in.
        init: state at ``times[0]``.
        parameterization: what the network's answer means.
        times: descending, in project time; see :func:`index_times`.
        recompute: run the network again in the backward pass instead of keeping what it computed.
        visit: called with the number of steps taken and the state, after each.
    """
    x_t = init
    with sampling_run(len(times) - 1) as at:
        for index, (t, t_next) in enumerate(pairwise(times)):
            at(index)
            precision = torch.promote_types(x_t.dtype, torch.float32)
            t_batch = torch.full((x_t.shape[0],), t, dtype=precision, device=x_t.device)
            timestep = parameterization.model_timestep(t_batch)
            asked = (x_t, timestep)
            raw = checkpoint(denoise, *asked, use_reentrant=False) if recompute else denoise(*asked)
            x_t = ddim_step(parameterization, raw, x_t, t, t_next)
            if visit is not None:
                visit(index + 1, x_t)
    return x_t


def renoise(
    parameterization: Parameterization,
    x_t: Tensor,
    t: float,
    t_back: float,
    generator: torch.Generator | None = None,
) -> Tensor:
    """A state (B, C, ...) carried from ``t`` back to the noisier ``t_back`` by fresh noise, along the path."""
    precision = torch.promote_types(x_t.dtype, torch.float32)
    path = parameterization.path
    now, then = (torch.tensor([value], dtype=precision, device=x_t.device) for value in (t, t_back))
    ratio = path.alpha(then) / path.alpha(now)
    fresh = (path.sigma(then).square() - (ratio * path.sigma(now)).square()).clamp(min=0).sqrt()
    noise = torch.randn(x_t.shape, generator=generator, dtype=precision).to(x_t.device)
    return (ratio * x_t + fresh * noise).to(x_t.dtype)


def stochastic_ddim(
    denoise: Denoise,
    init: Tensor,
    parameterization: Parameterization,
    times: Sequence[float],
    generator: torch.Generator | None = None,
) -> Tensor:
    """Two steps forward without noise, one back with it: the N-step stochastic sampler of distilled networks.

    From ``times[i]`` one deterministic step leads to ``times[i + 2]``, fresh noise back to ``times[i + 1]``. It asks
    the network as often as :func:`ddim` does ("On Distillation of Guided Diffusion Models", arXiv 2210.03142).

    Args:
        denoise: network with conditions and guidance filled in.
        init: state at ``times[0]``.
        parameterization: what the network's answer means.
        times: descending, in project time, ending at 0; see :func:`index_times`.
        generator: of the noise, on the CPU.
    """
    x_t, last = init, len(times) - 1
    with sampling_run(last) as at:
        for index, t in enumerate(times[:-1]):
            at(index)
            precision = torch.promote_types(x_t.dtype, torch.float32)
            t_batch = torch.full((x_t.shape[0],), t, dtype=precision, device=x_t.device)
            raw = denoise(x_t, parameterization.model_timestep(t_batch))
            far = times[min(index + 2, last)]
            x_t = ddim_step(parameterization, raw, x_t, t, far)
            if index + 1 < last:
                x_t = renoise(parameterization, x_t, far, times[index + 1], generator)
    return x_t
