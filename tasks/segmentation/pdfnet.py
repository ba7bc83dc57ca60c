"""The LightningModule of PDFNet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from ...core.backbones.pdfnet import PDFNet, normalized
from ...core.diffusion.objective import ObjectiveOutput
from ...core.errors import PolyditError
from ...core.training import DiffusionModule
from .pdfnet_losses import integrity_prior_loss, over_scales, silog_loss, ssim_loss, structure_loss

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "PDFNetSegmentation", "standardized"]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class PDFNetSegmentation(DiffusionModule):
    """A mask from a picture and its depth, in one pass; nothing is diffused.

    "Patch-Depth Fusion: Dichotomous Image Segmentation via Fine-Grained Patch Strategy and Depth Integrity-Prior"
    (arXiv 2503.06100). The loss is structure + 0.5 SSIM over six scales, half of the integrity prior over the same,
    and a tenth of the error of a refined depth.

    Args:
        backbone: the network.
        ssim_weight: of the similarity in the loss of the mask.
        integrity_weight: of the integrity prior.
        depth_weight: of the refined depth; the backbone then needs ``refine_depth: true``.
        side: of the square that the pipeline brings pictures to; a multiple of the backbone's ``multiple``.
        drop_depth: how often a sample is shown without its depth. Above 0, the network also works without one.
        **kwargs: of :class:`DiffusionModule`; ``objective`` and ``autoencoder`` have no part here.

    Raises:
        PolyditError: the backbone is another one, or has no decoder for the depth that is asked for.
    """

    def __init__(
        self,
        backbone: PDFNet,
        ssim_weight: float = 0.5,
        integrity_weight: float = 0.5,
        depth_weight: float = 0.1,
        side: int = 1024,
        drop_depth: float = 0.0,
        **kwargs: Any,
    ) -> None:
        if not isinstance(backbone, PDFNet):
            raise PolyditError(f"--model.backbone: {type(backbone).__name__} is no PDFNet; take PDFNet")
        if depth_weight and backbone.depth_decoder is None:
            raise PolyditError(
                "--model.depth_weight: the backbone has no decoder for the depth; set refine_depth: true in it, or the "
                "weight to 0"
            )
        if side < 1 or side % backbone.multiple:
            raise PolyditError(f"--model.side {side}: must be a multiple of {backbone.multiple}")
        super().__init__(backbone, **kwargs)
        self.ssim_weight, self.integrity_weight = ssim_weight, integrity_weight
        self.depth_weight, self.side, self.drop_depth = depth_weight, side, drop_depth

    def target(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The mask (B, 1, H, W)."""
        return batch["mask"]

    def losses(self, batch: Any, first: int | None = None) -> tuple[dict[str, Tensor], ObjectiveOutput]:
        """The terms of the loss by name, and the mask that was found."""
        picture, target, depth = batch["picture"], self.target(batch), batch["depth"]
        self.batch_samples = len(picture)
        if first is None and self.drop_depth:
            dropped = (torch.rand(len(depth)) < self.drop_depth).to(depth.device).view(-1, 1, 1, 1)
            depth = torch.where(dropped, torch.zeros_like(depth), depth)
        found = self.backbone(standardized(picture), depth, refine_depth=bool(self.depth_weight))
        logits, size = (found.sample, *found.sides), target.shape[-2:]
        terms = {"objective": over_scales(lambda x: self.mask_loss(x, target), logits, size)}
        true_depth = normalized(batch["depth_target"].float(), per_sample=not self.backbone.released_quirks)
        if self.integrity_weight:
            edges, whole = self.backbone.depth_edges(true_depth), self.backbone.released_quirks
            prior = over_scales(
                lambda x: integrity_prior_loss(x.sigmoid(), true_depth, target, edges, whole), logits, size
            )
            terms["integrity"] = self.integrity_weight * prior
        if self.depth_weight:
            error = over_scales(lambda x: silog_loss(x.float().sigmoid(), true_depth), found.depths, size)
            terms["depth"] = self.depth_weight * error
        return terms, self._output(terms["objective"], picture, found.sample)

    def mask_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """That of one scale."""
        loss = structure_loss(logits, target)
        if self.ssim_weight:
            loss = loss + self.ssim_weight * ssim_loss(logits.float().sigmoid(), target)
        return loss

    def _output(self, loss: Tensor, picture: Tensor, logits: Tensor) -> ObjectiveOutput:
        zero = picture.new_zeros(len(picture))
        return ObjectiveOutput(
            loss=loss,
            loss_per_sample=loss.detach().expand(len(picture)),
            x0=logits.sigmoid(),
            x_t=picture,
            t=zero,
            noise=torch.zeros_like(picture),
            prediction=logits,
        )

    def build_pipeline(self) -> DiffusionPipeline:
        """The pipeline over this network."""
        from .pdfnet_pipeline import PDFNetPipeline

        return PDFNetPipeline(self.backbone, side=self.side, may_lack_depth=bool(self.drop_depth))

    def pictures(
        self, pipeline: DiffusionPipeline, batch: Mapping[str, Tensor], generator: torch.Generator
    ) -> list[dict[str, np.ndarray]]:
        """Picture, depth, found and true mask of the first samples of the batch."""
        panels = []
        for picture, depth, mask in list(zip(batch["picture"], batch["depth"], batch["mask"], strict=True))[
            :4
        ]:
            found = pipeline(
                picture[None], depth=depth[0].float().cpu().numpy(), detail="none", output_type="np"
            )
            grey = {"depth": depth[0], "mask": torch.from_numpy(found.masks[0]), "true mask": mask[0]}
            shown = ((picture.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0)
            panels.append(
                {
                    "picture": shown.cpu().numpy(),
                    **{
                        name: np.repeat(
                            (255 * one.float()).round().byte().cpu().numpy()[..., None], 3, axis=2
                        )
                        for name, one in grey.items()
                    },
                }
            )
        return panels


def standardized(picture: Tensor) -> Tensor:
    """Pixels in [-1, 1] with ImageNet's mean and deviation taken out, as published encoders want them."""
    mean, std = (picture.new_tensor(v).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return ((picture + 1) / 2 - mean) / std
