"""The LightningModule of illustration layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from ...core.diffusion import Objective, make_scheduler
from ...core.diffusion.objective import ObjectiveOutput
from ...core.errors import PolyditError
from ...core.training import DiffusionModule
from .illustration import ROLES, LayerCode, predict, recompose_code, shown
from .illustration_losses import layer_losses

__all__ = ["IllustrationLayers"]


class IllustrationLayers(DiffusionModule):
    """Take an illustration apart into flat colour, shadow, highlight and line art.

    Args:
        backbone: a ``LayerStackDiT`` with the four roles, in pixel space: four channels of a layer, and behind
            them none (the picture is a group), the picture's three, or those and two of :func:`.illustration.hints`.
        objective: as in :class:`DiffusionModule`.
        layer_weight: weight of each layer's own loss; 0 leaves them out.
        recomposition_weight: weight of the difference between the pictures that true and predicted layers make.
        iou_weight: weight of 1 - soft IoU of the alphas.
        **kwargs: of :class:`DiffusionModule`.

    Raises:
        PolyditError: the backbone has other roles.
    """

    def __init__(
        self,
        backbone: nn.Module,
        objective: Objective | None = None,
        layer_weight: float = 0.1,
        recomposition_weight: float = 0.5,
        iou_weight: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, objective=objective, **kwargs)
        layers = getattr(backbone, "prediction_channels", None)
        if layers != 4 or getattr(backbone.config, "composite", True):
            raise PolyditError(
                "--model.backbone: a LayerStackDiT with out_channels 4 and composite false predicts the four layers"
            )
        self.weights = {
            **dict.fromkeys(ROLES, layer_weight),
            "recomposition": recomposition_weight,
            "iou": iou_weight,
        }

    def target(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Codes of the layers (B, 4, L, H, W)."""
        return LayerCode.encode(batch["layers"])

    def condition(self, batch: Mapping[str, Tensor]) -> dict[str, Any]:
        """The picture that the layers make, (B, 3, H, W) in [-1, 1]."""
        return {"picture": 2 * recompose_code(LayerCode.encode(batch["layers"])) - 1}

    def denoise(self, x_t: Tensor, timestep: Tensor, condition: Mapping[str, Any]) -> Tensor:
        """See :func:`.illustration.predict`."""
        picture = shown(condition["picture"], self.backbone.condition_channels)
        return predict(self.backbone, x_t, timestep, picture, self.objective)

    def extra_losses(self, batch: Mapping[str, Tensor], output: ObjectiveOutput) -> dict[str, Tensor]:
        """The losses of the layers, fading out towards pure noise unless the network predicts clean layers."""
        if not any(self.weights.values()):
            return {}
        gate = torch.ones_like(output.t)
        if self.objective.prediction != "x0":  # read off noise, the layers say little there
            gate = self.objective.path.alpha(output.t) ** 2
        losses = layer_losses(output.x0, self.target(batch))
        return {
            name: self.weights[name] * (gate * loss).mean()
            for name, loss in losses.items()
            if self.weights[name]
        }

    def build_pipeline(self) -> DiffusionPipeline:
        """The pipeline over this backbone."""
        from .illustration_pipeline import IllustrationLayersPipeline

        return IllustrationLayersPipeline(
            transformer=self.backbone,
            scheduler=make_scheduler(
                "euler", self.objective, shift=getattr(self.objective.timesteps, "shift", 1.0)
            ),
            parameterization=self.objective.config(),
        )

    def pictures(
        self, pipeline: DiffusionPipeline, batch: Mapping[str, Tensor], generator: torch.Generator
    ) -> list[dict[str, np.ndarray]]:
        """Picture and layers of the first samples of the batch."""
        panels = []
        for picture in self.condition(batch)["picture"][:4]:
            layers = pipeline(picture[None], generator=generator).layers[0]
            shown = layers[:, :3] * layers[:, 3:] + 0.75 * (1 - layers[:, 3:])
            named = {"picture": (picture + 1) / 2, **dict(zip(ROLES, shown, strict=True))}
            panels.append(
                {k: (v.clamp(0, 1) * 255).byte().permute(1, 2, 0).cpu().numpy() for k, v in named.items()}
            )
        return panels
