"""Diffusion: noise paths and time, training objectives, timestep sampling, guidance, samplers.

Inside the project t = 0 is data and t = 1 is noise. A :class:`Parameterization` says what a network's output
means; an :class:`Objective` is one that can also train; :func:`sample`, :func:`refine` and
:func:`with_scheduler` read it.
"""

from .ddim import ddim, ddim_step, index_times, renoise, stochastic_ddim
from .guidance import Guidance, guide
from .objective import Objective, ObjectiveOutput
from .ode import Solution, solve
from .parameterization import Denoise, Parameterization, TimeConvention, preset
from .paths import (
    DiscretePath,
    GVPPath,
    LinearPath,
    Path,
    VariancePreserving,
    VPPath,
)
from .samplers import Callback, Step, draw_noise, refine, sample, time_grid
from .schedulers import make_scheduler, respace, shift_of_tokens, with_scheduler
from .timesteps import (
    LogitNormal,
    Shifted,
    Terminal,
    TimestepSampler,
    Uniform,
    dimension_shift,
    shift_time,
    unshift_time,
)

__all__ = [
    "Callback",
    "Denoise",
    "DiscretePath",
    "GVPPath",
    "Guidance",
    "LinearPath",
    "LogitNormal",
    "Objective",
    "ObjectiveOutput",
    "Parameterization",
    "Path",
    "Shifted",
    "Solution",
    "Step",
    "Terminal",
    "TimeConvention",
    "TimestepSampler",
    "Uniform",
    "VPPath",
    "VariancePreserving",
    "ddim",
    "ddim_step",
    "dimension_shift",
    "draw_noise",
    "guide",
    "index_times",
    "make_scheduler",
    "preset",
    "refine",
    "renoise",
    "respace",
    "sample",
    "shift_of_tokens",
    "shift_time",
    "solve",
    "stochastic_ddim",
    "time_grid",
    "unshift_time",
    "with_scheduler",
]
