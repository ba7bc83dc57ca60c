"""Trajectory regression: one step of the student lands where several of the teacher's steps do.

Progressive distillation (arXiv 2202.00512) in one go, from any number of steps to any divisor of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor

from ..diffusion.parameterization import Denoise, Parameterization
from ..diffusion.paths import expand_like
from ..diffusion.samplers import time_grid
from ..errors import PolyditError

__all__ = ["Segment", "TrajectoryDistillation"]

Space = Literal["x0", "velocity"]
Loss = Literal["mse", "l1"]


@dataclass
class Segment:
    """A stretch of the teacher's trajectory, one for each sample.

    Attributes:
        t: Project time at its start, (B,).
        t_end: At its end, (B,).
        start: State there, (B, C, ...).
        end: State that the teacher reaches.
    """

    t: Tensor
    t_end: Tensor
    start: Tensor
    end: Tensor

    @property
    def velocity(self) -> Tensor:
        """With which one Euler step goes from start to end."""
        return (self.end - self.start) / expand_like(self.t_end - self.t, self.start)


@dataclass(frozen=True)
class TrajectoryDistillation:
    """Regress the student's step on the teacher's steps over the same stretch of time.

    Attributes:
        teacher_steps: Euler steps of the teacher over the whole way; a multiple of ``student_steps``.
        student_steps: Of the student.
        shift: Time shift of both grids, see :func:`~polydit.core.diffusion.timesteps.shift_time`.
        space: In which quantity the two are compared: ``x0`` (well scaled where the network answers that), or
            ``velocity``.
        loss: ``mse`` or ``l1``, elementwise.

    Raises:
        PolyditError: the numbers of steps do not divide, or an option is not known.
    """

    teacher_steps: int = 32
    student_steps: int = 8
    shift: float = 1.0
    space: Space = "x0"
    loss: Loss = "mse"

    def __post_init__(self) -> None:
        if self.student_steps < 1 or self.teacher_steps % self.student_steps:
            raise PolyditError(
                f"teacher_steps {self.teacher_steps}: no multiple of student_steps {self.student_steps}; "
                f"give for example {4 * max(1, self.student_steps)}"
            )
        for option, value, choices in (
            ("space", self.space, get_args(Space)),
            ("loss", self.loss, get_args(Loss)),
        ):
            if value not in choices:
                raise PolyditError(f"distillation {option} {value!r}: choose from {', '.join(choices)}")

    @property
    def times(self) -> list[float]:
        """The teacher's grid, from noise to data; every ``ratio``-th is one of the student's."""
        return time_grid(self.teacher_steps, shift=self.shift)

    @property
    def ratio(self) -> int:
        """The teacher's steps in one of the student's."""
        return self.teacher_steps // self.student_steps

    def segments_of(self, uniform: Tensor) -> Tensor:
        """Which of the student's steps each sample trains, (B,) int64, from numbers in [0, 1]."""
        return (uniform * self.student_steps).long().clamp(max=self.student_steps - 1)

    @torch.no_grad()
    def follow(
        self,
        teacher: Denoise,
        parameterization: Parameterization,
        x0: Tensor,
        noise: Tensor,
        segments: Tensor,
    ) -> Segment:
        """Let the teacher go along one stretch for each sample, from noised data.

        Args:
            teacher: With its conditions filled in.
            parameterization: What its answers mean.
            x0: Clean data (B, C, ...).
            noise: Standard normal like x0.
            segments: Which of the student's steps, (B,).
        """
        grid = torch.tensor(self.times, device=x0.device)
        first = segments.to(x0.device) * self.ratio
        t = grid[first]
        start = parameterization.path.add_noise(x0, noise, t).to(x0.dtype)
        x = start
        for step in range(self.ratio):
            now, after = grid[first + step], grid[first + step + 1]
            raw = teacher(x, parameterization.model_timestep(now)).to(x.dtype)
            x = x + parameterization.velocity(raw, x, now) * expand_like(after - now, x)
        return Segment(t, grid[first + self.ratio], start, x)

    def error(self, raw: Tensor, segment: Segment, parameterization: Parameterization) -> Tensor:
        """Loss of each sample (B,) for the student's raw answer at the start of its segment."""
        answer = parameterization.read(raw.to(segment.start.dtype), segment.start, segment.t, self.space)
        wanted = parameterization.path.convert(
            segment.velocity, segment.start, segment.t, "velocity", self.space
        )
        difference = (answer - wanted).flatten(1)
        return (difference**2 if self.loss == "mse" else difference.abs()).mean(1)

    def student_lengths(self) -> list[float]:
        """How long each of the student's steps is, in project time."""
        return [before - after for before, after in pairwise(self.times[:: self.ratio])]
