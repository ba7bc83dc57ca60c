"""Distilling DiT-3D: one network for the guided pair, then half as many steps, and again (arXiv 2210.03142)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from ...core.acceleration.guided_distillation import (
    GuidedDistillation,
    guidance_features,
    halved_target,
    with_guidance,
)
from ...core.backbones.dit_3d import DiT3D
from ...core.diffusion import Objective
from ...core.diffusion.objective import ObjectiveOutput
from ...core.errors import PolyditError
from ...core.training.weights import PACKAGE, difference, is_on_meta
from .cloud_formulation import CloudFormulation
from .cloud_model import PointClouds
from .cloud_pipeline import PointCloudPipeline

__all__ = ["DistilledPointClouds"]

Kind = Literal["guided", "halved"]


class DistilledPointClouds(PointClouds):
    """Distil a point cloud pipeline, "On Distillation of Guided Diffusion Models" (arXiv 2210.03142).

    First ``guided``: the student answers in one call, for every guidance scale of a range, what the teacher's guided
    pair answers in two. Then ``halved``, again and again: the student's one step lands where two of the teacher's do,
    and is the teacher of the next run. Students start from their teachers' weights.

    Args:
        backbone: the teacher's, with a ``pooled_projection_dim``: so wide are the features of guidance that it reads.
        teacher: folder of the pipeline to distil: for ``guided`` one of :class:`PointClouds`, for ``halved`` that of
            the run before.
        kind: which of the two.
        steps: of the student's pipeline; under ``halved`` half of the teacher's, and its only number of steps.
        formulation: the teacher's, and ``guidance_range``: the guidance scales that are drawn, evenly.
        objective: the teacher's; only its times are this stage's own. ``halved`` rounds them up to the student's steps.
        sampler: of the pipeline: ``euler`` or ``ddim``, whose steps are what is distilled.
        **kwargs: of :class:`PointClouds`.

    Raises:
        PolyditError: settings contradict each other.
    """

    def __init__(
        self,
        backbone: nn.Module,
        teacher: str | None = None,
        kind: Kind = "guided",
        steps: int = 32,
        formulation: CloudFormulation = CloudFormulation(guidance_range=[1.0, 5.0]),  # noqa: B008 - read only
        objective: Objective | None = None,
        sampler: str | None = None,
        **kwargs: Any,
    ) -> None:
        if kind not in get_args(Kind):
            raise PolyditError(f"--model.kind: {kind!r} is unknown; choose from {', '.join(get_args(Kind))}")
        if steps < 1:
            raise PolyditError(f"--model.steps {steps}: give 1 or more")
        if formulation.guidance_range is None:
            raise PolyditError(
                "--model.formulation.guidance_range: is missing; name the least and the greatest guidance scale "
                "that the student shall know, such as [1.0, 5.0]"
            )
        least, greatest = formulation.guidance_range
        only = steps if kind == "halved" else None
        formulation = replace(formulation, steps=steps, only_steps=only)
        super().__init__(backbone, objective, formulation, sampler=sampler, **kwargs)
        self.teacher, self.kind = teacher, kind
        if sampler is None and self.sampler == "ddpm":
            self.sampler = "ddim"
        if self.sampler not in ("euler", "ddim"):
            raise PolyditError(
                f"--model.sampler {self.sampler}: what is distilled are deterministic steps; choose euler or ddim"
            )
        config: Any = backbone.config
        if config.pooled_projection_dim is None:
            raise PolyditError(
                "--model.backbone.pooled_projection_dim: is missing; a student reads guidance there, set it to 256"
            )
        self.features = int(config.pooled_projection_dim)
        if self.adapter_options is not None or self.difffit is not None:
            option = "tune difffit" if self.adapter_options is None else "adapter"
            raise PolyditError(f"--model.{option}: a student is trained as a whole; leave it out")
        if kind == "halved":
            self._refuse_blind_steps(steps)
        self.distillation = GuidedDistillation(self.objective, least - 1, greatest - 1)
        # Not a child: frozen, and not saved with what is trained.
        self._taught: tuple[PointCloudPipeline, ...] = ()

    def _refuse_blind_steps(self, steps: int) -> None:
        """A few steps begin at pure noise, where some answers say nothing of the data."""
        if self.objective.prediction in ("epsilon", "score"):
            raise PolyditError(
                f"--model.objective.prediction {self.objective.prediction}: from noise alone it tells nothing of the "
                "data, where a few steps must; halve the steps of weights that predict velocity, v or x0"
            )
        time = self.objective.time
        if time.discrete and int(time.scale) % (2 * steps):
            raise PolyditError(
                f"--model.steps {steps}: the teacher's {2 * steps} steps are not at whole ones of its "
                f"{time.scale:g}; choose a number whose double divides them"
            )

    # -- teacher and student -------------------------------------------------------------------------------

    @property
    def taught(self) -> PointCloudPipeline:
        """The teacher's pipeline, frozen, read when it is first needed.

        Raises:
            PolyditError: there is none, or it does not fit the student.
        """
        if not self._taught:
            pipe = _open(self.teacher)
            self._compare(pipe)
            pipe.transformer.requires_grad_(False).eval()
            self._taught = (pipe,)
        self._taught[0].transformer.to(self.device)
        return self._taught[0]

    def _compare(self, pipe: PointCloudPipeline) -> None:
        name, theirs, mine = f"--model.teacher {self.teacher}", pipe.formulation, self.formulation
        for field in ("categories", "mean", "std"):
            if getattr(theirs, field) != getattr(mine, field):
                raise PolyditError(
                    f"--model.formulation.{field} {getattr(mine, field)}: the teacher's is "
                    f"{getattr(theirs, field)}; make it equal"
                )
        if pipe.parameterization.config() != self.objective.config():
            raise PolyditError(
                f"--model.objective: is {self.objective!r}, the teacher's {pipe.parameterization!r}; make path, "
                "prediction and time equal"
            )
        if self.kind == "guided":
            if theirs.guidance_range is not None:
                raise PolyditError(f"{name}: reads guidance already; go on with --model.kind halved")
            if not pipe.transformer.config.class_dropout_prob:
                raise PolyditError(
                    f"{name}: was trained without an empty category, so there is no guided pair to distil; train one "
                    "with class_dropout_prob 0.1"
                )
            return
        if theirs.guidance_range != mine.guidance_range:
            if theirs.guidance_range is None:
                raise PolyditError(f"{name}: does not read guidance; distil it by --model.kind guided first")
            raise PolyditError(
                f"--model.formulation.guidance_range {mine.guidance_range}: the teacher's is "
                f"{theirs.guidance_range}; make it equal"
            )
        if theirs.steps != 2 * mine.steps:
            raise PolyditError(
                f"--model.steps {mine.steps}: the teacher samples in {theirs.steps} steps, and a student takes half as "
                f"many; give {theirs.steps // 2}"
                + ("" if theirs.steps % 2 == 0 else ", of a teacher of an even number")
            )

    def setup(self, stage: str) -> None:
        """Start the student from the teacher's weights, unless ``init_weights`` names others.

        Raises:
            PolyditError: the teacher is missing or does not fit.
        """
        if stage == "fit" and self.init_weights is None and not is_on_meta(self.backbone):
            network = self.taught.transformer
            if self.kind == "guided":
                network = with_guidance(network, self.features)
            state = network.state_dict()
            own = self.backbone.state_dict()
            if problem := difference(own, state, own.keys()):
                raise PolyditError(
                    f"--model.teacher {self.teacher}: {problem} of the student; give backbone the teacher's settings"
                )
            self.backbone.load_state_dict(state)
        self.train(self.training)  # Lightning keeps the modes that modules were built with
        super().setup(stage)

    def train(self, mode: bool = True) -> DistilledPointClouds:
        """No label is dropped: the student learns what its category asks for, guided away from the empty one."""
        super().train(mode)
        label_embed: nn.Module | None = self.backbone.label_embed  # type: ignore[assignment]
        if label_embed is not None:
            label_embed.eval()
        return self

    # -- losses --------------------------------------------------------------------------------------------

    def losses(
        self, batch: Mapping[str, Tensor], first: int | None = None
    ) -> tuple[dict[str, Tensor], ObjectiveOutput]:
        """``guided`` or ``halved``: the error of the clean cloud, weighted by the signal-to-noise ratio from 1 up."""
        x0, labels = self.target(batch), self.condition(batch)["class_labels"]
        self.batch_samples = len(x0)
        noise, t = self.draw(x0, first)
        if noise is None or t is None:
            noise, t = torch.randn_like(x0), self.objective.draw_times(len(x0), device=x0.device)
        guidance = self.draw_guidance(len(x0), first).to(x0.device)
        steps = self.formulation.steps
        if self.kind == "halved":
            t = (t * steps).ceil().clamp(1, steps) / steps
        x_t = self.objective.path.add_noise(x0, noise, t).to(x0.dtype)
        teacher: DiT3D = self.taught.transformer
        if self.kind == "guided":
            empty = torch.full_like(labels, teacher.config.num_classes)
            target = self.distillation.target(
                _asked(teacher, labels), _asked(teacher, empty), x_t, t, guidance
            )
        else:
            target = halved_target(
                _asked(teacher, labels, guidance), self.objective, x_t, t, (t - 1 / steps).clamp(min=0)
            )
        raw = _asked(self.backbone, labels, guidance)(x_t, self.objective.model_timestep(t))
        per_sample = self.distillation.loss(raw, target, x_t, t)
        output = ObjectiveOutput(
            per_sample.mean(), per_sample, self.objective.x0(raw, x_t, t), x_t, t, noise, raw
        )
        return {self.kind: output.loss}, output

    def draw_guidance(self, batch: int, first: int | None = None) -> Tensor:
        """Guidance w (batch,), which is the scale less 1; held-out samples have theirs by their number."""
        if first is None:
            return self.distillation.draw(batch)
        world, rank = (1, 0) if self._trainer is None else (self.trainer.world_size, self.trainer.global_rank)
        numbers = torch.arange(first, first + batch, dtype=torch.float64) * world + rank
        share = (0.5 + numbers * 0.6180339887498949) % 1  # even, however many there are
        low, high = self.distillation.low, self.distillation.high
        return (low + (high - low) * share).float()


def _asked(network: Any, labels: Tensor, guidance: Tensor | None = None) -> Callable[..., Tensor]:
    """The network with its category, and with guidance (B,) if it reads that; answers (B, 3, N) in float32 or wider."""
    given = {}
    if guidance is not None:
        given["pooled_projections"] = guidance_features(guidance, network.config.pooled_projection_dim)

    def denoise(x_t: Tensor, timestep: Tensor, /) -> Tensor:
        raw: Tensor = network(x_t, timestep, labels, **given).sample
        return raw.to(torch.promote_types(raw.dtype, torch.float32))

    return denoise


def _open(folder: str | None) -> PointCloudPipeline:
    if folder is None:
        raise PolyditError("--model.teacher: name the folder of the pipeline to distil")
    path = Path(folder).expanduser()
    if not path.exists() and (PACKAGE / folder).exists():
        path = PACKAGE / folder
    if not (path / "model_index.json").is_file():
        raise PolyditError(f"--model.teacher {folder}: no pipeline there; give the folder of a trained one")
    from ...core.load import load

    pipe = load(path)
    if not isinstance(pipe, PointCloudPipeline) or not isinstance(pipe.transformer, ModelMixin):
        raise PolyditError(
            f"--model.teacher {folder}: a {type(pipe).__name__}; point clouds are distilled from point clouds"
        )
    return pipe
