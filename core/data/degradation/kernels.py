"""Blur kernels as small JSON-able descriptions, and the tensors they stand for.

The shapes are those of Real-ESRGAN (Wang et al., "Real-ESRGAN: Training Real-World Blind Super-Resolution with Pure
Synthetic Data", arXiv:2107.10833): Gaussians, generalised Gaussians and plateaus, isotropic or not, and the circular
low-pass (sinc) filter that draws the ringing of sharpening and compression.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "Dice",
    "blur",
    "draw_blur_kernel",
    "draw_sinc_kernel",
    "gaussian",
    "gaussian_1d",
    "make_kernel",
    "separable_blur",
]

_SIZES = tuple(range(7, 22, 2))
_KINDS = {
    "iso": 0.45,
    "aniso": 0.25,
    "generalized_iso": 0.12,
    "generalized_aniso": 0.03,
    "plateau_iso": 0.12,
    "plateau_aniso": 0.03,
}


class Dice:
    """Draws plain Python numbers from one `torch.Generator`, so that they can be written down."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def uniform(self, low: float, high: float) -> float:
        """A number in [low, high)."""
        return low + (high - low) * torch.rand((), generator=self.generator, dtype=torch.float64).item()

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self.uniform(0, 1) < probability

    def integer(self, low: int, high: int) -> int:
        """A whole number in [low, high], both included."""
        return int(torch.randint(low, high + 1, (), generator=self.generator).item())

    def pick(self, options: Any, weights: Any = None) -> Any:
        """One of the options, by weight if weights are given."""
        options = list(options)
        if weights is None:
            return options[self.integer(0, len(options) - 1)]
        point = self.uniform(0, sum(weights))
        for option, weight in zip(options, weights, strict=True):
            point -= weight
            if point < 0:
                return option
        return options[-1]

    def pick_order(self, options: Any) -> list[Any]:
        """The options in a random order."""
        options = list(options)
        return [options[i] for i in torch.randperm(len(options), generator=self.generator).tolist()]

    def seed(self) -> int:
        """A seed for the noise of one step."""
        return self.integer(0, 2**31 - 1)


def gaussian(size: int, sigma: float, across: float | None = None, theta: float = 0.0) -> dict[str, Any]:
    """Description of a Gaussian: `sigma` along the axis at angle `theta`, `across` (default the same) across it."""
    both = [sigma, sigma if across is None else across]
    return {"shape": "gaussian", "size": size, "sigma": both, "theta": theta}


def draw_blur_kernel(dice: Dice, sigma: tuple[float, float], sinc_probability: float = 0.1) -> dict[str, Any]:
    """Draw a kernel of the Real-ESRGAN mixture.

    Args:
        dice: where the numbers come from.
        sigma: range of the standard deviations, in pixels.
        sinc_probability: how often a sinc kernel is drawn instead.

    Returns:
        the description that `make_kernel` takes.
    """
    size = dice.pick(_SIZES)
    if dice.chance(sinc_probability):
        low = math.pi / 3 if size < 13 else math.pi / 5
        return {"shape": "sinc", "size": size, "cutoff": dice.uniform(low, math.pi)}
    kind = dice.pick(_KINDS, _KINDS.values())
    kernel = gaussian(size, dice.uniform(*sigma))
    if kind.endswith("aniso"):
        kernel["sigma"][1] = dice.uniform(*sigma)
        kernel["theta"] = dice.uniform(-math.pi, math.pi)
    if kind.startswith("generalized"):
        beta = dice.uniform(0.5, 1) if dice.chance(0.5) else dice.uniform(1, 4)
        kernel.update(shape="generalized", beta=beta)
    elif kind.startswith("plateau"):
        beta = 1.0 if dice.chance(0.5) else dice.uniform(1, 2)
        kernel.update(shape="plateau", beta=beta)
    return kernel


def draw_sinc_kernel(dice: Dice, probability: float = 0.8) -> dict[str, Any]:
    """Draw the last filter of the recipe: a sinc kernel, or nothing (a delta)."""
    if not dice.chance(probability):
        return {"shape": "delta", "size": 1}
    return {"shape": "sinc", "size": dice.pick(_SIZES), "cutoff": dice.uniform(math.pi / 3, math.pi)}


def make_kernel(kernel: dict[str, Any], size: int | None = None) -> Tensor:
    """The kernel that a description stands for.

    With d^2 = r^T Sigma^-1 r: ``gaussian`` exp(-d^2/2), ``generalized`` exp(-(d^2)^beta/2), ``plateau``
    1/(1+(d^2)^beta); ``sinc`` w J1(w r)/(2 pi r); ``delta`` one at the centre.

    Args:
        kernel: ``shape``, ``size`` and the numbers of that shape; ``offset`` moves the centre down and to the right.
        size: pad with zeros to this odd size.

    Returns:
        (size, size) float32 that sums to one.
    """
    own = kernel["size"]
    axis = torch.arange(own, dtype=torch.float64) - (own - 1) / 2 - kernel.get("offset", 0.0)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    shape = kernel["shape"]
    if shape == "delta":
        values = ((x == 0) & (y == 0)).double()
    elif shape == "sinc":
        cutoff, radius = kernel["cutoff"], torch.sqrt(x * x + y * y)
        safe = torch.where(radius == 0, 1.0, radius)
        ring = cutoff * torch.special.bessel_j1(cutoff * safe) / (2 * math.pi * safe)
        values = torch.where(radius == 0, cutoff**2 / (4 * math.pi), ring)
    else:
        cos, sin = math.cos(kernel["theta"]), math.sin(kernel["theta"])
        along, across = x * cos + y * sin, -x * sin + y * cos
        squared = (along / kernel["sigma"][0]) ** 2 + (across / kernel["sigma"][1]) ** 2
        if shape == "gaussian":
            values = torch.exp(-0.5 * squared)
        elif shape == "generalized":
            values = torch.exp(-0.5 * squared ** kernel["beta"])
        elif shape == "plateau":
            values = 1 / (1 + squared ** kernel["beta"])
        else:
            raise ValueError(f"unknown kernel shape {shape!r}")
    values = (values / values.sum()).float()
    if size is not None and size > own:
        margin = (size - own) // 2
        values = torch.nn.functional.pad(values, (margin, size - own - margin, margin, size - own - margin))
    return values


def gaussian_1d(size: int, sigma: float) -> Tensor:
    """(size,) float32 Gaussian that sums to one."""
    axis = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    values = torch.exp(-0.5 * (axis / sigma) ** 2)
    return (values / values.sum()).float()


def blur(images: Tensor, kernels: Tensor) -> Tensor:
    """Filter with one kernel for each sample, with mirrored borders.

    Args:
        images: (B, C, H, W).
        kernels: (B, k, k), or (k, k) for all; k odd.

    Returns:
        (B, C, H, W).
    """
    batch, channels, height, width = images.shape
    size = kernels.shape[-1]
    padded = _mirror(images, size // 2, size // 2)
    kernels = kernels.to(images).expand(batch, size, size)
    if size >= 13 and images.device.type == "cpu" and images.dtype == torch.float32:
        # Three times faster than a depthwise convolution; wrapping touches only what is cut away.
        shape = (_fast_length(padded.shape[-2]), _fast_length(padded.shape[-1]))
        spectrum = torch.fft.rfft2(padded, s=shape) * torch.fft.rfft2(kernels.flip(-1, -2)[:, None], s=shape)
        return torch.fft.irfft2(spectrum, s=shape)[
            ..., size - 1 : size - 1 + height, size - 1 : size - 1 + width
        ]
    weight = (
        kernels[:, None, None].expand(batch, channels, 1, size, size).reshape(batch * channels, 1, size, size)
    )
    flat = padded.reshape(1, batch * channels, *padded.shape[-2:])
    return torch.nn.functional.conv2d(flat, weight, groups=batch * channels).view(
        batch, channels, height, width
    )


def separable_blur(images: Tensor, profile: Tensor) -> Tensor:
    """Filter (B, C, H, W) along both axes with the same (k,) profile, with mirrored borders."""
    batch, channels, height, width = images.shape
    size = profile.shape[0]
    margin = size // 2
    profile = profile.to(images)
    if max(height, width) <= 384 and images.device.type == "cpu":
        # Crops are small: two products with banded matrices beat two thin convolutions.
        return _band(height, profile) @ images @ _band(width, profile).T
    flat = _mirror(images, 0, margin).reshape(batch * channels, 1, height, width + 2 * margin)
    flat = torch.nn.functional.conv2d(flat, profile.view(1, 1, 1, size))
    flat = _mirror(flat, margin, 0)
    flat = torch.nn.functional.conv2d(flat, profile.view(1, 1, size, 1))
    return flat.view(batch, channels, height, width)


def _band(length: int, profile: Tensor) -> Tensor:
    """(length, length) matrix that filters a mirrored signal."""
    margin = profile.shape[0] // 2
    source = torch.arange(length)[:, None] + torch.arange(-margin, margin + 1)[None]
    if margin < length:
        source = source.abs()
        source = torch.where(source >= length, 2 * (length - 1) - source, source)
    else:
        source = source.clamp(0, length - 1)
    return profile.new_zeros(length, length).scatter_add_(1, source, profile.expand(length, -1))


def _fast_length(length: int) -> int:
    """The next length whose only prime factors are 2, 3 and 5."""
    while True:
        rest = length
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return length
        length += 1


def _mirror(images: Tensor, rows: int, columns: int) -> Tensor:
    # Reflection needs more pixels than it adds; a picture smaller than the kernel repeats its border instead.
    mode = "reflect" if rows < images.shape[-2] and columns < images.shape[-1] else "replicate"
    return torch.nn.functional.pad(images, (columns, columns, rows, rows), mode=mode)
