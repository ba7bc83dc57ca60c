"""Training of DiT-IC on SANA."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, SanaTransformer2DModel
from torch import Tensor, nn

from ....core.adapters import LoraOptions, bake, inject
from ....core.autoencoders import DiffusersAutoencoder
from ....core.backbones import read_official_file
from ....core.backbones.dit_ic import DiTIC, DiTICLatentCodec, LatentPrompter
from ....core.backbones.elic import ElicAnalysis
from ....core.backbones.pretrained import PretrainedTransformer, as_backbone
from ....core.diffusion.objective import ObjectiveOutput
from ....core.errors import PolyditError
from ....core.training import DiffusionModule
from ....core.training.weights import is_on_meta
from ..losses import (
    PatchDiscriminator,
    PerceptualLoss,
    adaptive_weight,
    adversarial_terms,
    distillation_loss,
)
from .pipeline import FURTHER, DiTICPipeline

__all__ = ["GenerativeCompression"]


class GenerativeCompression(DiffusionModule):
    """A learned codec of a 32x autoencoder's latents, with a pretrained transformer as its one-step decoder.

    "DiT-IC: Aligned Diffusion Transformer for Efficient Image Compression" (CVPR 2026). Trained are the codec, the
    tokens in place of text, and adapters of the transformer and of the autoencoder's decoder; encoder, the features'
    network and all base weights are not. One model is one rate; a run at a small ``rate_weight`` comes first
    (``init_weights`` then continues it at the wanted one).

    Args:
        backbone: ``load_transformer`` of SANA's folder.
        autoencoder: None is that of the folder, an ``AutoencoderDC``.
        channel: width of what is coded.
        tokens: that stand for the text.
        pooled_tokens: how many of them are pooled from the latents.
        feature_width: width of the features' network inside (ELIC: 192).
        elic: released ELIC file whose analysis gives the features; None trains one from scratch with the rest.
        transformer_adapter: adapter of the transformer; None leaves it alone.
        decoder_adapter: adapter of the autoencoder's decoder; None leaves it alone.
        rate_weight: weight of bits per pixel: larger is smaller files (published: 0.1 to 0.5, then 0.5 to 16).
        distillation_weight: of :func:`distillation_loss`.
        least_cosine: of the same.
        lpips: see :class:`PerceptualLoss`.
        dists: see there.
        lpips_weight: see there.
        dists_weight: see there.
        adversarial: judge the pictures by a `PatchDiscriminator` that learns along (the second stage).
        plain_weight: weight of the plain decoder's squared error of the latents, which ``--fidelity 1`` shows; 0 as
            published.
        zero_residual: start the residual head at nothing; published: random.
        **kwargs: of :class:`DiffusionModule`; ``adapter`` and ``objective`` have no part here.

    Raises:
        PolyditError: the parts do not fit each other.
    """

    def __init__(
        self,
        backbone: nn.Module,
        autoencoder: nn.Module | None = None,
        channel: int = 320,
        tokens: int = 77,
        pooled_tokens: int = 48,
        feature_width: int = 192,
        elic: str | None = None,
        transformer_adapter: LoraOptions | None = None,
        decoder_adapter: LoraOptions | None = None,
        rate_weight: float = 0.5,
        distillation_weight: float = 0.05,
        least_cosine: float = 0.5,
        lpips: list[str] | None = None,
        dists: list[str] | None = None,
        lpips_weight: float = 1.0,
        dists_weight: float = 0.2,
        adversarial: bool = False,
        plain_weight: float = 0.0,
        zero_residual: bool = False,
        **kwargs: Any,
    ) -> None:
        network = as_backbone(backbone)
        transformer = network.transformer if isinstance(network, PretrainedTransformer) else network
        if not isinstance(transformer, SanaTransformer2DModel):
            raise PolyditError(f"--model.backbone: {type(transformer).__name__} is no SANA; give its folder")
        folder = Path(getattr(transformer.config, "_name_or_path", None) or "")
        if autoencoder is None:
            places = [place for place in (folder, folder.parent) if (place / "vae").is_dir()]
            if not places:
                raise PolyditError(
                    f"--model.autoencoder: {folder} holds no vae; name the autoencoder's folder"
                )
            autoencoder = DiffusersAutoencoder.from_pretrained(places[0], subfolder="vae")
        channels = transformer.config.in_channels
        if not isinstance(autoencoder, DiffusersAutoencoder) or autoencoder.channels != channels:
            raise PolyditError(
                f"--model.autoencoder: must be an AutoencoderDC of {channels} channels, as the transformer's"
            )
        source = kwargs.get("init_weights")
        if source is not None and (Path(source) / "codec").is_dir():
            kwargs["init_weights"] = None  # a pipeline of an earlier stage: all its parts, below
        super().__init__(transformer, autoencoder=autoencoder, **kwargs)
        if self.adapter_options is not None:
            raise PolyditError(
                "--model.adapter: would leave the codec behind; set --model.transformer_adapter in its place"
            )
        transformer.requires_grad_(False)
        self.codec = DiTICLatentCodec(channels, channel)
        self.prompter = LatentPrompter(channel, transformer.config.caption_channels, tokens, pooled_tokens)
        self.features = ElicAnalysis(feature_width, channel)
        if zero_residual:
            last = self.codec.aux.synthesis_transform[-1]
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        if elic is not None and not is_on_meta(transformer):
            _load_features(self.features, elic)
            self.features.requires_grad_(False)
        if source is not None and (Path(source) / "codec").is_dir() and not is_on_meta(transformer):
            self._continue_from(Path(source))
        # In an optimiser of its own in the released code; what moves it is apart from all else, so a rate of its own is
        # the same.
        self.codec.entropy_bottleneck.quantiles.lr_scale = 10.0  # type: ignore[attr-defined]
        self.transformer_adapter, self.decoder_adapter = transformer_adapter, decoder_adapter
        self.perceptual = PerceptualLoss(lpips, dists, lpips_weight, dists_weight)
        self.discriminator = PatchDiscriminator() if adversarial else None
        self.rate_weight, self.plain_weight = rate_weight, plain_weight
        self.distillation_weight, self.least_cosine = distillation_weight, least_cosine
        # Not a child: its parts are.
        self._whole = (DiTIC(self.codec, self.prompter, transformer),)

    @property
    def space(self) -> DiffusersAutoencoder:
        """The autoencoder."""
        assert isinstance(self.autoencoder, DiffusersAutoencoder)
        return self.autoencoder

    def prepare(self) -> None:
        """Adapt transformer and decoder."""
        if not self._prepared:
            if self.transformer_adapter is not None:
                inject(self.backbone, self.transformer_adapter)
            if self.decoder_adapter is not None:
                inject(self.space.vae.decoder, self.decoder_adapter)
        super().prepare()

    def _continue_from(self, folder: Path) -> None:
        parts = {"codec": DiTICLatentCodec, "prompter": LatentPrompter, "features": ElicAnalysis}
        for name, kind in parts.items():
            getattr(self, name).load_state_dict(kind.from_pretrained(folder / name).state_dict())
        self.backbone.load_state_dict(
            SanaTransformer2DModel.from_pretrained(folder, subfolder="transformer").state_dict()
        )
        earlier = DiffusersAutoencoder.from_pretrained(folder, subfolder="vae")
        self.space.vae.load_state_dict(earlier.vae.state_dict())

    # -- training ------------------------------------------------------------------------------------------

    def target(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The pictures (B, 3, H, W), sides multiples of 256."""
        return batch["picture"]

    def losses(self, batch: Any, first: int | None = None) -> tuple[dict[str, Tensor], ObjectiveOutput]:
        """Squared error, rate, alignment, what networks see, and the adversary.

        Raises:
            PolyditError: the crops have another size than the autoencoder and the codec take.
        """
        pictures = self.target(batch)
        multiple = self.space.spatial_factor * FURTHER
        if pictures.shape[-1] % multiple or pictures.shape[-2] % multiple:
            raise PolyditError(
                f"--data.crop: crops of {pictures.shape[-2]}x{pictures.shape[-1]} are no multiples of {multiple}"
            )
        self.batch_samples = len(pictures)
        with torch.no_grad():
            clean = self.space.encode(pictures)
        coded = self.codec(clean, self.features(pictures))
        latents = self._whole[0].enhance(coded)[0]
        answer = self.space.decode(latents)
        bits = sum(-likelihood.log2().sum() for likelihood in coded.likelihoods.values())
        rate = bits / (len(pictures) * pictures.shape[-1] * pictures.shape[-2])
        seen = {
            "distortion": (answer - pictures).square().mean(),
            **self.perceptual(answer, pictures),
        }
        terms = {
            **seen,
            "rate": self.rate_weight * rate,
            "alignment": self.distillation_weight * distillation_loss(latents, clean, self.least_cosine),
            "quantiles": self.codec.entropy_bottleneck.quantile_loss(),
        }
        if self.plain_weight:
            terms["plain"] = self.plain_weight * (coded.mean - clean).square().mean()
        if self.discriminator is not None:
            terms |= self._adversarial(answer, pictures, torch.stack(list(seen.values())).sum())
        output = ObjectiveOutput(
            loss=torch.stack([term.float() for term in terms.values()]).sum(),
            loss_per_sample=(answer - pictures).square().mean((1, 2, 3)).detach(),
            x0=answer,
            x_t=pictures,
            t=pictures.new_ones(len(pictures)),
            noise=torch.zeros_like(pictures),
            prediction=latents,
        )
        return terms, output

    def _adversarial(self, answer: Tensor, pictures: Tensor, seen: Tensor) -> dict[str, Tensor]:
        assert self.discriminator is not None
        generator, discriminator = adversarial_terms(self.discriminator, answer, pictures)
        last = self.codec.aux.synthesis_transform[-1].weight
        weight = adaptive_weight(seen, generator, last) if generator.requires_grad else 0.0
        return {"adversarial": weight * generator, "discriminator": discriminator}

    # -- results -------------------------------------------------------------------------------------------

    def build_pipeline(self) -> DiffusionPipeline:
        """The pipeline; adapters are merged into copies."""
        transformer, vae = self.backbone, self.space.vae
        if self.transformer_adapter is not None:
            transformer = deepcopy(transformer)
            bake(transformer)
        if self.decoder_adapter is not None:
            vae = deepcopy(vae)
            bake(vae.decoder)
        self.codec.count()
        return DiTICPipeline(transformer, self.codec, self.prompter, vae, self.features)

    def pictures(
        self, pipeline: DiffusionPipeline, batch: Mapping[str, Tensor], generator: torch.Generator
    ) -> list[dict[str, np.ndarray]]:
        """The first held-out pictures, and what the plain and the generative decoder make of the same data."""
        panels = []
        for picture in batch["picture"][:2]:
            given = ((picture.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
            plain, full = (pipeline(given, fidelity=fidelity) for fidelity in (1.0, 0.0))
            rate = f"{full.bits_per_pixel[0]:.3f} bpp"
            panels.append({"picture": given, "plain": plain.images[0], rate: full.images[0]})
        return panels


def _load_features(features: ElicAnalysis, file: str) -> None:
    state = read_official_file(file)
    prefix = next((p for p in ("aux_codec.g_a.", "g_a.") if any(k.startswith(p) for k in state)), "")
    own = features.state_dict()
    given = {k.removeprefix(prefix): v for k, v in state.items() if k.removeprefix(prefix) in own}
    if given.keys() != own.keys():
        raise PolyditError(
            f"--model.elic {file}: lacks {sorted(own.keys() - given.keys())[0]}; is it a checkpoint of ELIC?"
        )
    features.load_state_dict(given)
