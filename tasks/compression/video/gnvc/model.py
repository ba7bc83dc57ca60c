"""Training of GNVC-VD: rate, latents and flow first, then pixels through the whole decoder."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, Literal

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from .....core.diffusion.objective import ObjectiveOutput
from .....core.errors import PolyditError
from .....core.training import DiffusionModule
from .adapter import ContextAdapter
from .contextual import QUALITIES, CodedClip, ContextualCodec
from .pipeline import GNVCPipeline
from .refinement import FLOW, START, STEPS, denoiser, path_point, refine_latents, true_velocity

__all__ = ["GNVCVD", "GenerativeVideoCompression"]


class GNVCVD(nn.Module):
    """What is trained: the codec of latents and the adapter; the transformer stays as it is.

    Args:
        codec: of the latents.
        transformer: a video transformer with velocity prediction.
        adapter: None with ``WanVACETransformer3DModel``.
    """

    def __init__(
        self, codec: ContextualCodec, transformer: nn.Module, adapter: ContextAdapter | None = None
    ) -> None:
        super().__init__()
        self.codec, self.adapter = codec, adapter
        self.transformer = transformer.requires_grad_(False)

    def forward(self, x_t: Tensor, timestep: Tensor, features: Tensor) -> Tensor:
        """The transformer's velocity with the codec's features."""
        return denoiser(self.transformer, self.adapter, features)(x_t, timestep)


class GenerativeVideoCompression(DiffusionModule):
    """The two stages of the paper.

    Stage ``latent``: rate + ``distortion_weight`` * |refined - clean|^2 + flow matching over the last 0.3 of the path.
    Stage ``pixel``: rate + ``distortion_weight`` * (|video - decoded|^2 + ``perceptual_weight`` * perceptual +
    |coded - clean|^2 + |refined - clean|^2), through all Euler steps and the autoencoder's decoder.

    Args:
        backbone: codec, transformer and adapter.
        autoencoder: the video autoencoder, frozen.
        stage: ``latent`` or ``pixel``.
        quality: index 0..63 that is trained, as in the paper one for each model; None draws one per step.
        distortion_weight: lambda_r of the paper, which does not give its values.
        perceptual_weight: of ``perceptual``.
        perceptual: a function of two (N, 3, H, W) batches in [-1, 1], such as LPIPS with your weights.
        start: noise level of the refinement.
        steps: Euler steps of the pixel stage.
        **kwargs: of :class:`DiffusionModule`.

    Raises:
        PolyditError: there is no autoencoder, or another stage.
    """

    def __init__(
        self,
        backbone: GNVCVD,
        autoencoder: nn.Module | None = None,
        stage: Literal["latent", "pixel"] = "latent",
        quality: int | None = None,
        distortion_weight: float = 1.0,
        perceptual_weight: float = 0.0,
        perceptual: nn.Module | None = None,
        start: float = START,
        steps: int = STEPS,
        **kwargs: Any,
    ) -> None:
        if autoencoder is None:
            raise PolyditError("--model.autoencoder: GNVC-VD codes a video autoencoder's latents; give one")
        if stage not in ("latent", "pixel"):
            raise PolyditError(f"--model.stage {stage}: choose latent or pixel")
        if perceptual_weight and perceptual is None:
            raise PolyditError(
                "--model.perceptual_weight: needs --model.perceptual; give it or leave the weight 0"
            )
        super().__init__(backbone, autoencoder=autoencoder, **kwargs)
        self.stage, self.quality = stage, quality
        self.distortion_weight, self.perceptual_weight = distortion_weight, perceptual_weight
        self.perceptual, self.start, self.steps = perceptual, start, steps

    def target(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Clean latents (B, C, T, h, w)."""
        assert self.autoencoder is not None
        with torch.no_grad():
            return self.autoencoder.encode(self.video(batch))

    def video(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The clip (B, 3, T, H, W) in [-1, 1]."""
        return batch["frames"].float().transpose(1, 2) / 127.5 - 1

    def losses(self, batch: Any, first: int | None = None) -> tuple[dict[str, Tensor], ObjectiveOutput]:
        """The terms of the stage."""
        clean = self.target(batch)
        self.batch_samples = len(clean)
        model: GNVCVD = self.backbone
        quality = self.quality
        if quality is None:
            quality = random.randrange(QUALITIES) if first is None else first * 13 % QUALITIES
        coded: CodedClip = model.codec(clean, quality)
        noise = torch.randn_like(clean)
        video = self.video(batch)
        terms = {"rate": coded.bits.sum(1).mean() / video[0, 0].numel()}
        if self.stage == "latent":
            t = self.start * torch.rand(len(clean), device=clean.device)
            point = path_point(clean, coded.latents, noise, t, self.start)
            velocity = model(point, FLOW.model_timestep(t), coded.features)
            wanted = true_velocity(clean, coded.latents, noise, self.start)
            terms["flow"] = (velocity - wanted).square().mean()
            refined = FLOW.x0(velocity, point, t)
            terms["refined"] = self.distortion_weight * (refined - clean).square().mean()
        else:
            t = clean.new_full((len(clean),), self.start)
            refined = refine_latents(
                lambda x, time: model(x, time, coded.features), coded.latents, noise, self.start, self.steps
            )
            assert self.autoencoder is not None
            shown = self.autoencoder.decode(refined)
            terms["video"] = self.distortion_weight * (shown - video).square().mean()
            terms["coded"] = self.distortion_weight * (coded.latents - clean).square().mean()
            terms["refined"] = self.distortion_weight * (refined - clean).square().mean()
            if self.perceptual is not None and self.perceptual_weight:
                frames = [x.transpose(1, 2).flatten(0, 1) for x in (shown, video)]
                weight = self.distortion_weight * self.perceptual_weight
                terms["perceptual"] = weight * self.perceptual(*frames).mean()
        # The densities' quantiles have no part in the rest; published training gives them an optimiser of their own.
        quantiles = [part.priors[model.codec.part_of(n, quality)[1]].quantile_loss()
                     for n, part in enumerate((model.codec.first, model.codec.next))]  # fmt: skip
        terms["quantiles"] = 1e-3 * torch.stack(quantiles).sum()
        loss = torch.stack(list(terms.values())).sum()
        output = ObjectiveOutput(
            loss=loss,
            loss_per_sample=loss.detach().expand(len(clean)),
            x0=refined,
            x_t=coded.latents,
            t=t,
            noise=noise,
            prediction=refined,
        )
        return terms, output

    def build_pipeline(self) -> DiffusionPipeline:
        """The pipeline over these models."""
        model: GNVCVD = self.backbone
        return GNVCPipeline(
            model.transformer,
            model.codec.count().eval(),
            getattr(self.autoencoder, "vae", self.autoencoder),
            model.adapter,
            self.start,
            self.steps,
        )
