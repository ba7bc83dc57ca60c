"""Fine-tuning a few-step sampler by ``fit``: the kernel distance of its samples from the data as an objective."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn

from ..diffusion import Denoise, Objective, ObjectiveOutput, Path, TimeConvention, TimestepSampler, shift_time
from ..errors import PolyditError
from ..metrics.kernel import gaussian_kernel, polynomial_kernel
from .mmd_finetuning import MMDFinetuning

__all__ = ["MMDObjective", "RandomFeatures"]

KernelName = Literal["polynomial", "gaussian"]


class RandomFeatures:
    """Features of any data without weights of anybody: responses to fixed random filters at several sizes.

    On a grid (pictures, video, voxels, latents) each level halves the resolution of the one before and keeps, of each
    of ``cells`` cells along an axis, the mean of every channel and the mean size of every filter's response; filters
    are 3 wide and blind to constants. With one axis, the points of a cloud, filters look at one point at a time and the
    means are over all points, whose order means nothing.

    Args:
        width: filters of a level.
        levels: how many; an axis of less than 6 is halved no more, and where none is left the levels end.
        cells: along each axis, in which means are taken.
        seed: of the filters.

    Raises:
        PolyditError: a number is less than 1.
    """

    def __init__(self, width: int = 32, levels: int = 3, cells: int = 4, seed: int = 0) -> None:
        if min(width, levels, cells) < 1:
            raise PolyditError(
                f"features: width {width}, levels {levels}, cells {cells}; give 1 or more of each"
            )
        self.width, self.levels, self.cells, self.seed = width, levels, cells, seed
        self._filters: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}

    def __call__(self, samples: Tensor) -> Tensor:
        """Features (B, D) of samples (B, C, N), (B, C, H, W) or (B, C, T, H, W), differentiable.

        Raises:
            PolyditError: samples of another number of axes.
        """
        axes = samples.ndim - 2
        if axes not in (1, 2, 3):
            raise PolyditError(
                f"features: samples of shape {tuple(samples.shape)}; random filters take one to three axes"
            )
        if axes == 1:
            found = [self._means(samples)]
            for weight, bias in self._of(samples.shape[1], axes):
                found.append(self._means(F.conv1d(samples, weight.to(samples), bias.to(samples)).abs()))
            return torch.cat(found, dim=1)
        convolve, shrink = (F.conv2d, F.avg_pool2d) if axes == 2 else (F.conv3d, F.avg_pool3d)
        found = []
        for level, (weight, _) in enumerate(self._of(samples.shape[1], axes)):
            if level:
                factors = [2 if size >= 6 else 1 for size in samples.shape[2:]]  # a clip may have one frame
                if max(factors) == 1:
                    break
                samples = shrink(samples, factors)
            wider = F.pad(samples, [1, 1] * axes, mode="replicate")
            found += [self._means(samples), self._means(convolve(wider, weight.to(samples)).abs())]
        return torch.cat(found, dim=1)

    def _means(self, values: Tensor) -> Tensor:
        """(B, C, ...) -> (B, C cells^axes); of a cloud (B, C)."""
        if values.ndim == 3:
            return values.mean(2)
        pool: Any = F.adaptive_avg_pool2d if values.ndim == 4 else F.adaptive_avg_pool3d
        return pool(values, [min(self.cells, size) for size in values.shape[2:]]).flatten(1)

    def _of(self, channels: int, axes: int) -> list[tuple[Tensor, Tensor]]:
        """Filters and biases of each level; the same for a seed on every machine."""
        if (channels, axes) not in self._filters:
            generator = torch.Generator().manual_seed(self.seed)
            shape = (self.width, channels, *([1] if axes == 1 else [3] * axes))
            made = []
            for _ in range(self.levels):
                weight = torch.randn(shape, generator=generator, device="cpu")
                bias = torch.randn(self.width, generator=generator, device="cpu")
                if axes > 1:
                    space = tuple(range(2, axes + 2))
                    weight, bias = weight - weight.mean(space, keepdim=True), torch.zeros_like(bias)
                made.append((weight / weight[0].numel() ** 0.5, bias))
            self._filters[channels, axes] = made
        return self._filters[channels, axes]


class MMDObjective(Objective):
    """MMD-DDM as an objective, "Fast Inference in Denoising Diffusion Models via MMD Finetuning" (arXiv 2301.07969).

    A call runs the whole deterministic sampler, with gradients, from noise to samples, and its loss is the maximum mean
    discrepancy of features of the samples from those of the clean data of the batch. The times that a module draws are
    not used. It fine-tunes: start from trained weights (``init_weights``) with a small learning rate.

    The distance is one of two sets: no sample is held against its own truth. What a task adds to the loss sees the
    samples as ``x0`` and is what ties them to their condition. Features that also judge the result flatter it: keep
    another space for the judgement.

    What is saved is an ordinary pipeline; sample it with ``steps`` steps of ``euler`` or ``ddim``, whose times, with
    the shift of ``timesteps``, are those of the training.

    Args:
        steps: of the sampler; of a network in discrete time a divisor of their number, as DDIM wants it.
        features: of samples (B, C, ...), any callable or module, which is frozen, to (B, D), differentiable; None is
            :class:`RandomFeatures`.
        kernel: ``polynomial``, the cubic one as published, or ``gaussian``.
        gamma: of the kernel; None is 1 / D.
        recompute: keep no inner values of the network for the backward pass: memory of one step, a third more time.
        path: as in :class:`~polydit.core.diffusion.Objective`, and as the weights were trained.
        prediction: likewise.
        timesteps: only its ``shift`` is read, if it has one.
        time: as in :class:`~polydit.core.diffusion.Objective`.
        time_range: likewise; the sampler starts at the greatest.

    Raises:
        PolyditError: an option is out of range.
    """

    def __init__(
        self,
        steps: int = 5,
        features: Callable[..., Any]
        | None = None,  # a plainer type than it is: the parser takes no classes otherwise
        kernel: KernelName = "polynomial",
        gamma: float | None = None,
        recompute: bool = False,
        path: Path | None = None,
        prediction: str = "velocity",
        timesteps: TimestepSampler | None = None,
        time: TimeConvention | None = None,
        time_range: tuple[float, float] | None = None,
    ) -> None:
        super().__init__(path, prediction, timesteps=timesteps, time=time, time_range=time_range)
        most = int(self.time.scale) if self.time.discrete else 1000
        if not 1 <= steps <= most:
            raise PolyditError(
                f"--model.objective.steps {steps}: of the sampler that is trained; give 1 to {most}"
            )
        if kernel not in get_args(KernelName):
            raise PolyditError(
                f"--model.objective.kernel {kernel!r}: is unknown; choose from {', '.join(get_args(KernelName))}"
            )
        if gamma is not None and gamma <= 0:
            raise PolyditError(f"--model.objective.gamma {gamma:g}: give a number above 0, or null for 1 / D")
        self.steps = steps
        self.features = RandomFeatures() if features is None else features
        if isinstance(self.features, nn.Module):
            self.features.requires_grad_(False).eval()
        made = polynomial_kernel(3, gamma) if kernel == "polynomial" else gaussian_kernel(gamma)
        self.finetuning = MMDFinetuning(self, self.times(), self._describe, made, recompute)

    def times(self) -> list[float]:
        """Times of the sampler, steps + 1 of them, descending to 0: those that a pipeline takes."""
        shift = getattr(self.timesteps, "shift", 1.0)
        even = [shift_time(1 - i / self.steps, shift) for i in range(self.steps)]
        if self.time.discrete:  # whole indices, rounded as diffusers rounds its trailing ones
            even = [round(t * self.time.scale) / self.time.scale for t in even]
        return [*(min(t, self.time_range[1]) for t in even), 0.0]

    def __call__(
        self,
        denoise: Denoise,
        x0: Tensor,
        noise: Tensor | None = None,
        t: Tensor | None = None,
        generator: torch.Generator | None = None,
        element_weight: Tensor | None = None,
    ) -> ObjectiveOutput:
        """Sample once, and measure how far the samples are from the data.

        Args:
            denoise: The network with its conditions: ``(x_t, timestep) -> prediction``.
            x0: Clean data (B, C, ...), B of 2 or more.
            noise: Standard normal like x0, where the sampler starts; drawn if None.
            t: Not used.
            generator: Source of the noise.
            element_weight: Broadcastable to x0; elements of weight 0 are not judged: they are taken from the data.

        Returns:
            ``x0`` are the samples; ``x_t``, ``t`` and ``prediction`` are of the last step, which they come from;
            ``noise`` is the start. ``loss_per_sample`` is the loss, which no sample has alone, for each.

        Raises:
            PolyditError: a training batch of one, which has no distance within itself. Held-out data may end in one:
                its loss is then the distance of the pair, which is never below zero.
        """
        if len(x0) < 2 and torch.is_grad_enabled():
            raise PolyditError(
                "--data.batch_size 1: a distance between sets of samples needs 2 or more in a batch; raise it"
            )
        if noise is None:
            noise = randn_tensor(x0.shape, generator=generator, device=x0.device, dtype=x0.dtype)
        last: list[tuple[Tensor, Tensor, Tensor]] = []
        asked = 0

        def watch(x_t: Tensor, timestep: Tensor, /) -> Tensor:
            nonlocal asked
            raw = denoise(x_t, timestep)
            asked += 1
            if asked == self.steps:  # not what is computed again in the backward pass
                last.append((x_t, timestep, raw))
            return raw

        samples = self.finetuning.sample(watch, noise)
        x_t, _, raw = last[0]
        judged = samples if element_weight is None else torch.where(element_weight > 0, samples, x0)
        loss = self._of_a_pair(judged, x0) if len(x0) < 2 else self.finetuning.distance(judged, x0)
        loss = loss.float()
        per_sample = loss.expand(len(x0))
        return ObjectiveOutput(
            loss=loss,
            loss_per_sample=per_sample,
            x0=samples,
            x_t=x_t,
            t=torch.full((len(x0),), self.finetuning.times[-2], device=x0.device),
            noise=noise,
            prediction=raw,
            terms={"mmd": per_sample.detach()},
        )

    def _describe(self, samples: Tensor) -> Tensor:
        """Features in full precision: the distance is a small difference of large numbers."""
        if isinstance(self.features, nn.Module):
            self.features.to(samples.device)
        with torch.autocast(samples.device.type, enabled=False):
            found = self.features(samples.float())
        if found.ndim < 2 or len(found) != len(samples):
            raise PolyditError(
                f"--model.objective.features: of {len(samples)} samples they are {tuple(found.shape)}; "
                "they must be (samples, features)"
            )
        return found

    def _of_a_pair(self, sample: Tensor, real: Tensor) -> Tensor:
        a, b = (self._describe(value).flatten(1).double() for value in (sample, real))
        kernel = self.finetuning.kernel
        assert kernel is not None
        return (kernel(a, a) + kernel(b, b) - 2 * kernel(a, b)).squeeze()
