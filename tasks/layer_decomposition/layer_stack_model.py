"""Training of stacks of layers in a latent space: general ones, and illustrations on Qwen-Image-Layered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import AutoencoderKLQwenImage, DiffusionPipeline
from torch import Tensor, nn

from ...core.alpha import composite
from ...core.autoencoders import DiffusersAutoencoder
from ...core.diffusion import Objective
from ...core.diffusion.objective import ObjectiveOutput
from ...core.errors import PolyditError
from ...core.training import DiffusionModule
from ...core.training.weights import is_on_meta
from .illustration import BLEND_MODES, ROLES, LayerCode
from .illustration_losses import layer_losses

__all__ = ["LayerStackTraining"]


class LayerStackTraining(DiffusionModule):
    """Denoise composite and layers of a picture at once, each encoded by itself (Qwen-Image-Layered, 2512.15603).

    Batches have ``layers`` (B, 4, N, H, W), straight alpha in [0, 1], bottom to top; N is free unless the backbone has
    roles. With the four roles of an illustration the layer-wise losses are added, on a decoded crop.

    Args:
        backbone: a ``PretrainedLayerStack``, or a ``LayerStackDiT`` with a composite.
        objective: as in :class:`DiffusionModule`.
        autoencoder: of RGBA pictures; None is that of the folder that a pretrained backbone is from.
        layer_weight: weight of each layer-wise loss; 0 leaves them out.
        recomposition_weight: weight of the recomposition.
        decode_every: the layer-wise losses are computed in every so many steps.
        decode_side: of the decoded crop, in latents.
        **kwargs: of :class:`DiffusionModule`.

    Raises:
        PolyditError: there is no autoencoder, or the backbone's latents are others.
    """

    def __init__(
        self,
        backbone: nn.Module,
        objective: Objective | None = None,
        autoencoder: nn.Module | None = None,
        layer_weight: float = 0.1,
        recomposition_weight: float = 0.5,
        decode_every: int = 4,
        decode_side: int = 32,
        **kwargs: Any,
    ) -> None:
        folder = getattr(backbone, "autoencoder_folder", None)
        if autoencoder is None and folder is not None:
            autoencoder = DiffusersAutoencoder.from_pretrained(str(folder))
        elif autoencoder is None and is_on_meta(backbone):
            autoencoder = DiffusersAutoencoder(AutoencoderKLQwenImage(input_channels=4))
        if autoencoder is None:
            raise PolyditError(
                "--model.autoencoder: give the autoencoder of RGBA pictures that the latents are of; for layers in "
                "pixels take pixel_stack_model.PixelStackTraining"
            )
        super().__init__(backbone, objective=objective, autoencoder=autoencoder, **kwargs)
        channels = getattr(backbone, "prediction_channels", None)
        if channels != autoencoder.channels:
            raise PolyditError(
                f"--model.autoencoder: its latents have {autoencoder.channels} channels, the backbone's {channels}"
            )
        self.layer_weight, self.recomposition_weight = layer_weight, recomposition_weight
        self.decode_every, self.decode_side = decode_every, decode_side

    def prepare(self) -> None:
        """An adapter freezes the backbone; the few numbers of the roles are trained beside it."""
        super().prepare()
        learned = getattr(self.backbone, "roles", None)
        if isinstance(learned, nn.Module):
            learned.requires_grad_(True)

    @property
    def roles(self) -> tuple[str, ...] | None:
        """Names of the layers, where the backbone has them."""
        owner = getattr(self.backbone, "roles", None) or self.backbone
        found = getattr(owner.config, "roles", None)
        return tuple(found) if found is not None else None

    def pictures_of(self, layers: Tensor) -> Tensor:
        """Composite (opaque, on white) and layers, (B, 4, 1 + N, H, W) in [-1, 1]."""
        modes = BLEND_MODES if self.roles == ROLES else ["normal"] * layers.shape[2]
        white = torch.ones_like(layers[:, :3, 0])
        whole = composite(list(layers.unbind(2)), modes, backdrop=white)
        whole = torch.cat([whole, torch.ones_like(whole[:, :1])], dim=1)
        return 2 * torch.cat([whole[:, :, None], layers], dim=2) - 1

    def target(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Latents of composite and layers (B, C, 1 + N, h, w); each picture is encoded by itself."""
        pictures = self.pictures_of(batch["layers"])
        with torch.no_grad():
            latents = self.autoencoder.encode(pictures.transpose(1, 2).flatten(0, 1))
        return latents.unflatten(0, (len(pictures), -1)).transpose(1, 2)

    def condition(self, batch: Mapping[str, Tensor]) -> dict[str, Any]:
        """Latents (B, C, h, w) of the picture, which is the composite."""
        with torch.no_grad():
            return {"condition": self.autoencoder.encode(self.pictures_of(batch["layers"])[:, :, 0])}

    def extra_losses(self, batch: Mapping[str, Tensor], output: ObjectiveOutput) -> dict[str, Tensor]:
        """Losses of an illustration's layers on a decoded crop, faded out towards noise."""
        step = self._trainer.global_step if self._trainer is not None else 0
        if self.roles != ROLES or not self.layer_weight or step % self.decode_every:
            return {}
        latents = output.x0[:, :, 1:]
        height, width = latents.shape[-2:]
        side = min(self.decode_side, height, width)
        top, left = (int(torch.randint(length - side + 1, ())) for length in (height, width))
        crop = latents[..., top : top + side, left : left + side]
        decoded = self.autoencoder.decode(crop.transpose(1, 2).flatten(0, 1))
        decoded = decoded.unflatten(0, (len(latents), -1)).transpose(1, 2)
        factor = self.autoencoder.spatial_factor
        rows, columns = (
            slice(top * factor, (top + side) * factor),
            slice(left * factor, (left + side) * factor),
        )
        true = LayerCode.encode(batch["layers"][..., rows, columns])
        gate = self.objective.path.alpha(output.t) ** 2
        losses = layer_losses(LayerCode.encode((decoded + 1) / 2), true)
        weights = {**dict.fromkeys(ROLES, self.layer_weight), "recomposition": self.recomposition_weight}
        return {name: weight * (gate * losses[name]).mean() for name, weight in weights.items()}

    def build_pipeline(self) -> DiffusionPipeline:
        """The released pipeline with these weights and roles.

        Raises:
            PolyditError: the backbone is not from a folder of it.
        """
        from .layer_stack_pipeline import LayerStackPipeline

        folder = getattr(self.backbone, "source", None)
        if folder is None:
            raise PolyditError(
                "a pipeline of general stacks needs the text encoder of a Qwen-Image-Layered folder; this backbone is "
                "not from one. Its weights are in the checkpoint"
            )
        return LayerStackPipeline.from_pretrained(
            folder, transformer=self.backbone.network.transformer, roles=self.backbone.roles
        )
