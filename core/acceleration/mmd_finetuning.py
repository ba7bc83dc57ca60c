"""Fine-tuning a few-step sampler as a whole, by the distance of its samples from data in a feature space."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from ..diffusion import Denoise, Parameterization, ddim
from ..errors import PolyditError
from ..metrics.kernel import Kernel, kernel_distance

__all__ = ["MMDFinetuning", "few_step_indices"]


def few_step_indices(steps: int, total: int = 1000) -> list[int]:
    """The indices that DDIM takes: every ``total // steps``-th from 0. That 15 of 1000 are 16 is as released.

    Raises:
        PolyditError: fewer than one, or more than there are.
    """
    if not 1 <= steps <= total:
        raise PolyditError(f"steps {steps}: of a sampler with {total} indices; give 1 to {total}")
    return list(range(0, total, total // steps))


class MMDFinetuning:
    """MMD-DDM, "Fast Inference in Denoising Diffusion Models via MMD Finetuning" (arXiv 2301.07969).

    The sampler is run with gradients, all its steps, and its samples are held against data by the maximum mean
    discrepancy of features. Features that also judge the result flatter it: keep another space for that.

    Args:
        parameterization: what the network answers.
        times: of the sampler, descending; see :func:`~polydit.core.diffusion.index_times`.
        features: (B, C, ...) samples to (B, D), differentiable.
        kernel: of the features; the cubic polynomial unless given.
        recompute: keep no inner values of the network for the backward pass.
    """

    def __init__(
        self,
        parameterization: Parameterization,
        times: Sequence[float],
        features: Callable[[Tensor], Tensor],
        kernel: Kernel | None = None,
        recompute: bool = False,
    ) -> None:
        self.parameterization, self.times = parameterization, list(times)
        self.features, self.kernel, self.recompute = features, kernel, recompute

    def sample(self, denoise: Denoise, noise: Tensor) -> Tensor:
        """Samples (B, C, ...) from noise, with gradients; not clipped."""
        return ddim(denoise, noise, self.parameterization, self.times, recompute=self.recompute)

    def loss(self, denoise: Denoise, noise: Tensor, real: Tensor) -> Tensor:
        """The distance of as many samples from as many real ones; may be below zero."""
        if len(noise) != len(real):
            raise PolyditError(f"MMD: {len(noise)} samples and {len(real)} real ones; give as many")
        return self.distance(self.sample(denoise, noise), real)

    def distance(self, samples: Tensor, real: Tensor) -> Tensor:
        """That of samples (B, C, ...) from real ones, with gradients."""
        return kernel_distance(self.features(samples).flatten(1), self.features(real).flatten(1), self.kernel)
