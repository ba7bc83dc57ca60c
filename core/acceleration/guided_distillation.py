"""One network for a guided pair, then half as many steps, and again ("On Distillation of Guided Diffusion Models").

A student samples by :func:`polydit.core.diffusion.ddim`, or with noise by ``stochastic_ddim``.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..backbones import DiT
from ..diffusion import Denoise, Parameterization, ddim_step
from ..diffusion.paths import expand_like
from ..errors import PolyditError

__all__ = ["GuidedDistillation", "guidance_features", "halved_target", "with_guidance"]


def guidance_features(guidance: Tensor, features: int = 256) -> Tensor:
    """Fourier features (B, features) of guidance weights (B,), as diffusers embeds them for ``time_cond_proj_dim``.

    Sines, then cosines, of ``1000 w f``, ``f`` from 1 down to 1 / 10000.
    """
    half = features // 2
    rates = torch.exp(-math.log(10000.0) * torch.arange(half, device=guidance.device) / (half - 1))
    angles = 1000 * guidance.float()[:, None] * rates[None]
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def with_guidance(teacher: DiT, features: int = 256) -> DiT:
    """A copy of a native DiT that also reads guidance, by ``pooled_projections=guidance_features(w)``.

    The new layers end in zeros, so that it starts as the conditional teacher.

    Raises:
        PolyditError: the teacher reads pooled projections already.
    """
    if teacher.pooled_embed is not None:
        raise PolyditError(
            "guided distillation: the teacher reads pooled projections already; free them first"
        )
    config = {key: value for key, value in teacher.config.items() if not key.startswith("_")}
    student = type(teacher).from_config({**config, "pooled_projection_dim": features})
    missing, unexpected = student.load_state_dict(teacher.state_dict(), strict=False)
    assert not unexpected
    assert all(name.startswith("pooled_embed") for name in missing)
    nn.init.zeros_(student.pooled_embed[-1].weight)
    nn.init.zeros_(student.pooled_embed[-1].bias)
    return student.train(teacher.training)


@dataclass(frozen=True)
class GuidedDistillation:
    """Stage 1 (arXiv 2210.03142): the student answers for every guidance what the guided pair answers.

    Args:
        parameterization: of teacher and student.
        low: least guidance w; 0 is the conditional network (``guidance_scale`` is 1 + w).
        high: greatest.
        largest_weight: bound of the signal-to-noise weight, for times without noise.
    """

    parameterization: Parameterization
    low: float = 0.0
    high: float = 4.0
    largest_weight: float = 1e4

    def draw(self, batch: int, generator: torch.Generator | None = None) -> Tensor:
        """Weights (batch,), even from low to high."""
        return self.low + (self.high - self.low) * torch.rand(batch, generator=generator)

    def target(
        self, conditional: Denoise, unconditional: Denoise, x_t: Tensor, t: Tensor, guidance: Tensor
    ) -> Tensor:
        """Clean data as the guided pair predicts it: ``(1 + w) x_c - w x_0``."""
        timestep = self.parameterization.model_timestep(t)
        with torch.no_grad():
            w = expand_like(guidance.to(x_t.device, x_t.dtype), x_t)
            given = self.parameterization.x0(conditional(x_t, timestep), x_t, t)
            free = self.parameterization.x0(unconditional(x_t, timestep), x_t, t)
            return (1 + w) * given - w * free

    def loss(self, raw: Tensor, target: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Loss of each sample (B,): squared error of clean data, times ``max(signal / noise, 1)``."""
        x0 = self.parameterization.x0(raw, x_t, t)
        return self.weight(t) * (x0 - target).square().flatten(1).mean(1)

    def weight(self, t: Tensor) -> Tensor:
        """Truncated signal-to-noise ratio (B,)."""
        path = self.parameterization.path
        return (path.alpha(t) / path.sigma(t)).square().clamp(1, self.largest_weight)


def halved_target(
    teacher: Denoise, parameterization: Parameterization, x_t: Tensor, t: Tensor, t_end: Tensor
) -> Tensor:
    """Stage 2, progressive distillation (arXiv 2202.00512): clean data that reach in one step what two steps reach.

    Args:
        teacher: with conditions filled in.
        parameterization: of teacher and student.
        x_t: states (B, C, ...).
        t: their times (B,).
        t_end: times (B,) behind two steps of the teacher; 0 is allowed.

    Returns:
        x0 such that one deterministic step from ``x_t`` at ``t`` lands where the teacher's two do.
    """
    middle = (t + t_end) / 2
    path = parameterization.path
    with torch.no_grad():
        raw = teacher(x_t, parameterization.model_timestep(t))
        half = ddim_step(parameterization, raw, x_t, t, middle)
        raw = teacher(half, parameterization.model_timestep(middle))
        end = ddim_step(parameterization, raw, half, middle, t_end)
    alpha, sigma, alpha_end, sigma_end = (
        expand_like(value.to(x_t.dtype), x_t)
        for value in (path.alpha(t), path.sigma(t), path.alpha(t_end), path.sigma(t_end))
    )
    ratio = sigma_end / sigma
    return (end - ratio * x_t) / (alpha_end - ratio * alpha)


def halve(
    student: nn.Module,
    train: Callable[[nn.Module, nn.Module, int], None],
    steps: int,
    least: int = 1,
) -> dict[int, nn.Module]:
    """Halve the steps until ``least``: each student begins as its teacher, and becomes the next one's.

    Args:
        student: of stage 1, which samples in ``steps``.
        train: ``train(student, teacher, steps)`` for one stage; ``steps`` are the student's.
        steps: of the first teacher; must halve down to ``least``.
        least: of the last student.

    Returns:
        The student of each number of steps.

    Raises:
        PolyditError: the numbers do not halve.
    """
    if least < 1 or steps % least or (steps // least) & (steps // least - 1):
        raise PolyditError(
            f"steps {steps}: cannot be halved down to {least}; give {least} times a power of 2"
        )
    students: dict[int, nn.Module] = {}
    teacher = student
    while steps > least:
        steps //= 2
        following = copy.deepcopy(teacher)
        train(following, teacher, steps)
        students[steps] = teacher = following
    return students
