"""Integrators from noise to data: Euler, Heun, Euler-Maruyama, from pure noise or a partly noised sample.

Pipelines usually run a diffusers scheduler (:mod:`.schedulers`). These integrators are for any path and any
precision, and for what diffusers' schedulers do not have: an exact start level and SiT's stochastic sampler.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from .parameterization import Denoise, Parameterization
from .runs import sampling_run
from .timesteps import shift_time, unshift_time

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

Method = Literal["euler", "heun", "sde"]
Generators = torch.Generator | list[torch.Generator] | None


@dataclass(frozen=True)
class Step:
    """One finished sampling step, as a callback sees it.

    Attributes:
        index: 0 for the first step.
        total: Number of steps.
        t: Project time at which the network was asked.
        t_next: Project time reached.
        x_t: State reached.
        x0: Clean data as predicted at ``t``.
    """

    index: int
    total: int
    t: float
    t_next: float
    x_t: Tensor
    x0: Tensor


Callback = Callable[[Step], Tensor | None]
"""Called after every step, for progress and previews; a tensor it returns replaces the state."""


def time_grid(
    steps: int,
    start: float = 1.0,
    end: float = 0.0,
    shift: float | None = None,
    last_step: float | None = None,
) -> list[float]:
    """``steps + 1`` times from ``start`` down to ``end``, evenly spaced before the shift.

    ``start`` and ``end`` are the noise levels themselves, after the shift. With ``last_step`` the last
    interval has that length and the others share the rest evenly.
    """
    if steps < 1:
        raise ValueError(f"sampling needs at least one step, not {steps}")
    if not 0 <= end < start <= 1:
        raise ValueError(f"sampling runs from start down to end within [0, 1], not from {start} to {end}")
    shift = 1.0 if shift is None else shift
    first, last = unshift_time(start, shift), unshift_time(end, shift)
    if last_step is None or steps == 1:
        even = [first + (last - first) * i / steps for i in range(steps + 1)]
    else:
        if not 0 < last_step < first - last:
            raise ValueError(f"last step {last_step} does not fit between start {start} and end {end}")
        even = [first + (last + last_step - first) * i / (steps - 1) for i in range(steps)] + [last]
    return [start, *(shift_time(t, shift) for t in even[1:-1]), end]


def sample(
    denoise: Denoise,
    init: Tensor,
    parameterization: Parameterization,
    steps: int,
    method: Method = "euler",
    *,
    start: float = 1.0,
    end: float = 0.0,
    shift: float | None = None,
    times: Sequence[float] | None = None,
    noise_scale: float = 1.0,
    last_step: float = 0.04,
    generator: Generators = None,
    callback: Callback | None = None,
) -> Tensor:
    """Carry a state from noise level ``start`` to ``end``.

    Args:
        denoise: Network with conditions and guidance filled in.
        init: State (B, C, ...) at ``start``: standard normal noise if that is 1. Its precision is kept; the
            network may work in a lower one.
        parameterization: What the network's output means.
        steps: Number of steps: network calls of ``euler`` and ``sde``; ``heun`` makes 2 steps - 1.
        method: ``euler`` or ``heun`` (second order, with an Euler step into t = 0), both deterministic given
            ``init``, or ``sde``: Euler-Maruyama on ``dx = (velocity - w score) dt + sqrt(2 w) dW`` with
            ``w = noise_scale sigma``, its last step without noise (SiT, arXiv 2401.08740).
        start: Project time of ``init``.
        end: Project time at which to stop.
        shift: Time shift of the grid, see :func:`.timesteps.shift_time`.
        times: The whole grid instead, descending; overrides steps, start, end, shift and last_step.
        noise_scale: Strength of the noise of ``sde``.
        last_step: Length of the last step of ``sde``, before the shift.
        generator: Source of the noise of ``sde``, or one per sample.
        callback: See :data:`Callback`.
    """
    if method not in get_args(Method):
        raise ValueError(f"unknown sampling method {method!r}; one of {', '.join(get_args(Method))}")
    if times is None:
        times = time_grid(steps, start, end, shift, last_step if method == "sde" else None)
    elif any(later >= earlier for earlier, later in pairwise(times)):
        raise ValueError("sampling times must descend")
    path, total = parameterization.path, len(times) - 1

    def ask(x_t: Tensor, t: float) -> tuple[Tensor, Tensor, Tensor]:
        precision = torch.promote_types(x_t.dtype, torch.float32)
        t_batch = torch.full((x_t.shape[0],), t, dtype=precision, device=x_t.device)
        raw = denoise(x_t, parameterization.model_timestep(t_batch)).to(x_t.dtype)
        return raw, parameterization.velocity(raw, x_t, t_batch).to(x_t.dtype), t_batch

    x_t = init
    with sampling_run(total) as at:
        for index, (t, t_next) in enumerate(pairwise(times)):
            at(index)
            raw, velocity, t_batch = ask(x_t, t)
            asked, dt = x_t, t_next - t
            if method == "sde":
                score = parameterization.read(raw, x_t, t_batch, "score")
                w = noise_scale * float(path.sigma(torch.tensor(t, dtype=torch.float64)))
                x_t = x_t + (velocity - w * score) * dt
                if index < total - 1:
                    x_t = x_t + (2 * w * -dt) ** 0.5 * draw_noise(x_t, generator)
            elif method == "heun" and t_next > 0:
                _, ahead, _ = ask(x_t + velocity * dt, t_next)
                x_t = x_t + (velocity + ahead) * (dt / 2)
            else:
                x_t = x_t + velocity * dt
            if callback is not None:
                x0 = parameterization.x0(raw, asked, t_batch)
                replaced = callback(Step(index, total, t, t_next, x_t, x0))
                x_t = x_t if replaced is None else replaced
    return x_t


def refine(
    denoise: Denoise,
    latents: Tensor,
    parameterization: Parameterization,
    steps: int,
    *,
    start: float,
    noise: Tensor | None = None,
    generator: Generators = None,
    scheduler: SchedulerMixin | None = None,
    **options: Any,
) -> Tensor:
    """Noise a given sample to level ``start`` and denoise it again: the sampler of every refinement task.

    DifFace starts at index 400 of 1000, DiT4SR's ``lr`` option at 1, GNVC-VD at 0.3 (0.7 in its own time).

    Args:
        denoise: Network with conditions and guidance filled in.
        latents: Sample to refine (B, C, ...).
        parameterization: What the network's output means.
        steps: Number of steps run.
        start: Noise level in project time; 0 returns the sample unchanged. A scheduler starts at the greatest
            level at or below it in the shortest of its schedules that has so many steps there.
        noise: Standard normal like the latents; drawn from ``generator`` if None.
        generator: Source of all noise, or one per sample.
        scheduler: A diffusers scheduler to run instead of :func:`sample`.
        options: Further arguments of :func:`sample` or :func:`.schedulers.with_scheduler`.
    """
    if start == 0:
        return latents
    if noise is None:
        noise = draw_noise(latents, generator)
    if scheduler is not None:
        from .schedulers import schedule_from, with_scheduler

        length, first = schedule_from(start, steps, scheduler, parameterization, options.get("set_timesteps"))
        options |= {"latents": latents, "first_step": first, "generator": generator}
        return with_scheduler(denoise, noise, parameterization, scheduler, length, **options)
    init = parameterization.path.add_noise(latents, noise, start)
    return sample(denoise, init, parameterization, steps, start=start, generator=generator, **options)


def draw_noise(like: Tensor, generator: Generators = None) -> Tensor:
    """Standard normal noise of that shape, device and dtype; a CPU generator draws on the CPU."""
    return randn_tensor(like.shape, generator=generator, device=like.device, dtype=like.dtype)
