"""The inference pipeline of DiT-3D: point clouds by category."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from numpy.typing import NDArray
from torch import Tensor

from ...core.acceleration.guided_distillation import guidance_features
from ...core.diffusion import Guidance, Parameterization, Step, with_scheduler
from ...core.errors import PolyditError
from ...core.pipeline import LoadsLora
from .cloud_formulation import CloudFormulation, category_number

__all__ = ["PointCloudOutput", "PointCloudPipeline"]


@dataclass
class PointCloudOutput(BaseOutput):
    """Generated clouds.

    Attributes:
        points: (N, 3) float32 each, Y-up.
        trajectory: if asked for, the predicted clouds at each step, (steps, N, 3) for each shape.
    """

    points: list[NDArray[np.float32]]
    trajectory: list[NDArray[np.float32]] | None = None


class PointCloudPipeline(LoadsLora, DiffusionPipeline):
    """Make point clouds of a category (DiT-3D, arXiv 2307.01831).

    Args:
        transformer: a :class:`~polydit.core.backbones.dit_3d.DiT3D`.
        scheduler: any that ``with_scheduler`` takes.
        formulation: see :class:`CloudFormulation`, as a dictionary.
        parameterization: see :class:`polydit.core.diffusion.Parameterization`, as a dictionary.
    """

    model_cpu_offload_seq = "transformer"

    def __init__(
        self,
        transformer: ModelMixin,
        scheduler: SchedulerMixin,
        formulation: dict | None = None,  # plain types: diffusers checks what it loads against them
        parameterization: dict | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler)
        self.register_to_config(formulation=formulation, parameterization=parameterization)
        self.formulation = CloudFormulation(**(formulation or {}))
        self.parameterization = Parameterization.from_config(parameterization)
        if self.formulation.guidance_range and not getattr(transformer.config, "pooled_projection_dim", None):
            raise PolyditError(
                f"formulation.guidance_range {self.formulation.guidance_range}: this network reads no guidance; it is "
                "for those of DistilledPointClouds"
            )

    @property
    def categories(self) -> list[str]:
        """What the weights know."""
        return list(self.formulation.categories)

    @torch.no_grad()
    def __call__(
        self,
        category: str,
        num: int = 1,
        num_points: int | None = None,
        steps: int | None = None,
        guidance_scale: float | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        batch_size: int = 8,
        trajectory: bool = False,
        noise: Tensor | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> PointCloudOutput:
        """Make clouds.

        Args:
            category: one of :attr:`categories`.
            num: how many.
            num_points: of each; default as in training. The network takes any number.
            steps: of the sampler; default as the weights say.
            guidance_scale: 1 is none; default as the weights say. A distilled network reads it in its one call a step.
            generator: source of the noise, on the CPU.
            batch_size: clouds in memory at a time.
            trajectory: also return what was predicted at each step.
            noise: (num, 3, num_points) instead of drawn noise, for instance between that of two seeds.
            progress: called with (steps done, steps in all).

        Raises:
            PolyditError: the category is unknown, or an option is out of range.
        """
        label = category_number(self.formulation.categories, category)
        points = num_points or self.formulation.points
        if num < 1:
            raise PolyditError(f"--num {num}: give 1 or more")
        if points < 16:
            raise PolyditError(f"--points {points}: give 16 or more")
        scale = self.formulation.guidance_scale if guidance_scale is None else guidance_scale
        self.formulation.check_guidance(scale)
        reads = self.formulation.guidance_range is not None
        null = self.transformer.config.num_classes
        if scale != 1 and not reads and not self.transformer.config.class_dropout_prob:
            raise PolyditError(
                f"--guidance-scale {scale:g}: these weights were trained without an empty category; leave it out"
            )
        if noise is None:
            noise = randn_tensor((num, 3, points), generator=generator)
        only = self.formulation.only_steps
        if only and steps not in (None, only):
            raise PolyditError(f"--steps {steps}: these weights were distilled to {only}; leave it out")
        steps = steps or self.formulation.steps
        device, dtype = self.transformer.device, self.transformer.dtype
        total = -(-num // batch_size) * steps
        clouds: list[NDArray[np.float32]] = []
        paths: list[NDArray[np.float32]] = []
        for start in range(0, num, batch_size):
            x = noise[start : start + batch_size].to(device)
            kept: list[Tensor] = []

            def with_label(number: int, batch: int = len(x)) -> Callable[[Tensor, Tensor], Tensor]:
                labels = torch.full((batch,), number, device=device)
                told = {}
                if reads:
                    weight = torch.full((batch,), scale - 1, device=device)
                    features = guidance_features(weight, self.transformer.config.pooled_projection_dim)
                    told["pooled_projections"] = features.to(dtype)
                return lambda x_t, t: self.transformer(x_t.to(dtype), t, labels, **told).sample.float()

            denoise = with_label(label)
            if scale != 1 and not reads:
                denoise = Guidance(scale).separate(denoise, with_label(null), self.parameterization.time)

            def watch(step: Step, done: int = start // batch_size * steps, kept: list[Tensor] = kept) -> None:
                if not torch.isfinite(step.x_t).all():
                    raise PolyditError(
                        "the network gave numbers that are not finite; use --dtype float32, or other weights"
                    )
                if progress is not None:
                    progress(done + step.index + 1, total)
                if trajectory:
                    kept.append(self.formulation.restore(step.x0.float()).cpu())

            made = with_scheduler(
                denoise,
                x,
                self.parameterization,
                self.scheduler,
                steps,
                generator=_one(generator),
                callback=watch,
            )
            clouds += [c.T.contiguous().numpy() for c in self.formulation.restore(made.float()).cpu()]
            if trajectory:
                paths += list(torch.stack(kept, 1).transpose(2, 3).contiguous().numpy())
        return PointCloudOutput(points=clouds, trajectory=paths if trajectory else None)


def _one(generator: Any) -> torch.Generator | None:
    return generator[0] if isinstance(generator, list) else generator
