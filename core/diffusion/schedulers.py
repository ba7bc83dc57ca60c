"""Driving diffusers' schedulers with our networks.

A scheduler brings its own path (flow or variance preserving), its own kind of prediction and its own
numbering of time. A network trained on another path is asked at the time with the same signal-to-noise ratio,
on the state scaled to its path, and its answer is translated. So any network runs under any scheduler.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import PolyditError
from .parameterization import Denoise, Parameterization
from .paths import DiscretePath, LinearPath, Path, VariancePreserving
from .runs import sampling_run
from .samplers import Callback, Generators, Step

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

# diffusers' name of each kind of prediction, as ours.
_KINDS = {"epsilon": "epsilon", "sample": "x0", "v_prediction": "v", "flow_prediction": "velocity"}


def respace(steps: int, num_train_timesteps: int = 1000, *, leading: bool = False) -> list[int]:
    """Descending indices of a shortened discrete schedule, as DiT and improved DDPM space them.

    Evenly from the first to the last index, rounded; with ``leading``, by a whole stride from 0 (``ddim50``).
    To be given to a scheduler as ``set_timesteps={"timesteps": respace(250)}``.
    """
    if not 1 <= steps <= num_train_timesteps:
        raise ValueError(f"cannot take {steps} of {num_train_timesteps} timesteps")
    if leading:
        for stride in range(1, num_train_timesteps + 1):
            indices = range(0, num_train_timesteps, stride)
            if len(indices) == steps:
                return list(indices)[::-1]
        raise ValueError(f"no whole stride gives {steps} of {num_train_timesteps} timesteps")
    spacing = (num_train_timesteps - 1) / max(steps - 1, 1)
    return [round(spacing * i) for i in range(steps)][::-1]


def shift_of_tokens(config: Mapping[str, Any], tokens: float) -> float:
    """``mu`` of a scheduler whose time shift follows the picture's size, as FLUX's does; the shift is ``exp(mu)``.

    Args:
        config: Of the scheduler, with ``use_dynamic_shifting``.
        tokens: Of the noisy picture.
    """
    low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    first, last = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    return float(first + (last - first) * (tokens - low) / (high - low))


def make_scheduler(
    name: str, parameterization: Parameterization, shift: float = 1.0, **options: Any
) -> SchedulerMixin:
    """The diffusers scheduler of that name for a network's path.

    Args:
        name: ``euler``, ``heun``, ``unipc``, ``dpm++`` on any path; ``ddim`` and ``ddpm`` on a discrete path.
            diffusers' DDIM rounds its stride down: give it a number of steps that divides the path's.
        parameterization: Decides between the flow form of a scheduler and the form with the path's own betas.
        shift: Time shift of the flow forms, see :func:`.timesteps.shift_time`.
        options: Further constructor arguments of the scheduler.
    """
    import diffusers

    path = parameterization.path
    if isinstance(path, DiscretePath):
        classes = {
            "euler": "EulerDiscreteScheduler",
            "heun": "HeunDiscreteScheduler",
            "unipc": "UniPCMultistepScheduler",
            "dpm++": "DPMSolverMultistepScheduler",
            "ddim": "DDIMScheduler",
            "ddpm": "DDPMScheduler",
        }
        settings: dict[str, Any] = {
            "num_train_timesteps": path.steps,
            "beta_schedule": "linear" if path.schedule == "warm" else path.schedule,
            "beta_start": path.beta_start,
            "beta_end": path.beta_end,
        }
        if path.is_changed:
            settings["trained_betas"] = path.betas.tolist()
        settings["timestep_spacing"] = "trailing"  # start at the greatest noise
        names = {ours: theirs for theirs, ours in _KINDS.items() if ours != "velocity"}
        settings["prediction_type"] = names.get(parameterization.prediction, "epsilon")
        if name in ("ddim", "ddpm"):
            settings["clip_sample"] = False  # latents are not confined to [-1, 1]
    else:
        classes = {
            "euler": "FlowMatchEulerDiscreteScheduler",
            "heun": "FlowMatchHeunDiscreteScheduler",
            "unipc": "UniPCMultistepScheduler",
            "dpm++": "DPMSolverMultistepScheduler",
        }
        if name in ("euler", "heun"):
            settings = {"shift": shift}
        else:
            settings = {"use_flow_sigmas": True, "flow_shift": shift, "prediction_type": "flow_prediction"}
    if name not in classes:
        raise PolyditError(f"scheduler {name!r} does not exist for {path!r}; one of {', '.join(classes)}")
    return getattr(diffusers, classes[name])(**(settings | options))


def with_scheduler(
    denoise: Denoise,
    noise: Tensor,
    parameterization: Parameterization,
    scheduler: SchedulerMixin,
    steps: int | None,
    *,
    latents: Tensor | None = None,
    start: float = 1.0,
    first_step: int | None = None,
    set_timesteps: Mapping[str, Any] | None = None,
    step_options: Mapping[str, Any] | None = None,
    generator: Generators = None,
    callback: Callback | None = None,
) -> Tensor:
    """Sample by a diffusers scheduler, which is copied, not changed.

    Args:
        denoise: Network with conditions and guidance filled in.
        noise: Standard normal (B, C, ...).
        parameterization: What the network's output means.
        scheduler: Any with one level per step: FlowMatchEuler, FlowMatchHeun, DDIM, DDPM, DPMSolverMultistep,
            UniPC, Euler.
        steps: Length of the whole schedule, also for a partial start; None if ``set_timesteps`` gives a list.
            Flow matching takes even steps of the time before its shift.
        latents: Sample to start from, noised to the first level run; without it the start is pure noise.
        start: Greatest noise level (project time of the network's path) to run; noisier steps are skipped.
        first_step: Number of steps to skip instead; a pipeline's ``strength`` skips
            ``steps - int(steps * strength)``.
        set_timesteps: Further arguments of the scheduler's ``set_timesteps`` (``mu``, ``sigmas``,
            ``timesteps``).
        step_options: Further arguments of the scheduler's ``step`` (``eta``).
        generator: Source of the scheduler's own noise, or one per sample.
        callback: See :data:`.samplers.Callback`.
    """
    scheduler = copy.deepcopy(scheduler)
    _set_timesteps(scheduler, steps, set_timesteps, noise.device)
    levels = _Levels(scheduler, parameterization.path)
    first = levels.skipped(start) if first_step is None else first_step * levels.order
    if first >= levels.total:
        raise PolyditError(f"start {start:g} skips the whole schedule; use more steps or a greater start")
    if first > 0 and latents is None:
        raise ValueError("a partial start needs latents to start from")
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)

    if latents is None:
        x = noise * getattr(scheduler, "init_noise_sigma", 1.0)
    else:
        alpha, sigma = levels.pair(first)
        x = (alpha * latents + sigma * noise) / levels.unit_state(torch.ones_like(noise), first)
    options = dict(step_options or {})
    if "generator" in inspect.signature(scheduler.step).parameters:
        options["generator"] = generator

    with sampling_run(levels.total - first) as at:
        for index in range(first, levels.total):
            at(index - first)
            timestep, t = scheduler.timesteps[index], levels.time(index)
            x_t = levels.unit_state(x, index) * levels.to_network(index)
            t_batch = torch.full((x.shape[0],), t, dtype=torch.float32, device=x.device)
            raw = denoise(x_t, parameterization.model_timestep(t_batch)).to(x.dtype)
            answer = levels.answer(raw, x_t, t_batch, index, parameterization)
            if str(scheduler.config.get("variance_type", "")).startswith("learned"):
                answer = torch.cat([answer, raw[:, x.shape[1] :]], dim=1)
            x = scheduler.step(answer, timestep, x, **options, return_dict=False)[0]
            if callback is not None:
                t_next = levels.time(index + 1) if index + 1 < levels.total else 0.0
                x0 = parameterization.x0(raw, x_t, t_batch)
                replaced = callback(Step(index - first, levels.total - first, t, t_next, x, x0))
                x = x if replaced is None else replaced
    return x


def schedule_from(
    start: float,
    steps: int,
    scheduler: SchedulerMixin,
    parameterization: Parameterization,
    set_timesteps: Mapping[str, Any] | None = None,
) -> tuple[int, int]:
    """Length of the shortest schedule with ``steps`` steps at or below ``start``, and how many it skips."""
    scheduler, length = copy.deepcopy(scheduler), steps
    while length <= scheduler.config.num_train_timesteps:
        _set_timesteps(scheduler, length, set_timesteps)
        levels = _Levels(scheduler, parameterization.path)
        solver_steps = -(-levels.total // levels.order)
        missing = steps - (solver_steps - levels.skipped(start) // levels.order)
        if missing <= 0:
            return length, solver_steps - steps
        length += missing  # a schedule longer by n has at most n more steps down there
    raise PolyditError(
        f"no schedule has {steps} steps below noise level {start:g}; use fewer or start higher"
    )


def _set_timesteps(
    scheduler: SchedulerMixin,
    steps: int | None,
    options: Mapping[str, Any] | None,
    device: torch.device | None = None,
) -> None:
    arguments = dict(options or {})
    if steps is not None and not ("timesteps" in arguments or "sigmas" in arguments):
        is_flow_match = not hasattr(scheduler, "alphas_cumprod")
        if is_flow_match and "sigmas" in inspect.signature(scheduler.set_timesteps).parameters:
            # Even steps down to 0, as FLUX's pipeline takes them. The scheduler's own default would spend the
            # last step below its least training level, 0.001, where nothing is left to do.
            arguments["sigmas"] = [1 - i / steps for i in range(steps)]
        else:
            arguments["num_inference_steps"] = steps
    scheduler.set_timesteps(device=device, **arguments)


class _Levels:
    """The noise level of each step of a scheduler, and the network's time for it."""

    def __init__(self, scheduler: SchedulerMixin, path: Path) -> None:
        if hasattr(scheduler, "sigmas_interpol"):
            name = type(scheduler).__name__
            raise PolyditError(f"{name}: its steps between two levels are not supported; use heun instead")
        self.scheduler = scheduler
        self.path = path
        # As numbers, once: reading single elements would wait for the device in every step.
        self.timesteps: list[float] = scheduler.timesteps.tolist()
        self.sigmas: list[float] | None = scheduler.sigmas.tolist() if hasattr(scheduler, "sigmas") else None
        self.total = len(self.timesteps)
        self.order = scheduler.order  # network calls per step; only whole steps can be skipped
        has_table = hasattr(scheduler, "alphas_cumprod")
        self.is_flow = bool(scheduler.config.get("use_flow_sigmas")) or not has_table
        self.kind = _KINDS[scheduler.config.get("prediction_type", "flow_prediction")]
        self.shares_table = (
            not self.is_flow
            and isinstance(path, DiscretePath)
            and scheduler.alphas_cumprod.shape == path.alphas_cumprod.shape
            and torch.allclose(scheduler.alphas_cumprod.double().cpu(), path.alphas_cumprod, rtol=1e-4)
        )

    def pair(self, index: int) -> tuple[float, float]:
        """Weights of data and noise at a step: they sum to 1 in a flow, their squares do otherwise."""
        if self.sigmas is not None:
            sigma = self.sigmas[index]
            norm = math.hypot(1, sigma)
            return (1 - sigma, sigma) if self.is_flow else (1 / norm, sigma / norm)
        abar = float(self.scheduler.alphas_cumprod[int(self.timesteps[index])])
        return abar**0.5, (1 - abar) ** 0.5

    def skipped(self, start: float) -> int:
        """Number of timesteps before the first whole step at or below a noise level (project time)."""
        levels = range(0, self.total, self.order)
        return next((i for i in levels if self.time(i) <= start + 1e-6), self.total)

    def unit_state(self, x: Tensor, index: int) -> Tensor:
        """The scheduler's state with these weights (some schedulers keep ``x0 + sigma noise``)."""
        if not hasattr(self.scheduler, "scale_model_input"):
            return x
        return self.scheduler.scale_model_input(x, self.scheduler.timesteps[index])

    def time(self, index: int) -> float:
        """Project time on the network's path with the step's signal-to-noise ratio."""
        if self.shares_table:
            assert isinstance(self.path, DiscretePath)
            return float(self.path.time_of_index(torch.tensor(self.timesteps[index], dtype=torch.float64)))
        alpha, sigma = (torch.tensor(value, dtype=torch.float64) for value in self.pair(index))
        return float(self.path.time_at(alpha, sigma))

    def to_network(self, index: int) -> float:
        """Factor from the unit state to the network's input."""
        if self.shares_table:
            return 1.0
        t = torch.tensor(self.time(index), dtype=torch.float64)
        norm = math.hypot(float(self.path.alpha(t)), float(self.path.sigma(t)))
        return norm / math.hypot(*self.pair(index))

    def answer(
        self, raw: Tensor, x_t: Tensor, t: Tensor, index: int, parameterization: Parameterization
    ) -> Tensor:
        """The network's answer as the kind of prediction that the scheduler expects, on its own path."""
        shared = {"velocity": LinearPath, "v": VariancePreserving}.get(self.kind, Path)
        if isinstance(self.path, shared):
            return parameterization.read(raw, x_t, t, self.kind)
        x0 = parameterization.read(raw, x_t, t, "x0")
        noise = parameterization.read(raw, x_t, t, "epsilon")
        alpha, sigma = self.pair(index)
        return noise - x0 if self.kind == "velocity" else alpha * noise - sigma * x0
