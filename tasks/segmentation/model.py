"""The LightningModule of DiffDIS and of the small model."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from ...core.autoencoders import as_autoencoder
from ...core.backbones.diffdis_unet import INJECTED, DiffdisUNet
from ...core.backbones.pretrained import PretrainedTransformer, as_backbone
from ...core.conditioning.channels import duplicate_input
from ...core.diffusion import Objective
from ...core.diffusion.objective import ObjectiveOutput
from ...core.errors import PolyditError
from ...core.training import DiffusionModule
from ...core.training.weights import is_on_meta
from .backbone import DichotomyModel, PretrainedDichotomy, parts_for
from .diffdis_sd import UNetDichotomy
from .formulation import Formulation
from .losses import cross_entropy, overlap_loss
from .noise import cut_mix, pyramid_noise
from .stable_diffusion import companions
from .text import EmptyText, empty_text

__all__ = ["Segmentation"]


class Segmentation(DiffusionModule):
    """Mask and edges of a picture in one step.

    DiffDIS: "High-Precision Dichotomous Image Segmentation via Probing Diffusion Capacity" (ICLR 2025).

    Args:
        backbone: a ``DichotomousDiT``; or a pretrained transformer (``load_transformer``), whose input is doubled here
            and beside which the parts of DiffDIS are trained; or a ``DiffdisUNet`` on Stable Diffusion.
        objective: as in :class:`DiffusionModule`; the one step is at its ``timesteps``, so ``Terminal``.
        autoencoder: None for pixel space.
        formulation: see :class:`Formulation`.
        pyramid: train on pyramid noise, as published, in place of white noise.
        cut_mix: probability that a sample gets a box of its partner (published: 0.5).
        cross_entropy_weight: weight of the cross entropy of mask and edges, for answers in pixel space.
        overlap_weight: weight of one minus the soft intersection over union of the mask.
        edge_weight: of the edges' share in the cross entropy.
        **kwargs: of :class:`DiffusionModule`.

    Raises:
        PolyditError: settings contradict each other or the backbone.
    """

    def __init__(
        self,
        backbone: nn.Module,
        objective: Objective | None = None,
        autoencoder: nn.Module | None = None,
        formulation: Formulation = Formulation(),  # noqa: B008 - frozen; the parser shows its fields
        pyramid: bool = False,
        cut_mix: float = 0.0,
        cross_entropy_weight: float = 0.0,
        overlap_weight: float = 0.0,
        edge_weight: float = 0.5,
        **kwargs: Any,
    ) -> None:
        companion: EmptyText | None = None
        if isinstance(backbone, DiffdisUNet):
            autoencoder, companion = companions(backbone, autoencoder, EmptyText)
        network = as_backbone(backbone)
        if isinstance(network, PretrainedTransformer):
            backbone = network.transformer
            if network.in_channels == network.latent_channels:
                duplicate_input(network)
        super().__init__(backbone, objective=objective, autoencoder=autoencoder, **kwargs)
        self.formulation = formulation
        self.pyramid, self.cut_mix = pyramid, cut_mix
        self.cross_entropy_weight, self.overlap_weight = cross_entropy_weight, overlap_weight
        self.edge_weight = edge_weight
        if (cross_entropy_weight or overlap_weight) and formulation.halves == "batch":
            raise PolyditError(
                "--model.cross_entropy_weight: these losses are for masks as channels in pixel space; leave them out"
            )
        if formulation.halves == "channels" and autoencoder is not None:
            raise PolyditError(
                "--model.formulation.halves channels: is for pixel space; leave the autoencoder out"
            )
        self.parts: nn.Module | None = None
        self.text: EmptyText | None = None
        if isinstance(network, PretrainedTransformer):
            if formulation.halves != "batch":
                raise PolyditError(
                    "--model.formulation.halves: a pretrained transformer takes batch; leave it out"
                )
            self.parts = parts_for(network, scales=formulation.scales)
            earlier = Path(self.init_weights or "") / "parts"
            if self.init_weights and earlier.is_dir() and not is_on_meta(backbone):
                self.parts = DichotomyModel.from_pretrained(earlier)
            self.text = empty_text(network)
            self._network: tuple[nn.Module] = (PretrainedDichotomy(network, self.parts),)
        elif isinstance(network, DiffdisUNet):
            if formulation.halves != "batch" or formulation.scales != INJECTED:
                raise PolyditError(
                    f"--model.formulation: Stable Diffusion's UNet takes halves batch and scales {INJECTED}"
                )
            self.text, self._network = companion, (UNetDichotomy(network),)
        else:
            if not hasattr(backbone, "parts"):
                raise PolyditError(
                    f"--model.backbone: {type(backbone).__name__} has no parts of DiffDIS; take DichotomousDiT or a "
                    "pretrained transformer"
                )
            self._network = (network,)  # not a child: its weights are the backbone's
        self._raw: Tensor | None = None

    @property
    def space(self) -> Any:
        """Pixels or the autoencoder."""
        return as_autoencoder(self.autoencoder)

    # -- training ------------------------------------------------------------------------------------------

    def losses(self, batch: Any, first: int | None = None) -> tuple[dict[str, Tensor], ObjectiveOutput]:
        """Those of the objective, on a batch that has been mixed."""
        if first is None and self.cut_mix:
            batch = cut_mix(batch, self.cut_mix, self._rng(0))
        return super().losses(batch, first)

    def draw(self, x0: Tensor, first: int | None = None) -> tuple[Tensor | None, Tensor | None]:
        """Noise and times; coarser levels of pyramid noise follow from the white noise of the sample."""
        noise, t = super().draw(x0, first)
        if self.pyramid and first is None:
            noise = torch.randn_like(x0) if noise is None else noise
            noise = pyramid_noise(noise, rng=self._rng(1))
        return noise, t

    def _rng(self, purpose: int) -> np.random.Generator:
        """Draws that belong to the step, so that a resumed run repeats them."""
        seed = random.getrandbits(62) if self._noise_seed is None else self._noise_seed
        rank = 0 if self._trainer is None else self.trainer.global_rank
        return np.random.default_rng((seed, self.samples_seen, rank, purpose))

    def target(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Clean data of mask and edges."""
        return self.formulation.target(batch["mask"], batch["edges"], self.space)

    def condition(self, batch: Mapping[str, Tensor]) -> dict[str, Any]:
        """The picture at its scales."""
        return self.formulation.condition(batch["picture"], self.space, batch.get("context"))

    def denoise(self, x_t: Tensor, timestep: Tensor, condition: Mapping[str, Any]) -> Tensor:
        """See :meth:`Formulation.predict`."""
        rows = len(x_t)
        extra = self.text.rows(rows) if self.text is not None else None
        raw = self.formulation.predict(self._network[0], x_t, timestep, condition, self.objective, extra)
        self._raw = raw
        return self.formulation.bound(raw)

    def extra_losses(self, batch: Mapping[str, Tensor], output: ObjectiveOutput) -> dict[str, Tensor]:
        """Losses of the mask as a classification of pixels, where they are asked for."""
        found: dict[str, Tensor] = {}
        raw, self._raw = self._raw, None
        if self.cross_entropy_weight and raw is not None:
            both = cross_entropy(raw[:, :1], batch["mask"])
            edges = cross_entropy(raw[:, 1:], batch["edges"])
            found["cross_entropy"] = self.cross_entropy_weight * (both + self.edge_weight * edges)
        if self.overlap_weight:
            mask, _ = self.formulation.finish(output.x0, self.space)
            found["overlap"] = self.overlap_weight * overlap_loss(mask, batch["mask"])
        return found

    # -- inference -----------------------------------------------------------------------------------------

    def build_pipeline(self) -> DiffusionPipeline:
        """The pipeline over this backbone."""
        from .pipeline import SegmentationPipeline

        return SegmentationPipeline(
            transformer=self.backbone,
            parts=self.parts,
            vae=self.space.component,
            text=self.text,
            formulation=self.formulation.config(),
            parameterization=self.objective.config(),
        )

    def pictures(
        self, pipeline: DiffusionPipeline, batch: Mapping[str, Tensor], generator: torch.Generator
    ) -> list[dict[str, np.ndarray]]:
        """Picture, found mask, true mask and found edges of the first samples of the batch."""
        panels = []
        for picture, mask in list(zip(batch["picture"], batch["mask"], strict=True))[:4]:
            found = pipeline(picture[None], generator=generator, detail="none", output_type="np")
            grey = {"mask": found.masks[0], "true mask": mask[0].cpu().numpy(), "edges": found.edges[0]}
            shown = ((picture.float().clamp(-1, 1) + 1) * 127.5).round().byte()
            panels.append(
                {
                    "picture": shown.permute(1, 2, 0).cpu().numpy(),
                    **{
                        name: np.repeat(np.rint(value * 255).astype(np.uint8)[..., None], 3, axis=2)
                        for name, value in grey.items()
                    },
                }
            )
        return panels
