"""The LightningModule of EraserDiT and of the small model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from ...core.autoencoders import DiffusersAutoencoder, as_autoencoder
from ...core.backbones.pretrained import PretrainedTransformer, as_backbone
from ...core.conditioning import widen_input
from ...core.diffusion import Objective
from ...core.diffusion.objective import ObjectiveOutput
from ...core.errors import PolyditError
from ...core.media import to_uint8
from ...core.training import DiffusionModule
from ...core.training.weights import is_on_meta
from .formulation import Formulation, Known, latent_mask
from .losses import focal_weight, hole_psnr_loss
from .text import NEGATIVE, PromptEmbeddings, _pipeline_folder, texts_for

__all__ = ["EraserDiT"]


class EraserDiT(DiffusionModule):
    """Make up what a mask hides of a clip.

    "EraserDiT: Fast Video Inpainting with Diffusion Transformer Model", arXiv 2506.12853. The network reads noisy
    latents, the latents of the masked clip and the mask as channels; the new columns of a pretrained one start at zero.

    Args:
        backbone: a native ``DiT`` on three axes with the channels of the formulation, or a diffusers transformer for
            video, which is widened here where it has not been.
        objective: as in :class:`DiffusionModule`.
        autoencoder: None for pixel space, or for that of the folder that a pretrained backbone is from.
        formulation: see :class:`Formulation`.
        focal: weight of the error inside the dilated latent mask and outside of it; None is 1 everywhere. The paper
            trains 150,000 steps without and then with 2 and 1.
        focal_grow: latents by which that mask is dilated.
        psnr_weight: weight of minus the PSNR in 10 dB where the network changes the clip, in pixel space.
        prompt: what a pretrained backbone reads with every clip.
        negative_prompt: what guidance leads away from.
        **kwargs: of :class:`DiffusionModule`.

    Raises:
        PolyditError: the backbone does not fit the formulation.
    """

    predict_words = ("--mask", "PATH")

    def __init__(
        self,
        backbone: nn.Module,
        objective: Objective | None = None,
        autoencoder: nn.Module | None = None,
        formulation: Formulation = Formulation(),  # noqa: B008 - frozen; the parser shows its fields
        focal: tuple[float, float] | None = None,
        focal_grow: int = 1,
        psnr_weight: float = 0.0,
        prompt: str = "",
        negative_prompt: str = NEGATIVE,
        **kwargs: Any,
    ) -> None:
        network = as_backbone(backbone)
        folder = None
        if isinstance(network, PretrainedTransformer):
            backbone = network.transformer
            folder = getattr(backbone.config, "_name_or_path", None) or None
            extra = formulation.extra_channels(network.latent_channels)
            if network.in_channels == network.latent_channels:
                widen_input(network, extra)
            _check_channels(network.in_channels, network.latent_channels + extra)
            root = _pipeline_folder(folder)
            if (
                autoencoder is None
                and root is not None
                and (root / "vae").is_dir()
                and not is_on_meta(backbone)
            ):
                autoencoder = DiffusersAutoencoder.from_pretrained(root, "vae")
        super().__init__(backbone, objective=objective, autoencoder=autoencoder, **kwargs)
        self.formulation = formulation
        self.focal, self.focal_grow, self.psnr_weight = focal, focal_grow, psnr_weight
        self._network = (network,)  # not a child: its weights are the backbone's
        self.text: PromptEmbeddings | None = None
        if isinstance(network, PretrainedTransformer):
            texts = {"prompt": prompt, "negative": negative_prompt if formulation.guidance != 1 else ""}
            self.text = texts_for(network, folder, texts, is_on_meta(backbone))
        else:
            if formulation.residual_scale is not None and autoencoder is not None:
                raise PolyditError(
                    "--model.formulation.residual_scale: is for pixel space; leave the autoencoder out"
                )
            channels = self.space.channels
            _check_channels(backbone.config.in_channels, channels + formulation.extra_channels(channels))
        self._last: tuple[Any, Known] | None = None

    @property
    def space(self) -> Any:
        """Pixels or the autoencoder."""
        return as_autoencoder(self.autoencoder)

    def known(self, batch: Mapping[str, Tensor]) -> Known:
        """What is given for a batch; of the last batch it is kept, as several methods ask for it."""
        if self._last is None or self._last[0] is not batch:
            if self.formulation.fill == "propagated" and "fill" in batch:  # done by the data module's workers
                known = Known(batch["fill"], (batch["mask"] > 0).float(), batch["unseen"])
            else:
                known = self.formulation.known_of(batch["video"], batch["mask"])
            self._last = (batch, known)
        return self._last[1]

    def target(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The clip without what is to be removed."""
        return self.formulation.target(self.known(batch), batch["clean"], self.space)

    def condition(self, batch: Mapping[str, Tensor]) -> dict[str, Any]:
        """The channels behind the noisy ones."""
        return {"given": self.formulation.conditions(self.known(batch), self.space)}

    def element_weight(self, batch: Mapping[str, Tensor]) -> Tensor | None:
        """The focal area."""
        if self.focal is None:
            return None
        hole, space = self.known(batch).hole, self.space
        frames, height, width = hole.shape[2:]
        size = (
            1 + (frames - 1) // space.temporal_factor if space.temporal_factor > 1 else frames,
            height // space.spatial_factor,
            width // space.spatial_factor,
        )
        mask = latent_mask(hole, size, space.temporal_factor)
        return focal_weight(mask, *self.focal, self.focal_grow)

    def denoise(self, x_t: Tensor, timestep: Tensor, condition: Mapping[str, Any]) -> Tensor:
        """See :meth:`Formulation.predict`."""
        return self.formulation.predict(
            self._network[0],
            torch.cat([x_t, condition["given"].to(x_t.dtype)], 1),
            timestep,
            x_t.shape[1],
            self.objective,
            None if self.text is None else self.text(["prompt"] * len(x_t)),
        )

    def extra_losses(self, batch: Mapping[str, Tensor], output: ObjectiveOutput) -> dict[str, Tensor]:
        """The PSNR inside the holes, where it is asked for."""
        if not self.psnr_weight:
            return {}
        known = self.known(batch)
        made = self.formulation.finish(output.x0, known, self.space)
        clean = (batch["clean"].float() + 1) / 2
        return {"hole_psnr": self.psnr_weight * hole_psnr_loss(made, clean, self.formulation.changed(known))}

    def build_pipeline(self) -> DiffusionPipeline:
        """The pipeline over this backbone."""
        from .pipeline import VideoInpaintingPipeline

        return VideoInpaintingPipeline(
            transformer=self.backbone,
            vae=self.space.component,
            text=self.text,
            formulation=self.formulation.config(),
            parameterization=self.objective.config(),
        )

    def pictures(
        self, pipeline: DiffusionPipeline, batch: Mapping[str, Tensor], generator: torch.Generator
    ) -> list[dict[str, np.ndarray]]:
        """Of the middle frame of the first clips: what is given, the hole, what was made, and what is true."""
        known, panels = self.known(batch), []
        for number in range(min(4, len(batch["clean"]))):
            part = Known(*(getattr(known, name)[number : number + 1] for name in ("fill", "hole", "unseen")))
            made = pipeline.make(part, generator=generator)
            middle = made.shape[2] // 2
            shown = {
                "clip": (batch["video"][number, :, middle] + 1) / 2,
                "hole": part.hole[0, :, middle].expand(3, -1, -1),
                "fill": part.fill[0, :, middle],
                "made": made[0, :, middle],
                "true": (batch["clean"][number, :, middle] + 1) / 2,
            }
            panels.append({name: to_uint8(picture.float() * 2 - 1) for name, picture in shown.items()})
        return panels


def _check_channels(found: int, wanted: int) -> None:
    if found != wanted:
        raise PolyditError(
            f"--model.backbone: takes {found} channels; with this formulation it takes {wanted}: noisy, known, mask"
        )
