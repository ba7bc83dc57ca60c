"""Adversarial distillation in latent space: small heads on a frozen teacher's features tell data from the student's.

After "Fast High-Resolution Image Synthesis with Latent Adversarial Diffusion Distillation", arXiv 2403.12015: nothing
is decoded, and since the teacher reads noised latents, the noise level chooses how coarse the judgement is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn

from ..diffusion.parameterization import Parameterization
from ..diffusion.timesteps import LogitNormal, TimestepSampler

__all__ = [
    "AdversarialDistillation",
    "FeatureDiscriminator",
    "hinge_for_discriminator",
    "hinge_for_generator",
]

Features = Callable[[Tensor, Tensor], Sequence[Tensor]]
"""``(x_t, project times (B,)) -> tokens (B, N, D)`` of some blocks of the frozen teacher, conditions filled in."""


def hinge_for_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """``mean max(0, 1 - real) + mean max(0, 1 + fake)``; 0 where real is above 1 and fake below -1."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def hinge_for_generator(fake: Tensor) -> Tensor:
    """``-mean fake``."""
    return -fake.mean()


class FeatureDiscriminator(nn.Module):
    """A head of convolutions on the token grid of each block.

    Args:
        width: Of the teacher's tokens.
        sites: How many blocks are looked at.
        hidden: Channels of the heads.
    """

    def __init__(self, width: int, sites: int, hidden: int = 64) -> None:
        super().__init__()
        self.heads = nn.ModuleList(
            nn.Sequential(
                nn.GroupNorm(1, width, affine=False),
                nn.Conv2d(width, hidden, 1),
                nn.LeakyReLU(0.2),
                nn.Conv2d(hidden, hidden, 3, padding=1),
                nn.LeakyReLU(0.2),
                nn.Conv2d(hidden, 1, 1),
            )
            for _ in range(sites)
        )

    def forward(self, features: Sequence[Tensor], grid: Sequence[int]) -> Tensor:
        """Tokens (B, N, D) of each block, on a grid (height, width) -> logits (B, blocks * N)."""
        if len(features) != len(self.heads):
            raise ValueError(f"features of {len(features)} blocks for {len(self.heads)} heads")
        logits = []
        for head, tokens in zip(self.heads, features, strict=True):
            if tokens.shape[1] != math.prod(grid):
                raise ValueError(f"{tokens.shape[1]} tokens do not lie on a grid of {tuple(grid)}")
            weight = next(head.parameters())
            maps = tokens.to(weight.dtype).transpose(1, 2).unflatten(2, tuple(grid))
            logits.append(head(maps).flatten(1))
        return torch.cat(logits, dim=1)


class AdversarialDistillation:
    """Both sides of the game in one loss, for one optimiser and one backward pass.

    The student's term goes through the discriminator's weights without reaching them, and the discriminator's term sees
    the student's answer without reaching the student.

    Args:
        timesteps: How strongly what is judged is noised; None is logit-normal.
    """

    def __init__(self, timesteps: TimestepSampler | None = None) -> None:
        self.timesteps = LogitNormal() if timesteps is None else timesteps

    def terms(
        self,
        discriminator: FeatureDiscriminator,
        features: Features,
        parameterization: Parameterization,
        answer: Tensor,
        data: Tensor,
        grid: Sequence[int],
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """``adversarial`` for the student and ``discriminator`` for the heads, not weighted.

        Args:
            discriminator: The heads.
            features: The frozen teacher.
            parameterization: Of the teacher.
            answer: Clean latents (B, C, ...) according to the student, with gradients.
            data: Clean latents of the data.
            grid: Of the tokens.
            generator: Source of times and noise, on the CPU.
        """
        t = self.timesteps(len(data), generator, data.device)
        noise = randn_tensor(data.shape, generator=generator, device=data.device, dtype=data.dtype)
        add_noise = parameterization.path.add_noise
        answer = answer.to(data.dtype)
        seen = features(add_noise(answer, noise, t), t)
        with torch.no_grad():
            of_data = features(add_noise(data, noise, t), t)
        frozen = {name: value.detach() for name, value in discriminator.named_parameters()}
        judged = torch.func.functional_call(discriminator, frozen, (seen, grid))
        fake = discriminator([tokens.detach() for tokens in seen], grid)
        return {
            "adversarial": hinge_for_generator(judged),
            "discriminator": hinge_for_discriminator(discriminator(of_data, grid), fake),
        }
