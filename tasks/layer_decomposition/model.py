"""The LightningModule of LayerDecomp."""

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
from ...core.conditioning.channels import find_input_layer
from ...core.conditioning.pretrained_joint import can_join
from ...core.diffusion import Objective, make_scheduler
from ...core.diffusion.objective import ObjectiveOutput
from ...core.errors import PolyditError
from ...core.media import on_checkerboard, to_uint8
from ...core.training import DiffusionModule
from ...core.training.weights import is_on_meta
from .formulation import CONDITIONS, Formulation, Known, Layers
from .group_types import GroupTypes
from .losses import alpha_loss, consistency_loss, region_psnr_loss

__all__ = ["LayerDecomp"]


class LayerDecomp(DiffusionModule):
    """Take a picture with an object's mask apart into background and foreground with shadow and reflection.

    Samples without a true foreground (pairs with and without the object) have no part in the diffusion loss of the
    foreground; the consistency loss teaches it on them.

    Args:
        backbone: a ``LayerGroupDiT``, or a diffusers transformer.
        objective: as in :class:`DiffusionModule`.
        autoencoder: None for pixel space, or for that of the folder that a pretrained backbone is from.
        residual_scale: see :class:`Formulation`; for pixel space.
        grow: see :class:`Formulation`.
        size: see :class:`Formulation`.
        attention: see :class:`Formulation`.
        signal_gain: see :class:`Formulation`.
        guidance: see :class:`Formulation`.
        consistency_weight: weight of the difference between the picture and the composite of the predicted layers.
        consistency_gate: weight it by (1 - t)^2; off for a network that answers in one step.
        alpha_weight: weight of one minus the soft intersection over union of the alpha.
        region_weight: weight of minus the PSNR, in dB, of the background where the foreground hides it.
        background_weight: weight of the background in the objective; that of the foreground is 1. Most of what hides
            behind an object cannot be known, and its error is noise in the gradient.
        prompt: what a pretrained backbone reads with every picture.
        **kwargs: of :class:`DiffusionModule`.

    Raises:
        PolyditError: settings contradict each other or the backbone.
    """

    predict_words = ("--mask", "PATH")

    def __init__(
        self,
        backbone: nn.Module,
        objective: Objective | None = None,
        autoencoder: nn.Module | None = None,
        residual_scale: float | None = None,
        grow: int = 1,
        size: int = 512,
        attention: str = "in_turn",
        signal_gain: bool = False,
        guidance: float = 1.0,
        consistency_weight: float = 1.0,
        consistency_gate: bool = True,
        alpha_weight: float = 0.0,
        region_weight: float = 0.0,
        background_weight: float = 1.0,
        prompt: str = "",
        **kwargs: Any,
    ) -> None:
        network = as_backbone(backbone)
        pretrained = isinstance(network, PretrainedTransformer)
        folder = getattr(getattr(backbone, "config", None), "_name_or_path", None) if pretrained else None
        if autoencoder is None and folder and (Path(folder) / "vae").is_dir():
            autoencoder = DiffusersAutoencoder.from_pretrained(folder)
        super().__init__(backbone, objective=objective, autoencoder=autoencoder, **kwargs)
        with_alpha = getattr(autoencoder, "pixel_channels", 3) == 4
        self.formulation = Formulation(
            residual_scale,
            grow,
            residual_scale is None and not with_alpha,
            attention,
            signal_gain,
            size,
            guidance,
        )
        if isinstance(network, PretrainedTransformer) and attention != "in_turn" and not can_join(network):
            raise PolyditError(
                f"--model.attention {attention}: layers of {type(network.transformer).__name__} cannot see each other; "
                "use in_turn, or the transformer of a FLUX folder"
            )
        if residual_scale is not None and autoencoder is not None:
            raise PolyditError("--model.residual_scale: is for pixel space; leave --model.autoencoder out")
        names = (*CONDITIONS, *self.formulation.layers)
        self._network = (network,)  # not a child: its weights are the backbone's
        self.types: GroupTypes | None = None
        self.text: FixedText | None = None
        if isinstance(network, PretrainedTransformer):
            self.types = GroupTypes(list(names), _token_width(network))
            self.text = _text(network, folder, prompt, is_on_meta(backbone))
        else:
            has = (*getattr(backbone.config, "conditions", {}), *getattr(backbone.config, "layers", ()))
            if set(has) != set(names):
                raise PolyditError(
                    f"--model.backbone: has groups {', '.join(has) or 'none'}; this task needs {', '.join(names)}"
                )
        self.consistency_weight, self.consistency_gate = consistency_weight, consistency_gate
        self.alpha_weight, self.region_weight = alpha_weight, region_weight
        self.background_weight = background_weight
        self._last: tuple[Any, Known] | None = None

    def prepare(self) -> None:
        """Refuse another space than the backbone is made for, then what every module prepares.

        Raises:
            PolyditError: the autoencoder is missing, or one of other latents.
        """
        # Of residual colours and alpha in pixels a layer has four, see `element_weight`.
        in_pixels = self.formulation.residual_scale is not None
        refuse_other_latents(self._network[0], 4 if in_pixels else self.space.channels)
        super().prepare()

    @property
    def space(self) -> Any:
        """Pixels or the autoencoder."""
        return as_autoencoder(self.autoencoder)

    def known(self, batch: Mapping[str, Tensor]) -> Known:
        """What is given for a batch; of the last batch it is kept, as several methods ask for it."""
        if self._last is None or self._last[0] is not batch:
            self._last = (batch, self.formulation.known(batch["image"], batch["mask"]))
        return self._last[1]

    def target(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Both layers, one behind the other; zeros in place of a foreground that is not known."""
        background = (batch["background"] + 1) / 2
        return self.formulation.target(self.known(batch), background, batch["foreground"], self.space)

    def condition(self, batch: Mapping[str, Tensor]) -> dict[str, Any]:
        """The picture and the mask, as groups."""
        return self.formulation.conditions(self.known(batch), self.space)

    def element_weight(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Zero for a foreground that is not known."""
        layers = len(self.formulation.layers)
        channels = 4 if self.formulation.residual_scale is not None else self.space.channels
        weight = self.formulation.weight(
            self.known(batch), batch["has_foreground"], channels, self.background_weight
        )
        assert weight.shape[1] == layers * channels
        return weight

    def denoise(self, x_t: Tensor, timestep: Tensor, condition: Mapping[str, Any]) -> Tensor:
        """See :meth:`Formulation.predict`."""
        return self.formulation.predict(
            self._network[0],
            x_t,
            timestep,
            condition,
            self.objective,
            None if self.types is None else self.types(),
            None if self.text is None else self.text(["prompt"] * len(x_t)),
        )

    def extra_losses(self, batch: Mapping[str, Tensor], output: ObjectiveOutput) -> dict[str, Tensor]:
        """Consistency of the layers with the picture, and what else is asked for, on predicted clean data."""
        if not (self.consistency_weight or self.alpha_weight or self.region_weight):
            return {}
        known = self.known(batch)
        layers = self.formulation.finish(output.x0, known, self.space)
        return self.layer_losses(layers, known, batch, output.t)

    def layer_losses(
        self, layers: Layers, known: Known, batch: Mapping[str, Tensor], t: Tensor
    ) -> dict[str, Tensor]:
        """The losses on predicted layers by name, weighted."""
        terms = {}
        if self.consistency_weight:
            loss = consistency_loss(layers, known.image, t, self.consistency_gate)
            terms["consistency"] = self.consistency_weight * loss
        truth = batch["foreground"][:, 3:]
        if self.alpha_weight:
            terms["alpha"] = self.alpha_weight * alpha_loss(layers.alpha, truth, batch["has_foreground"])
        if self.region_weight:
            region = torch.maximum(known.hole, (truth > 0.02).float())
            background = (batch["background"] + 1) / 2
            terms["region"] = self.region_weight * region_psnr_loss(layers.background, background, region)
        return terms

    def build_pipeline(self) -> DiffusionPipeline:
        """The pipeline over this backbone."""
        from .pipeline import LayerDecompositionPipeline

        return LayerDecompositionPipeline(
            transformer=self.backbone,
            scheduler=make_scheduler(
                "euler", self.objective, shift=getattr(self.objective.timesteps, "shift", 1.0)
            ),
            vae=self.space.component,
            types=self.types,
            text=self.text,
            formulation=self.formulation.config(),
            parameterization=self.objective.config(),
        )

    def pictures(
        self, pipeline: DiffusionPipeline, batch: Mapping[str, Tensor], generator: torch.Generator
    ) -> list[dict[str, np.ndarray]]:
        """Picture, mask, predicted and true background and foreground of the first samples."""
        panels = []
        for image, mask, background, foreground in list(
            zip(batch["image"], batch["mask"], batch["background"], batch["foreground"], strict=True)
        )[:4]:
            layers = pipeline.layers(image[None], mask[None], generator=generator)
            panels.append(
                {
                    "picture": to_uint8(image),
                    "mask": to_uint8(mask.expand(3, -1, -1) * 2 - 1),
                    "background": to_uint8(layers.background * 2 - 1),
                    "foreground": on_checkerboard(to_uint8(layers.foreground() * 2 - 1)),
                    "true background": to_uint8(background),
                    "true foreground": on_checkerboard(to_uint8(foreground * 2 - 1)),
                }
            )
        return panels


def _token_width(network: PretrainedTransformer) -> int:
    layer = network.transformer.get_submodule(find_input_layer(network.transformer))
    return int(layer.weight.shape[0])


def _text(network: PretrainedTransformer, folder: str | None, prompt: str, on_meta: bool) -> FixedText | None:
    """What a transformer that reads text is given."""
    reads = network.text_inputs
    if reads is None:
        return None
    if folder:
        return FixedText.from_pipeline(folder, prompt, "")
    if not on_meta:
        raise PolyditError(
            f"--model.backbone: {type(network.transformer).__name__} reads text; build it from a folder with text "
            "encoders"
        )
    return FixedText({"empty": "", "negative": "", "prompt": prompt}, 154, reads.width, reads.pooled_width)
