"""What is asked of decoded pictures beside a small error: that networks, filters and an adversary like them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.acceleration.adversarial_distillation import hinge_for_discriminator, hinge_for_generator
from ...core.errors import PolyditError
from ...core.metrics import DISTS, LPIPS

__all__ = [
    "PatchDiscriminator",
    "PerceptualLoss",
    "adaptive_weight",
    "adversarial_terms",
    "distillation_loss",
    "texture_energy",
    "texture_loss",
]

LEVELS = 3
POOL = 8
FAINT = 0.02
"""Contrast, in pictures of -1..1, below which texture hardly counts."""
SECOND_DIFFERENCES = (
    ((0, 0, 0), (-1, 2, -1), (0, 0, 0)),
    ((0, -1, 0), (0, 2, 0), (0, -1, 0)),
    ((-1, 0, 0), (0, 2, 0), (0, 0, -1)),
    ((0, 0, -1), (0, 2, 0), (-1, 0, 0)),
)


def distillation_loss(latents: Tensor, clean: Tensor, least: float = 0.5) -> Tensor:
    """Self-distillation alignment: ``relu(least - cos)`` of reconstructed latents and the encoder's own.

    The encoder of the autoencoder is its own teacher: what the transformer gives must point where the picture's latents
    do.

    Args:
        latents: (B, C, h, w).
        clean: the same; the cosine is over the channels.
        least: cosine from which on nothing is asked (0.5 in the released code; a reading of the paper says 0.1).

    Returns:
        The mean, a scalar.
    """
    return F.relu(least - F.cosine_similarity(latents.float(), clean.float(), dim=1)).mean()


def texture_energy(pictures: Tensor) -> list[Tensor]:
    """How much there is of four orientations at three scales, around each place.

    Args:
        pictures: (B, 3, H, W) in [-1, 1], sides multiples of 32.

    Returns:
        For each scale the root of the mean square of each filter over windows of 8 pixels there, (B, 4, h, w).
    """
    grey = pictures.float().mean(1, keepdim=True)
    filters = torch.tensor(SECOND_DIFFERENCES, device=grey.device).float().unsqueeze(1) / 6**0.5
    energies = []
    for level in range(LEVELS):
        if level:
            grey = F.avg_pool2d(grey, 2)
        filtered = F.conv2d(F.pad(grey, (1, 1, 1, 1), mode="replicate"), filters)
        energies.append((F.avg_pool2d(filtered.square(), POOL, POOL // 2) + 1e-6).sqrt())
    return energies


def texture_loss(answer: Tensor, truth: Tensor) -> Tensor:
    """Relative difference of the texture's energy: blur is seen, and where exactly each blade of grass lies is not."""
    pairs = zip(texture_energy(answer), texture_energy(truth), strict=True)
    return torch.stack([((a - t).abs() / (t + FAINT)).mean() for a, t in pairs]).mean()


class PerceptualLoss(nn.Module):
    """LPIPS and DISTS of pictures in [-1, 1], where their weights are given.

    Args:
        lpips: files of AlexNet and of its LPIPS heads; see :class:`~polydit.core.metrics.LPIPS`.
        dists: files of VGG16 and of the DISTS weights; see :class:`~polydit.core.metrics.DISTS`.
        lpips_weight: published: 1.
        dists_weight: published: 0.2.

    Raises:
        PolyditError: a weight is above 0 and there are no files for it, or not two of them.
    """

    def __init__(
        self,
        lpips: Sequence[str] | None = None,
        dists: Sequence[str] | None = None,
        lpips_weight: float = 1.0,
        dists_weight: float = 0.2,
    ) -> None:
        super().__init__()
        self.weights = {"lpips": lpips_weight, "dists": dists_weight}
        self.parts = nn.ModuleDict()
        for name, files, kind in (("lpips", lpips, LPIPS), ("dists", dists, DISTS)):
            if not self.weights[name]:
                continue
            if files is None or len(files) != 2:
                raise PolyditError(
                    f"--model.{name}: give two files, the network's and the metric's own, or set "
                    f"--model.{name}_weight 0"
                )
            self.parts[name] = kind(*files)

    def forward(self, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Weighted means over the batch, by name."""
        return {
            name: self.weights[name] * part(prediction.float(), target.float()).mean()
            for name, part in self.parts.items()
        }


class PatchDiscriminator(nn.Module):
    """PatchGAN (arXiv 1611.07004) of three layers: a logit for each patch of about 70 pixels.

    Groups are normalised in place of batches, so that pictures do not mix.

    Args:
        channels: of the pictures.
        width: of the first layer.
    """

    def __init__(self, channels: int = 3, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for number, stride in ((1, 2), (2, 2), (3, 1)):
            wide = width * 2**number
            layers += [
                nn.Conv2d(wide // 2, wide, 4, stride, 1, bias=False),
                nn.GroupNorm(min(32, wide), wide),
                nn.LeakyReLU(0.2),
            ]
        self.layers = nn.Sequential(*layers, nn.Conv2d(width * 8, 1, 4, 1, 1))

    def forward(self, pictures: Tensor) -> Tensor:
        """(B, channels, H, W) -> logits (B, 1, h, w); sides of 32 pixels or more."""
        return self.layers(pictures)


def adversarial_terms(discriminator: nn.Module, answer: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Hinge terms of generator and discriminator for one optimiser.

    The first goes through the discriminator without reaching its weights, the second sees the answer without reaching
    what made it.
    """
    frozen = {name: value.detach() for name, value in discriminator.named_parameters()}
    judged = torch.func.functional_call(discriminator, frozen, (answer,))
    return hinge_for_generator(judged), hinge_for_discriminator(
        discriminator(truth), discriminator(answer.detach())
    )


def adaptive_weight(others: Tensor, adversarial: Tensor, last: nn.Parameter, share: float = 0.5) -> Tensor:
    """How much the adversarial term counts: ``share * |grad others| / (|grad adversarial| + 1e-4)`` at one layer.

    Args:
        others: the other losses on the picture.
        adversarial: the generator's term.
        last: a weight that both depend on.
        share: published: 0.5.
    """
    norms = [
        torch.linalg.vector_norm(torch.autograd.grad(term, last, retain_graph=True)[0])
        for term in (others, adversarial)
    ]
    return (share * norms[0] / (norms[1] + 1e-4)).clamp(max=1e4).detach()
