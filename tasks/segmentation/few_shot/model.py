"""The LightningModule of few-shot segmentation."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from ....core.autoencoders import as_autoencoder
from ....core.conditioning import KeyValueBank
from ....core.diffusion import Objective
from ....core.diffusion.objective import ObjectiveOutput
from ....core.errors import PolyditError
from ....core.training import DiffusionModule
from ..stable_diffusion import companions
from .formulation import Formulation

__all__ = ["FewShotSegmentation"]


class FewShotSegmentation(DiffusionModule):
    """DiffewS: the query attends to the keys and values of marked pictures and becomes their mask in one step.

    "Unleashing the Potential of the Diffusion Model in Few-shot Semantic Segmentation" (NeurIPS 2024). The network is
    run on each support with its mask, then on the clean query, which sees the supports' keys and values in every
    self-attention. Its answer is ``v`` where no data is left (alpha 0), so minus the mask's latent: the query's
    picture is what stands in the place of the noise.

    Args:
        backbone: a :class:`~polydit.core.conditioning.ReferenceDiT`, or a
            :class:`~polydit.core.backbones.diffews_unet.DiffewsUNet`.
        objective: what is compared with the mask's latent; ``v`` prediction with a squared error if None.
        autoencoder: None for pixel space.
        formulation: how masks are predicted and cut; its ``size`` should be the data's.
        overlap_weight: weight of one minus the soft overlap (Dice) of mask and prediction.
        hide_supports: train without supports, for comparison: the network then sees the query alone.
        **kwargs: of :class:`DiffusionModule`.

    Raises:
        PolyditError: the objective predicts something else.
    """

    def __init__(
        self,
        backbone: nn.Module,
        objective: Objective | None = None,
        autoencoder: nn.Module | None = None,
        formulation: Formulation = Formulation(),  # noqa: B008 - read only; the parser shows its fields
        overlap_weight: float = 0.0,
        hide_supports: bool = False,
        **kwargs: Any,
    ) -> None:
        objective = Objective(prediction="v") if objective is None else objective
        if objective.prediction != "v":
            raise PolyditError(
                f"--model.objective.prediction {objective.prediction}: the mask is predicted as v; leave it out"
            )
        autoencoder, text = companions(backbone, autoencoder)
        super().__init__(backbone, objective=objective, autoencoder=autoencoder, **kwargs)
        self.formulation = formulation
        self.text = text
        self.overlap_weight, self.hide_supports = overlap_weight, hide_supports
        self._bank = (KeyValueBank(backbone),)  # not a child

    @property
    def space(self) -> Any:
        """Pixels or the autoencoder."""
        return as_autoencoder(self.autoencoder)

    def target(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Latents of the query's mask, white on black."""
        return self.formulation.encode_mask(batch["query_mask"], self.space)

    def condition(self, batch: Mapping[str, Tensor]) -> dict[str, Any]:
        """Latents of query, supports and their masks; in training as many supports as a draw says."""
        supports, masks = batch["support"], batch["support_mask"]
        if self.training and supports.shape[1] > 1:
            # Python's: `check` runs this on shapes alone, where tensors have no values.
            shots = random.randint(1, supports.shape[1])
            supports, masks = supports[:, :shots], masks[:, :shots]
        space, sample = self.space, self.training  # as published, the posterior is sampled in training
        references = None
        if not self.hide_supports:
            references = self.formulation.encode_supports(supports, masks, space, sample)
        return {
            "query": space.encode(batch["query"], sample=sample),
            "references": references,
            "shots": supports.shape[1],
        }

    def losses(self, batch: Any, first: int | None = None) -> tuple[dict[str, Tensor], ObjectiveOutput]:
        """The one step: time 1 always, and the query where the noise would be."""
        self.batch_samples = len(batch["query"])
        if batch["query"].ndim == 5:  # groups of episodes
            batch = {name: value.flatten(0, 1) for name, value in batch.items()}
        x0, condition = self.target(batch), self.condition(batch)
        counted = batch.get("counted")
        output = self.objective(
            lambda x_t, timestep: self.denoise(x_t, timestep, condition),
            x0,
            noise=condition["query"],
            t=x0.new_ones(len(x0)),
            element_weight=None if counted is None else F.interpolate(counted, x0.shape[-2:]),
        )
        return {"objective": output.loss, **self.extra_losses(batch, output)}, output

    def denoise(self, x_t: Tensor, timestep: Tensor, condition: Mapping[str, Any]) -> Tensor:
        """Supports into the bank, then the query."""
        bank = self._bank[0]
        bank.clear()
        text = None if self.text is None else self.text(["empty"])
        if condition["references"] is not None:
            self.formulation.show(self.backbone, bank, condition["references"], condition["shots"], text)
        return self.formulation.ask(self.backbone, bank, x_t, text)

    def extra_losses(self, batch: Mapping[str, Tensor], output: ObjectiveOutput) -> dict[str, Tensor]:
        """One minus Dice, where it is asked for."""
        if not self.overlap_weight:
            return {}
        soft = self.formulation.decode_mask(output.x0, self.space)
        mask, counted = batch["query_mask"], batch.get("counted")
        if counted is not None:
            soft, mask = soft * counted, mask * counted
        both = (soft * mask).flatten(1).sum(1)
        dice = (2 * both + 1) / (soft.flatten(1).sum(1) + mask.flatten(1).sum(1) + 1)
        return {"overlap": self.overlap_weight * (1 - dice).mean()}

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Held-out loss, and how well the masks overlap: ``val/iou`` is the mean over episodes."""
        with torch.no_grad():
            latents, condition = batch["query"], self.condition(batch)
            raw = self.denoise(condition["query"], latents.new_ones(len(latents)), condition)
            found = self.formulation.cut(self.formulation.decode_mask(-raw.float(), self.space))
        truth = batch["query_mask"] > 0.5
        both, either = ((part).flatten(1).sum(1) for part in (found & truth, found | truth))
        self.log("val/iou", (both / either.clamp(min=1)).mean(), batch_size=len(latents), sync_dist=True)
        super().validation_step(batch, batch_idx, dataloader_idx)

    test_step = validation_step

    def build_pipeline(self) -> DiffusionPipeline:
        """The pipeline over this backbone."""
        from .pipeline import FewShotPipeline

        return FewShotPipeline(
            transformer=self.backbone,
            vae=self.space.component,
            text=self.text,
            formulation=self.formulation.config(),
        )

    def pictures(
        self, pipeline: DiffusionPipeline, batch: Mapping[str, Tensor], generator: torch.Generator
    ) -> list[dict[str, np.ndarray]]:
        """First support with its mask, query, soft mask and answer of the first episodes."""
        panels = []
        for row in range(min(4, len(batch["query"]))):
            supports, masks = batch["support"][row], batch["support_mask"][row]
            soft = pipeline(batch["query"][row][None], supports, masks, output_type="pt").alpha[0]
            named = {
                "support": supports[0],
                "support mask": masks[0] * 2 - 1,
                "query": batch["query"][row],
                "found": soft * 2 - 1,
                "true": batch["query_mask"][row] * 2 - 1,
            }
            panels.append({name: _to_uint8(picture) for name, picture in named.items()})
        return panels


def _to_uint8(picture: Tensor) -> np.ndarray:
    levels = ((picture.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
    return levels.repeat(3, axis=2) if levels.shape[2] == 1 else levels
