"""Training of the generative decoder behind the small codec."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from ...core.backbones import DiT
from ...core.diffusion.objective import ObjectiveOutput
from ...core.errors import PolyditError
from ...core.training import DiffusionModule
from ...core.training.weights import PACKAGE, is_on_meta
from .codec import LatentCodec, quality_index, quality_of
from .enhance import CHANNELS, reconstruct, velocity
from .lapped import SIZE
from .losses import PatchDiscriminator, PerceptualLoss, adaptive_weight, adversarial_terms, texture_loss
from .picture_codec import PictureCodec

__all__ = ["PictureEnhancement"]

HELD_OUT_QUALITIES = (1.0, 1.5, 2.5, 4.0)


class PictureEnhancement(DiffusionModule):
    """One step of a small DiT from a decoded picture towards what it was coded from.

    What DiT-IC ("Aligned Diffusion Transformer for Efficient Image Compression", CVPR 2026) does on SANA's latents, on
    pixels behind the small codec: the step starts from what was decoded and its strength follows the deviation to
    expect. The codec is frozen, so its files stay what they are. A new network changes nothing.

    Args:
        backbone: a ``DiT`` of 7 channels in and 3 out.
        codec: folder of the codec's pipeline.
        best_quality: qualities from 1 to this are trained.
        texture_weight: of :func:`texture_loss`.
        adversarial: share of the adversary's gradient in that of the other losses; 0 is no adversary.
        discriminator_width: of the adversary.
        lpips: see :class:`PerceptualLoss`; needed where ``lpips_weight`` is above 0.
        dists: the same of DISTS.
        lpips_weight: of LPIPS.
        dists_weight: of DISTS.
        **kwargs: of :class:`DiffusionModule`; ``objective`` and ``autoencoder`` have no part here.

    Raises:
        PolyditError: settings are out of range, or the codec is not there.
    """

    def __init__(
        self,
        backbone: DiT,
        codec: str = "demos/weights/compression",
        best_quality: float = 5.0,
        texture_weight: float = 1.0,
        adversarial: float = 0.5,
        discriminator_width: int = 32,
        lpips: list[str] | None = None,
        dists: list[str] | None = None,
        lpips_weight: float = 0.0,
        dists_weight: float = 0.0,
        **kwargs: Any,
    ) -> None:
        if not isinstance(backbone, DiT) or (backbone.config.in_channels, backbone.out_channels) != (
            CHANNELS,
            3,
        ):
            raise PolyditError(
                f"--model.backbone: must be a DiT with in_channels {CHANNELS} and out_channels 3"
            )
        if not 1 <= best_quality <= 9:
            raise PolyditError(f"--model.best_quality {best_quality:g}: qualities go from 1 to 9")
        super().__init__(backbone, **kwargs)
        for parameter in backbone.final_layer.parameters():
            parameter.lr_scale = 3.0  # type: ignore[attr-defined] # starts at zero, and little is seen before it grows
        self.best_quality, self.texture_weight, self.adversarial = best_quality, texture_weight, adversarial
        self.perceptual = PerceptualLoss(lpips, dists, lpips_weight, dists_weight)
        self.discriminator = PatchDiscriminator(width=discriminator_width) if adversarial else None
        # Not a child: it is frozen, has a folder of its own, and its integers are not to be cast.
        self._codec: tuple[LatentCodec] | tuple[()] = () if is_on_meta(backbone) else (_open(codec),)
        self.codec_folder = codec

    @property
    def codec(self) -> LatentCodec:
        """The frozen codec, on this module's device."""
        codec = self._codec[0]
        return codec.to(self.device) if codec.colour.device != self.device else codec

    def target(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The pictures (B, 3, H, W)."""
        return batch["picture"]

    def qualities(self, count: int, first: int | None) -> Tensor:
        """Quality indices: drawn, more often low ones, or fixed for held-out samples."""
        if first is None:
            return (torch.rand(count).square() * quality_index(self.best_quality)).round().long()
        fixed = [quality_index(min(q, self.best_quality)) for q in HELD_OUT_QUALITIES]
        return torch.tensor([fixed[(first + number) % len(fixed)] for number in range(count)])

    def losses(self, batch: Any, first: int | None = None) -> tuple[dict[str, Tensor], ObjectiveOutput]:
        """Absolute error in units of what was to be expected, texture, what networks see, and the adversary."""
        pictures = self.target(batch).float()
        self.batch_samples = len(pictures)
        quality = self.qualities(len(pictures), first).to(pictures.device)
        decoded, deviation = self._decoded(pictures, quality)
        answer = decoded - velocity(self.backbone, decoded, deviation, quality)
        expected = deviation.mean((1, 2, 3)).clamp(min=1e-3)
        each = (answer - pictures).abs().mean((1, 2, 3)) / expected
        terms = {"error": each.mean(), **self.perceptual(answer, pictures)}
        if self.texture_weight:
            terms["texture"] = self.texture_weight * texture_loss(answer, pictures)
        if self.discriminator is not None:
            generator, discriminator = adversarial_terms(self.discriminator, answer, pictures)
            weight: Tensor | float = self.adversarial
            if generator.requires_grad:
                others = torch.stack(list(terms.values())).sum()
                weight = adaptive_weight(others, generator, self._last(), self.adversarial)
            terms |= {"adversarial": weight * generator, "discriminator": discriminator}
        output = ObjectiveOutput(
            loss=torch.stack(list(terms.values())).sum(),
            loss_per_sample=each.detach(),
            x0=answer,
            x_t=decoded,
            t=quality.float(),
            noise=torch.zeros_like(pictures),
            prediction=answer,
        )
        return terms, output

    def _decoded(self, pictures: Tensor, quality: Tensor) -> tuple[Tensor, Tensor]:
        if not self._codec:  # a rehearsal: integers without values cannot be computed with
            _place(self.codec_folder)
            return pictures, pictures[:, :1, ::SIZE, ::SIZE].abs()
        return reconstruct(self.codec, pictures, quality)

    def _last(self) -> nn.Parameter:
        return self.backbone.final_layer.linear.weight  # type: ignore[union-attr, return-value]

    def build_pipeline(self) -> DiffusionPipeline:
        """The codec's pipeline with this enhancer."""
        from .pipeline import CompressionPipeline

        return CompressionPipeline(self.codec, self.backbone)

    def pictures(
        self, pipeline: DiffusionPipeline, batch: Mapping[str, Tensor], generator: torch.Generator
    ) -> list[dict[str, np.ndarray]]:
        """The first held-out pictures, decoded plainly and generatively."""
        panels = []
        for picture, quality in zip(batch["picture"], (1.0, 2.0), strict=False):
            given = ((picture.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
            plain, full = (pipeline(given, quality=quality, fidelity=fidelity) for fidelity in (1.0, 0.0))
            rate = f"{quality_of(quality_index(quality)):g}: {plain.bits_per_pixel[0]:.2f} bpp"
            panels.append({"picture": given, rate: plain.images[0], "enhanced": full.images[0]})
        return panels


def _open(folder: str) -> LatentCodec:
    codec = PictureCodec.from_pretrained(str(_place(folder)), local_files_only=True)
    return codec.requires_grad_(False).eval()


def _place(folder: str) -> Path:
    place = Path(folder).expanduser()
    if not place.exists() and (PACKAGE / folder).exists():
        place = PACKAGE / folder
    if not (place / "codec" / "config.json").is_file():
        raise PolyditError(f"--model.codec {folder}: holds no codec; give a folder that `fit` wrote")
    return place / "codec"
