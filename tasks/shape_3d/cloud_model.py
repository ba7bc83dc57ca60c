"""The LightningModule of DiT-3D."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from ...core.adapters import DiffFit
from ...core.backbones.dit_3d import DiT3D, load_blocks_from_2d
from ...core.backbones.official import read_official_file
from ...core.diffusion import DiscretePath, Objective, TimeConvention, make_scheduler
from ...core.errors import PolyditError
from ...core.training import DiffusionModule
from ...core.training.weights import is_on_meta
from .cloud_formulation import CloudFormulation

__all__ = ["PointClouds"]


class PointClouds(DiffusionModule):
    """DiT-3D: point clouds by category, "Exploring Plain Diffusion Transformers for 3D Shape Generation" (2307.01831).

    Args:
        backbone: a :class:`~polydit.core.backbones.dit_3d.DiT3D`.
        objective: None is the published one: noise prediction on the 1000 steps of DDPM.
        formulation: categories, and how clouds are normalised; it must fit the data's.
        blocks_from: file with the weights of a DiT for pictures of the same depth and width, whose blocks the backbone
            starts from.
        tune: what is trained: ``all``, or ``difffit``: biases and scales on frozen weights.
        sampler: of the pipeline: ``ddpm`` as published, or another one of ``make_scheduler``.
        **kwargs: of :class:`DiffusionModule`.

    Raises:
        PolyditError: settings contradict each other, or the file does not fit.
    """

    def __init__(
        self,
        backbone: nn.Module,
        objective: Objective | None = None,
        formulation: CloudFormulation = CloudFormulation(),  # noqa: B008 - read only; the parser shows its fields
        blocks_from: str | None = None,
        tune: Literal["all", "difffit"] = "all",
        sampler: str | None = None,
        **kwargs: Any,
    ) -> None:
        if objective is None:
            objective = Objective(DiscretePath(), "epsilon", time=TimeConvention(1000, discrete=True))
        if not isinstance(backbone, DiT3D):
            raise PolyditError(f"--model.backbone: a {type(backbone).__name__}; point clouds need a DiT3D")
        if backbone.config.num_classes != len(formulation.categories):
            raise PolyditError(
                f"--model.backbone.num_classes {backbone.config.num_classes}: there are "
                f"{len(formulation.categories)} categories; set it to that"
            )
        super().__init__(backbone, objective=objective, **kwargs)
        self.formulation, self.blocks_from = formulation, blocks_from
        self.sampler = sampler or ("ddpm" if isinstance(objective.path, DiscretePath) else "euler")
        if blocks_from is not None and not is_on_meta(backbone):
            try:
                load_blocks_from_2d(backbone, read_official_file(blocks_from))
            except ValueError as error:
                raise PolyditError(f"--model.blocks_from {blocks_from}: {error}") from error
        self.difffit: DiffFit | None = None
        if tune == "difffit":
            if self.adapter_options is not None:
                raise PolyditError(
                    "--model.tune difffit: does not go with --model.adapter; choose one of them"
                )
            self.difffit = DiffFit(backbone)

    def setup(self, stage: str) -> None:
        """Refuse data of other categories, clouds that are normalised by other numbers, and DiffFit of random weights.

        Raises:
            PolyditError: they do not fit.
        """
        # Not before: an export builds the module without them, as the checkpoint has them all.
        if self.difffit is not None and stage == "fit" and not (self.init_weights or self.blocks_from):
            raise PolyditError(
                "--model.tune difffit: needs trained weights; name them with --model.init_weights"
            )
        data = getattr(self._trainer, "datamodule", None)
        if data is not None and hasattr(data, "statistics"):
            if list(data.categories) != list(self.formulation.categories):
                raise PolyditError(
                    f"--data.categories {data.categories}: the model's are {self.formulation.categories}; "
                    "make them equal"
                )
            mean, std = data.statistics()
            off = max(abs(m - own) for m, own in zip(mean, self.formulation.mean, strict=True))
            if not 0.9 < std / self.formulation.std < 1.1 or off > 0.1 * std:
                numbers = ", ".join(f"{m:.3f}" for m in mean)
                raise PolyditError(
                    f"--model.formulation.std {self.formulation.std:g}: the training clouds have mean [{numbers}] "
                    f"and standard deviation {std:.3f}; set mean and std to these"
                )
        super().setup(stage)

    def target(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Normalised clouds (B, 3, N)."""
        return self.formulation.normalise(batch["points"])

    def condition(self, batch: Mapping[str, Tensor]) -> dict[str, Any]:
        """The category."""
        return {"class_labels": batch["label"]}

    def build_pipeline(self) -> DiffusionPipeline:
        """The pipeline over this backbone; after DiffFit over a copy with the scales merged."""
        from .cloud_pipeline import PointCloudPipeline

        backbone = self.backbone if self.difffit is None else self.difffit.merged(self.backbone)
        return PointCloudPipeline(
            transformer=backbone,
            scheduler=make_scheduler(self.sampler, self.objective),
            formulation=self.formulation.config(),
            parameterization=self.objective.config(),
        )

    def pictures(
        self, pipeline: DiffusionPipeline, batch: Mapping[str, Tensor], generator: torch.Generator
    ) -> list[dict[str, np.ndarray]]:
        """A generated cloud beside a true one of each category."""
        from ...core.geometry.turntable import View, render_points

        panels = []
        for name in self.formulation.categories[:4]:
            made = pipeline(name, steps=self.formulation.only_steps or 25, generator=generator).points[0]
            rows = (batch["label"] == self.formulation.categories.index(name)).nonzero()
            panel = {"made": made}
            if len(rows):
                panel["true"] = batch["points"][int(rows[0])].T.cpu().numpy()
            panels.append({key: render_points(cloud, View(), 128)[..., :3] for key, cloud in panel.items()})
        return panels
