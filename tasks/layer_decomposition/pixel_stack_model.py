"""Training of general stacks in pixel space: any number of RGBA layers of a picture at once, without an autoencoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from ...core.alpha import composite
from ...core.diffusion import Objective, make_scheduler
from ...core.diffusion.objective import ObjectiveOutput
from ...core.errors import PolyditError
from ...core.media import on_checkerboard
from ...core.training import DiffusionModule
from .composed_stacks import visibility
from .illustration import LayerCode, predict, shown
from .illustration_losses import iou_loss

__all__ = ["PixelStackTraining", "recompose_stack"]


def recompose_stack(code: Tensor) -> Tensor:
    """The picture (B, 3, H, W) in [0, 1] that plain layers make on white, from their code (B, 4, N, H, W)."""
    code = code.float().clamp(-1, 1)
    picture = torch.ones_like(code[:, :3, 0])
    for layer in code.unbind(2):
        alpha = (layer[:, 3:] + 1) / 2
        seen = ((layer[:, :3] + alpha) / 2).clamp(min=0)  # colours in [0, 1] times alpha
        picture = picture * (1 - alpha) + seen
    return picture


class PixelStackTraining(DiffusionModule):
    """Denoise the layers of a picture, with the positions of Qwen-Image-Layered (2512.15603), in pixels.

    Batches have ``layers`` (B, 4, N, H, W), straight alpha in [0, 1], bottom to top; N is free. The network sees a
    layer as its :class:`LayerCode`: colours times alpha, so that colours which nobody sees, where alpha is 0, are one
    and the same. What a layer above hides is a part of the layer below, with a weight of its own.

    Args:
        backbone: a ``LayerStackDiT`` without roles whose layers have four channels; the picture is a group, or the
            three channels behind them, or both. With a composite, that is predicted as well.
        objective: as in :class:`DiffusionModule`.
        hidden_weight: of the error where layers above hide a layer; 1 counts it like the rest.
        iou_weight: of 1 - soft IoU of the alphas.
        recomposition_weight: of the L1 between the picture and the one that the predicted layers make.
        **kwargs: of :class:`DiffusionModule`.

    Raises:
        PolyditError: the backbone predicts something else.
    """

    def __init__(
        self,
        backbone: nn.Module,
        objective: Objective | None = None,
        hidden_weight: float = 0.5,
        iou_weight: float = 0.5,
        recomposition_weight: float = 0.5,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, objective=objective, **kwargs)
        if self.autoencoder is not None:
            raise PolyditError("--model.autoencoder: this model works on pixels; leave it out")
        fits = getattr(backbone, "prediction_channels", None) == 4
        if not fits or getattr(backbone, "condition_channels", None) not in (0, 3) or backbone.config.roles:
            raise PolyditError(
                "--model.backbone: give a LayerStackDiT without roles, with out_channels 4 and in_channels 4 or 7"
            )
        self.hidden_weight, self.iou_weight = hidden_weight, iou_weight
        self.recomposition_weight = recomposition_weight

    def target(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Codes (B, 4, N, H, W) of the layers, behind that of the composite where the backbone predicts it."""
        code = LayerCode.encode(batch["layers"])
        if not self.backbone.config.composite:
            return code
        picture = self.condition(batch)["picture"]
        whole = torch.cat([picture, torch.ones_like(picture[:, :1])], dim=1)
        return torch.cat([whole[:, :, None], code], dim=2)

    def condition(self, batch: Mapping[str, Tensor]) -> dict[str, Any]:
        """The picture that the layers make on white, (B, 3, H, W) in [-1, 1]."""
        layers = batch["layers"]
        white = torch.ones_like(layers[:, :3, 0])
        return {"picture": 2 * composite(list(layers.unbind(2)), backdrop=white) - 1}

    def element_weight(self, batch: Mapping[str, Tensor]) -> Tensor:
        """(B, 1, N, H, W): 1 where a layer is seen, ``hidden_weight`` where it is hidden."""
        seen = visibility(batch["layers"][:, 3])[:, None]
        if self.backbone.config.composite:
            seen = torch.cat([torch.ones_like(seen[:, :, :1]), seen], dim=2)
        return self.hidden_weight + (1 - self.hidden_weight) * seen

    def denoise(self, x_t: Tensor, timestep: Tensor, condition: Mapping[str, Any]) -> Tensor:
        """See :func:`.illustration.predict`."""
        picture = shown(condition["picture"], self.backbone.condition_channels)
        return predict(self.backbone, x_t, timestep, picture, self.objective)

    def extra_losses(self, batch: Mapping[str, Tensor], output: ObjectiveOutput) -> dict[str, Tensor]:
        """Of alphas and recomposition, fading out towards pure noise unless the network predicts clean layers."""
        gate = torch.ones_like(output.t)
        if self.objective.prediction != "x0":  # read off noise, the layers say little there
            gate = self.objective.path.alpha(output.t) ** 2
        code = output.x0[:, :, -batch["layers"].shape[2] :]
        losses = {}
        if self.iou_weight:
            apart = iou_loss(LayerCode.alpha(code), batch["layers"][:, 3]).mean(1)
            losses["iou"] = self.iou_weight * (gate * apart).mean()
        if self.recomposition_weight:
            picture = (self.condition(batch)["picture"] + 1) / 2
            error = (recompose_stack(code) - picture).abs().mean((1, 2, 3))
            losses["recomposition"] = self.recomposition_weight * (gate * error).mean()
        return losses

    def build_pipeline(self) -> DiffusionPipeline:
        """The pipeline over this backbone."""
        from .pixel_stack_pipeline import PixelStackPipeline

        return PixelStackPipeline(
            transformer=self.backbone,
            scheduler=make_scheduler(
                "euler", self.objective, shift=getattr(self.objective.timesteps, "shift", 1.0)
            ),
            parameterization=self.objective.config(),
            size=max(n * p for n, p in zip(self.backbone.base_grid, self.backbone.patch_size, strict=True)),
        )

    def pictures(
        self, pipeline: DiffusionPipeline, batch: Mapping[str, Tensor], generator: torch.Generator
    ) -> list[dict[str, np.ndarray]]:
        """Picture and layers of the first samples of the batch, the true ones behind them."""
        panels = []
        for picture, true in list(zip(self.condition(batch)["picture"], batch["layers"], strict=True))[:4]:
            made = pipeline(picture[None], layers=true.shape[1], generator=generator).layers[0]
            named = {"picture": as_pixels((picture + 1) / 2)}
            for title, stack in (("layer", made), ("true layer", true.transpose(0, 1))):
                named |= {f"{title} {n}": on_checkerboard(as_pixels(one)) for n, one in enumerate(stack, 1)}
            panels.append(named)
        return panels


def as_pixels(picture: Tensor) -> np.ndarray:
    """(H, W, C), 8-bit, of (C, H, W) in [0, 1]."""
    return (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().contiguous().numpy()
