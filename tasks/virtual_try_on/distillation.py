"""MC-VTON's second stage: a student of few steps, whose teacher is the same transformer with the LoRAs of the first.

One frozen backbone carries both sets of LoRAs, so a teacher costs no second copy of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ...core.acceleration import AdversarialDistillation, FeatureDiscriminator, TrajectoryDistillation
from ...core.adapters import LoraOptions, continue_from, load_group_lora
from ...core.adapters.group import plain_layers
from ...core.backbones.pretrained import PretrainedTransformer
from ...core.conditioning import KeyValueCache
from ...core.diffusion import Objective
from ...core.diffusion.objective import ObjectiveOutput
from ...core.errors import PolyditError
from ...core.probing import tap
from ...core.training.weights import read_weights
from .formulation import GROUPS
from .model import TokenGroupTryOn, shipped_or_own
from .pipeline import ADAPTERS

__all__ = ["DistilledTryOn"]

Kind = Literal["trajectory", "adversarial"]
TEACHER = "teacher_"


class DistilledTryOn(TokenGroupTryOn):
    """Distil a try-on pipeline of :class:`TokenGroupTryOn` to few steps.

    Args:
        backbone: That of the teacher.
        teacher: Folder of the teacher's pipeline: its weights are under both, its LoRAs are the teacher's, and the
            student's start from them.
        kind: ``trajectory``: one step of the student lands where several of the teacher's do; ``adversarial``: besides,
            heads on the teacher's features tell the student's clean latents from those of the data.
        teacher_steps: Steps of the teacher, a multiple of ``steps``.
        steps: Steps of the student, and of its pipeline.
        adversarial_weight: Of the student's part of the game.
        objective_weight: Of the plain objective at the student's times, on the data.
        sites: Blocks whose features are judged, such as ``blocks.1``; None is three, evenly spread.
        adapters: The student's LoRAs; also ``target``, which the first stage has none for.
        objective: As in :class:`DiffusionModule`; time shift and meaning of answers are the teacher's.
        **kwargs: Of :class:`TokenGroupTryOn`.

    Raises:
        PolyditError: settings contradict each other or the teacher.
    """

    def __init__(
        self,
        backbone: nn.Module,
        teacher: str | None = None,
        kind: Kind = "trajectory",
        teacher_steps: int = 32,
        steps: int = 8,
        adversarial_weight: float = 0.02,
        objective_weight: float = 0.0,
        sites: list[str] | None = None,
        adapters: dict[str, LoraOptions] = {},  # noqa: B006 - read only; the parser shows it
        objective: Objective | None = None,
        **kwargs: Any,
    ) -> None:
        if kind not in get_args(Kind):
            raise PolyditError(f"--model.kind: {kind!r} is unknown; choose from {', '.join(get_args(Kind))}")
        super().__init__(backbone, objective, adapters=adapters, steps=steps, **kwargs)
        if not adapters:
            raise PolyditError("--model.adapters: the student has none, and all else is frozen; give it some")
        self.teacher = teacher
        self.kind = kind
        self.adversarial_weight, self.objective_weight = adversarial_weight, objective_weight
        self.distillation = TrajectoryDistillation(teacher_steps, steps, space=_space(self.objective))
        self.sites = sites or _spread(self._network[0])
        self.discriminator: FeatureDiscriminator | None = None
        if kind == "adversarial":
            self.discriminator = FeatureDiscriminator(_width(self._network[0]), len(self.sites))
        self.game = AdversarialDistillation()
        self._teaching: dict[str, str] = {}

    # -- teacher and student -------------------------------------------------------------------------------

    def switch_adapters(self, on: bool) -> str | None:
        """The student's LoRAs; without them nothing would be trained."""
        return super().switch_adapters(on) if on else None

    def setup(self, stage: str) -> None:
        """Attach the teacher's LoRAs, frozen, and start the student's from them.

        Raises:
            PolyditError: there is no teacher there.
        """
        if self.teacher is None:
            raise PolyditError("--model.teacher: name the folder of the pipeline to distil")
        folder = _find(self.teacher)
        super().setup(stage)
        if self._teaching:
            return
        if not getattr(getattr(self.backbone, "config", None), "_name_or_path", None):
            with plain_layers(self.transformer):
                self.transformer.load_state_dict(read_weights(str(folder), self.transformer))
        for group in GROUPS:
            file = folder / ADAPTERS / f"{group}.safetensors"
            if not file.is_file():
                continue
            load_group_lora(self.transformer, file, TEACHER + group)
            self._teaching[group] = TEACHER + group
            options = self.group_adapters.get(group)
            if stage == "fit" and options is not None and not options.init_from:
                continue_from(self.transformer, file, group)

    def refuse_random_base(self) -> None:
        """Nothing to refuse: the weights are the teacher's."""

    def saved_names(self) -> set[str]:
        """The student's; the teacher's LoRAs are in its folder."""
        return {name for name in super().saved_names() if f".{TEACHER}" not in name}

    def denoise(self, x_t: Tensor, timestep: Tensor, condition: Mapping[str, Any]) -> Tensor:
        """The student's raw answer, with the guidance of sampling: that is where teacher and student shall agree."""
        return self.ask(x_t, timestep, condition, self.acting)

    def teach(self, condition: Mapping[str, Any], cache: KeyValueCache | None = None) -> Any:
        """The teacher with its conditions filled in."""

        def denoise(x_t: Tensor, timestep: Tensor, /) -> Tensor:
            return self.ask(x_t, timestep, condition, self._teaching, cache=cache)

        return denoise

    # -- losses --------------------------------------------------------------------------------------------

    def losses(self, batch: Any, first: int | None = None) -> tuple[dict[str, Tensor], ObjectiveOutput]:
        """``trajectory``, and what else is asked for, by name."""
        x0, condition = self.target(batch), self.condition(batch)
        self.batch_samples = x0.shape[0]
        noise, uniform = self.draw(x0, first)
        if noise is None or uniform is None:
            noise, uniform = torch.randn_like(x0), torch.rand(len(x0), device=x0.device)
        self.distillation = replace(self.distillation, shift=self.sampling_shift(x0))
        segments = self.distillation.segments_of(uniform)
        parameterization = self.objective
        with self.frozen_teacher():
            cache = KeyValueCache() if self.formulation.can_cache(self._network[0]) else None
            segment = self.distillation.follow(
                self.teach(condition, cache), parameterization, x0, noise, segments
            )
        raw = self.denoise(segment.start, parameterization.model_timestep(segment.t), condition)
        raw = raw.to(torch.promote_types(raw.dtype, torch.float32))
        per_sample = self.distillation.error(raw, segment, parameterization)
        answer = parameterization.x0(raw, segment.start, segment.t)
        terms = {"trajectory": per_sample.mean()}
        if self.objective_weight:
            target = parameterization.target(x0, noise, segment.t)
            terms["objective"] = self.objective_weight * (raw - target).abs().mean()
        if self.discriminator is not None:
            game = self.game.terms(
                self.discriminator,
                lambda x_t, t: self.features(x_t, t, condition),
                parameterization,
                answer,
                x0,
                self._network[0].grid_of(x0),
            )
            terms["adversarial"] = self.adversarial_weight * game["adversarial"]
            terms["discriminator"] = game["discriminator"]
        output = ObjectiveOutput(
            terms["trajectory"], per_sample, answer, segment.start, segment.t, noise, raw
        )
        return terms, output

    @contextmanager
    def frozen_teacher(self) -> Iterator[None]:
        """No gradients, and no dropout: the backbone is in eval mode while the context lasts."""
        was_training = self.backbone.training
        self.backbone.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.backbone.train(was_training)

    def features(self, x_t: Tensor, t: Tensor, condition: Mapping[str, Any]) -> Sequence[Tensor]:
        """The teacher's tokens of the noisy picture at the sites, (B, N, D) each."""
        with tap(self.transformer, self.sites) as record:
            self.ask(x_t, self.objective.model_timestep(t), condition, self._teaching)
            tokens = math.prod(self._network[0].grid_of(x_t))
            # The noisy picture is the first group of a sequence, and the last to be run where each has its own.
            return [record[site][:, :tokens] for site in self.sites]


def _find(folder: str) -> Path:
    path = shipped_or_own(folder)
    if not (path / "model_index.json").is_file():
        raise PolyditError(f"--model.teacher {folder}: no pipeline there; give the folder of a trained one")
    return path


def _space(objective: Objective) -> Any:
    return "x0" if objective.prediction == "x0" else "velocity"


def _spread(network: Any) -> list[str]:
    """Three blocks of the transformer's own first list, evenly spread."""
    model = network.transformer if isinstance(network, PretrainedTransformer) else network
    stem = "transformer_blocks" if hasattr(model, "transformer_blocks") else "blocks"
    count = len(getattr(model, stem))
    return [f"{stem}.{index}" for index in sorted({count // 4, count // 2, max(0, count - 2)})]


def _width(network: Any) -> int:
    config = network.config
    if "hidden_size" in config:
        return int(config["hidden_size"])
    return int(config["num_attention_heads"]) * int(config["attention_head_dim"])
