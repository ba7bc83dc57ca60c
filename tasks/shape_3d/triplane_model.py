"""The LightningModules of Direct3D: its autoencoder, and the transformer on its latents."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from ...core.autoencoders.triplane import TriplaneVAE, kl_to_normal, semi_continuous_labels
from ...core.backbones.d3d_dit import D3DDiT
from ...core.diffusion import DiscretePath, Objective, TimeConvention, make_scheduler
from ...core.errors import PolyditError
from ...core.training import DiffusionModule
from .conditions import PictureEncoder, TransformersEncoder
from .triplane_formulation import TriplaneFormulation

__all__ = ["TriplaneCodec", "TriplaneShapes", "open_vae"]


class TriplaneCodec(DiffusionModule):
    """Train D3D-VAE: surface points to a triplane latent to occupancy (Direct3D, arXiv 2405.14832).

    The labels are semi-continuous: they fall evenly across a band around the surface, so that a point on it is neither
    in nor out, and plates thinner than what is sampled still count.

    Args:
        backbone: a :class:`~polydit.core.autoencoders.triplane.TriplaneVAE`.
        band: half the width of that band; as published 1/512. 0 is hard labels.
        near_weight: weight of the points near the surface; those anywhere have 1.
        kl_weight: weight of the latents' divergence from the standard normal law.
        formulation: of the pipeline that the autoencoder is saved in.
        **kwargs: of :class:`DiffusionModule`.

    Raises:
        PolyditError: the backbone is another network.
    """

    def __init__(
        self,
        backbone: nn.Module,
        band: float = 1 / 512,
        near_weight: float = 1.0,
        kl_weight: float = 1e-6,
        formulation: TriplaneFormulation = TriplaneFormulation(),  # noqa: B008 - read only
        **kwargs: Any,
    ) -> None:
        if not isinstance(backbone, TriplaneVAE):
            raise PolyditError(f"--model.backbone: a {type(backbone).__name__}; this trains a TriplaneVAE")
        super().__init__(backbone, **kwargs)
        self.band, self.near_weight, self.kl_weight = band, near_weight, kl_weight
        self.formulation = formulation

    def losses(self, batch: Mapping[str, Tensor], first: int | None = None) -> tuple[dict[str, Tensor], Any]:
        """Binary cross-entropy anywhere and near the surface, and the divergence of the latents."""
        codec: TriplaneVAE = self.backbone
        self.batch_samples = len(batch["points"])
        mean, log_variance = codec.moments(batch["points"], batch["normals"])
        z = mean
        if self.training:
            z = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
            self._follow(mean)
        logits = codec.query(codec.planes(z), batch["queries"]).float()
        labels = semi_continuous_labels(batch["distances"], self.band)
        error = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
        anywhere, near = error.chunk(2, dim=1)
        return {
            "objective": anywhere.mean(),
            "near": self.near_weight * near.mean(),
            "kl": self.kl_weight * kl_to_normal(mean.float(), log_variance.float()).mean(),
        }, logits

    @torch.no_grad()
    def _follow(self, mean: Tensor) -> None:
        """The latents' scale and shift, as a running mean."""
        values = mean.detach().float()
        found = torch.stack([1 / values.std().clamp_min(1e-3), values.mean()])
        self.backbone.scaling.lerp_(found.to(self.backbone.scaling), 0.02)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Held-out loss, and the IoU of true and reconstructed solids at points anywhere."""
        with torch.no_grad():
            terms, logits = self.losses(batch)
        half = batch["distances"].shape[1] // 2
        for name, part in (("iou", slice(None, half)), ("near_iou", slice(half, None))):
            found, true = logits[:, part] > 0, batch["distances"][:, part] < 0
            iou = (found & true).sum(1) / (found | true).sum(1).clamp(min=1)
            self.log(f"val/{name}", iou.mean(), batch_size=len(iou), sync_dist=True)
        named = {f"val/{name}": term for name, term in terms.items()}
        self.log_dict(
            {"val/loss": sum(terms.values()), **named}, batch_size=len(batch["points"]), sync_dist=True
        )

    test_step = validation_step

    def build_pipeline(self) -> DiffusionPipeline:
        """A pipeline with the autoencoder alone; :class:`TriplaneShapes` trains what generates its latents."""
        from .triplane_pipeline import TriplanePipeline

        return TriplanePipeline(vae=self.backbone, formulation=self.formulation.config())


def open_vae(folder: str) -> TriplaneVAE:
    """The autoencoder of a pipeline folder, or of its own.

    Raises:
        PolyditError: there is none.
    """
    path = Path(folder).expanduser()
    inner = path / "vae" if (path / "vae").is_dir() else path
    if not (inner / "config.json").is_file():
        raise PolyditError(f"--model.vae {folder}: no autoencoder there; train one with small_vae.yaml")
    return TriplaneVAE.from_pretrained(inner)


class TriplaneShapes(DiffusionModule):
    """Train D3D-DiT: triplane latents from a picture, or of a category (Direct3D, arXiv 2405.14832).

    Args:
        backbone: a :class:`~polydit.core.backbones.d3d_dit.D3DDiT`.
        vae: folder of the trained autoencoder.
        encoder: of pictures: a :class:`~.conditions.PictureEncoder`, trained along, or a frozen
            :class:`~.conditions.TransformersEncoder`.
        objective: None is the published one: noise prediction on the 1000 steps of DDPM.
        formulation: categories, pictures, sampling.
        drop: how often a sample is told nothing, for guidance.
        by_category: how often a sample is told its category and shown no picture; for weights with categories.
        sampler: of the pipeline; see ``make_scheduler``.
        **kwargs: of :class:`DiffusionModule`.

    Raises:
        PolyditError: the parts do not fit each other.
    """

    def __init__(
        self,
        backbone: nn.Module,
        vae: str | None = None,
        encoder: PictureEncoder | TransformersEncoder | None = None,
        objective: Objective | None = None,
        formulation: TriplaneFormulation = TriplaneFormulation(),  # noqa: B008 - read only
        drop: float = 0.1,
        by_category: float = 0.0,
        sampler: str | None = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(backbone, D3DDiT):
            raise PolyditError(f"--model.backbone: a {type(backbone).__name__}; this trains a D3DDiT")
        if objective is None:
            objective = Objective(DiscretePath(), "epsilon", time=TimeConvention(1000, discrete=True))
        classes = backbone.config.num_classes or 0
        if classes != len(formulation.categories):
            raise PolyditError(
                f"--model.backbone.num_classes {backbone.config.num_classes}: there are "
                f"{len(formulation.categories)} categories; set it to that, or to null for none"
            )
        if encoder is None and by_category < 1 - drop:
            raise PolyditError("--model.encoder: is missing; name one, or set by_category to 1 and drop to 0")
        super().__init__(backbone, objective=objective, **kwargs)
        self.encoder, self.formulation = encoder, formulation
        self.drop, self.by_category = drop, by_category
        self.sampler = sampler or ("ddim" if isinstance(objective.path, DiscretePath) else "euler")
        self.vae_folder = vae
        # Not a child: frozen, and not saved with what is trained.
        self._vae: tuple[TriplaneVAE, ...] = ()

    @property
    def vae(self) -> TriplaneVAE:
        """The frozen autoencoder, read when it is first needed.

        Raises:
            PolyditError: no folder is named, or its latents are others than the backbone's.
        """
        if not self._vae:
            if self.vae_folder is None:
                raise PolyditError(
                    "--model.vae: name the folder of the autoencoder; train one with small_vae.yaml"
                )
            vae = open_vae(self.vae_folder).requires_grad_(False).eval()
            shape, config = vae.latent_shape, self.backbone.config
            if shape[:2] != (config.in_channels, config.resolution):
                raise PolyditError(
                    f"--model.backbone: is for {config.in_channels} channels and planes of {config.resolution}, the "
                    f"autoencoder for {shape[0]} and {shape[1]}; make them equal"
                )
            self._vae = (vae,)
        return self._vae[0].to(self.device)

    def target(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Latents (B, C, r, 3 r)."""
        with torch.no_grad():
            return self.vae.encode(batch["points"], batch["normals"]).float()

    def condition(self, batch: Mapping[str, Tensor]) -> dict[str, Any]:
        """Tokens of the picture and the label; each sample is told one of them, or nothing."""
        count = len(batch["label"])
        device = batch["label"].device
        draw = torch.rand(count).to(device) if self.training else torch.ones(count, device=device)
        # Of a shape of no category only a picture tells.
        none = batch["label"] == len(self.formulation.categories)
        shown = (draw >= self.drop + self.by_category) | (none & (draw >= self.drop))
        if not self.training and self.encoder is None:
            shown = torch.zeros_like(shown)
        found: dict[str, Any] = {"class_labels": None}
        if self.encoder is not None:
            semantic, pixel = self.encoder(batch["picture"])
            found["encoder_hidden_states"] = semantic * shown[:, None, None]
            found["pixel_hidden_states"] = pixel * shown[:, None, None]
        if self.formulation.categories:
            told = (draw >= self.drop) & ~shown
            nothing = len(self.formulation.categories)
            found["class_labels"] = torch.where(
                told, batch["label"], torch.full_like(batch["label"], nothing)
            )
        return found

    def build_pipeline(self) -> DiffusionPipeline:
        """The pipeline over these networks."""
        from .triplane_pipeline import TriplanePipeline

        own = {"encoder": self.encoder} if isinstance(self.encoder, PictureEncoder) else {}
        if isinstance(self.encoder, TransformersEncoder):
            own = {"semantic_encoder": self.encoder.semantic, "pixel_encoder": self.encoder.pixel}
        return TriplanePipeline(
            vae=self.vae,
            transformer=self.backbone,
            scheduler=make_scheduler(self.sampler, self.objective),
            formulation=self.formulation.config(),
            parameterization=self.objective.config(),
            **own,
        )
