"""The LightningModule of super-resolution."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from ...core.autoencoders import DiffusersAutoencoder, as_autoencoder
from ...core.backbones.pretrained import PretrainedTransformer, as_backbone, refuse_other_latents
from ...core.conditioning import FixedText
from ...core.diffusion import Objective, make_scheduler
from ...core.diffusion.objective import ObjectiveOutput
from ...core.errors import PolyditError
from ...core.training import DiffusionModule
from ...core.training.weights import is_on_meta
from .formulation import Formulation, upsample
from .losses import gradient_loss, psnr_loss

__all__ = ["SuperResolution"]


class SuperResolution(DiffusionModule):
    """Restore a picture from its enlarged low-resolution version.

    Args:
        backbone: a ``StreamDiT``, or a ``DiT`` whose input has the channels of the latents and of the condition; or
            ``DiT4SR``, on Stable Diffusion 3.
        objective: as in :class:`DiffusionModule`.
        autoencoder: None for pixel space, or for that of the folder that a pretrained backbone is from.
        conditioning: ``"stream"`` or ``"channels"``, see :class:`Formulation`.
        low_condition: see :class:`Formulation`.
        residual_scale: see :class:`Formulation`.
        scales: factors to train; the data module draws them. With several, the backbone needs as many classes.
        signal_gain: see :class:`Formulation`.
        gradient_weight: weight of the loss on edges of the predicted picture.
        psnr_weight: weight of minus the PSNR of the predicted picture, in dB.
        prompt: what a pretrained backbone reads with every picture.
        negative_prompt: what guidance pushes away from.
        drop_prompt: how often the text is empty in training.
        **kwargs: of :class:`DiffusionModule`.

    Raises:
        PolyditError: settings contradict each other or the backbone.
    """

    def __init__(
        self,
        backbone: nn.Module,
        objective: Objective | None = None,
        autoencoder: nn.Module | None = None,
        conditioning: str = "stream",
        low_condition: bool = False,
        residual_scale: float | None = None,
        scales: list[int] = [4],  # noqa: B006 - read only; the parser shows it
        signal_gain: bool = False,
        gradient_weight: float = 0.0,
        psnr_weight: float = 0.0,
        prompt: str = "",
        negative_prompt: str = "",
        drop_prompt: float = 0.2,
        **kwargs: Any,
    ) -> None:
        network = as_backbone(backbone)
        reads = network.text_inputs if isinstance(network, PretrainedTransformer) else None
        folder = getattr(getattr(backbone, "config", None), "_name_or_path", None) if reads else None
        if autoencoder is None and folder and (Path(folder) / "vae").is_dir():
            autoencoder = DiffusersAutoencoder.from_pretrained(folder)
        super().__init__(backbone, objective=objective, autoencoder=autoencoder, **kwargs)
        self.formulation = Formulation(
            conditioning, low_condition, residual_scale, tuple(scales), signal_gain
        )
        classes = getattr(getattr(backbone, "config", None), "num_classes", None)
        if classes != (len(scales) if len(scales) > 1 else None):
            raise PolyditError(
                f"--model.scales {scales}: the backbone's num_classes is {classes}; it is the number of factors, or "
                "null for a single one (to train one of several factors, leave this and set --data.scales)"
            )
        self.gradient_weight, self.psnr_weight = gradient_weight, psnr_weight
        self.drop_prompt = drop_prompt
        self.text: FixedText | None = None
        if reads is not None and folder:
            self.text = FixedText.from_pipeline(folder, prompt, negative_prompt)
        elif reads is not None:
            if not is_on_meta(backbone):
                raise PolyditError(
                    f"--model.backbone: {type(backbone).__name__} reads text; build it from a folder with text encoders"
                )
            texts = {"empty": "", "negative": negative_prompt, "prompt": prompt}
            self.text = FixedText(texts, 154, reads.width, reads.pooled_width)
        elif prompt or negative_prompt:
            raise PolyditError(f"--model.prompt: {type(backbone).__name__} reads no text; leave it out")
        self._network = (network,)  # not a child: its weights are the backbone's

    def prepare(self) -> None:
        """Refuse another space than the backbone is made for, then what every module prepares.

        Raises:
            PolyditError: the autoencoder is missing, or one of other latents.
        """
        space = self.space
        network = self._network[0]
        if self.text is not None and not getattr(self.backbone.config, "_name_or_path", None):
            raise PolyditError(
                "--model.backbone.source: name the folder, in diffusers format, of the backbone's pipeline"
            )
        refuse_other_latents(network, space.channels)
        if self.formulation.low_condition and self.formulation.scales != (space.spatial_factor,):
            raise PolyditError(
                "--model.autoencoder: with low_condition the latents have the size of the low-resolution picture, but "
                f"the autoencoder shrinks by {space.spatial_factor} and --model.scales is "
                f"{list(self.formulation.scales)}; give one that shrinks by the one factor"
            )
        super().prepare()

    def setup(self, stage: str) -> None:
        """Refuse to start with other factors than the model is made for."""
        data = getattr(self._trainer, "datamodule", None)
        strangers = sorted(set(getattr(data, "scales", ())) - set(self.formulation.scales))
        if strangers:
            known = ", ".join(map(str, self.formulation.scales))
            raise PolyditError(
                f"--data.scales: has factor {strangers[0]}, and the model is made for {known}; "
                "leave it out, or add it to --model.scales"
            )
        super().setup(stage)

    @property
    def space(self) -> Any:
        """Pixels or the autoencoder."""
        return as_autoencoder(self.autoencoder)

    def target(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Clean latents of the high-resolution picture, or its residual over the enlarged one."""
        return self.formulation.target(batch["high"], batch["enlarged"], self.space)

    def condition(self, batch: Mapping[str, Tensor]) -> dict[str, Any]:
        """The enlarged (or the low-resolution) picture in the space of the latents, and the factor as class label."""
        enlarged = batch["enlarged"]
        labels = self.formulation.labels(batch["scale"], len(enlarged), enlarged.device)
        condition = self.formulation.condition(batch.get("low"), enlarged, self.space)
        text = None
        if self.text is not None:
            text = self.text(["prompt"] * len(enlarged))
            if self.training:
                empty = self.text(["empty"] * len(enlarged))
                dropped = (torch.rand(len(enlarged)) < self.drop_prompt).to(enlarged.device)
                text = {
                    name: torch.where(dropped.view(-1, *[1] * (v.ndim - 1)), empty[name], v)
                    for name, v in text.items()
                }
        return {"condition": condition, "labels": labels, "text": text}

    def denoise(self, x_t: Tensor, timestep: Tensor, condition: Mapping[str, Any]) -> Tensor:
        """See :meth:`Formulation.predict`."""
        return self.formulation.predict(
            self._network[0],
            x_t,
            timestep,
            condition["condition"],
            condition["labels"],
            self.objective,
            condition["text"],
        )

    def extra_losses(self, batch: Mapping[str, Tensor], output: ObjectiveOutput) -> dict[str, Tensor]:
        """Losses on the predicted picture, where they are asked for."""
        weights = {gradient_loss: self.gradient_weight, psnr_loss: self.psnr_weight}
        if not any(weights.values()):
            return {}
        restored = self.formulation.finish(output.x0, batch["enlarged"], self.space)
        return {
            loss.__name__.removesuffix("_loss"): weight * loss(restored, batch["high"])
            for loss, weight in weights.items()
            if weight
        }

    def build_pipeline(self) -> DiffusionPipeline:
        """The pipeline over this backbone."""
        from .pipeline import SuperResolutionPipeline

        return SuperResolutionPipeline(
            transformer=self.backbone,
            scheduler=make_scheduler(
                "euler", self.objective, shift=getattr(self.objective.timesteps, "shift", 1.0)
            ),
            vae=self.space.component,
            text=self.text,
            formulation=self.formulation.config(),
            parameterization=self.objective.config(),
        )

    def pictures(
        self, pipeline: DiffusionPipeline, batch: Mapping[str, Tensor], generator: torch.Generator
    ) -> list[dict[str, np.ndarray]]:
        """Enlarged, restored and true picture of the first samples of the batch."""
        panels = []
        for low, high, scale in list(zip(batch["low"], batch["high"], batch["scale"], strict=True))[:4]:
            result = pipeline(low[None], scale=int(scale), generator=generator, output_type="pt").images[0]
            named = {"bicubic": upsample(low[None], int(scale))[0], "restored": result, "original": high}
            panels.append({name: _to_uint8(picture) for name, picture in named.items()})
        return panels


def _to_uint8(picture: Tensor) -> np.ndarray:
    return ((picture.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
