"""The steps of a degradation: pure functions of an image and numbers that are written in a record.

Images are (C, H, W) float in [0, 1]. Noise is drawn from a generator seeded by the record, on the CPU, so a record
means the same everywhere.
"""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .kernels import blur, gaussian_1d, make_kernel, separable_blur

__all__ = ["add_noise", "apply_step", "bicubic", "jpeg", "pillow_bicubic", "quantize", "usm_sharpen"]

RESIZE_MODES = ("area", "bilinear", "bicubic")


def bicubic(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (B, C, H, W) or (C, H, W) as Pillow's BICUBIC does: a = -0.5, antialiased when the picture shrinks.

    Not clamped; after rounding to 8 bits it agrees with Pillow within one level.
    """
    single = images.dim() == 3
    out = F.interpolate(images[None] if single else images, size=size, mode="bicubic", antialias=True)
    return out[0] if single else out


def pillow_bicubic(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (3, H, W) by Pillow itself, in 8 bits: what test sets are made with.

    `bicubic` differs from it by one level in a tenth of the pixels, since Pillow rounds between its two passes.
    """
    picture = Image.fromarray(_pixels(image)).resize((size[1], size[0]), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).to(image) / 255


def quantize(image: Tensor) -> Tensor:
    """Clamp to [0, 1] and round to 8 bits."""
    return (image.clamp(0, 1) * 255).round() / 255


def jpeg(image: Tensor, quality: float, *, differentiable: bool = False) -> Tensor:
    """Write as JPEG with 4:2:0 chroma and read it back.

    Args:
        image: (3, H, W) in [0, 1].
        quality: 1 to 100; Pillow takes it rounded.
        differentiable: use kornia's tensor codec, which stays on the image's device and passes gradients, but is half a
            decibel closer to the original than a real encoder.

    Returns:
        (3, H, W) in [0, 1].
    """
    if differentiable:
        from kornia.enhance import jpeg_codec_differentiable

        return jpeg_codec_differentiable(
            image[None].clamp(0, 1), torch.tensor([float(quality)], device=image.device)
        )[0]
    buffer = io.BytesIO()
    Image.fromarray(_pixels(image)).save(buffer, "JPEG", quality=round(quality), subsampling=2)
    buffer.seek(0)
    back = torch.from_numpy(np.asarray(Image.open(buffer)).copy())
    return back.permute(2, 0, 1).to(image) / 255


def add_noise(image: Tensor, *, kind: str, strength: float, gray: bool, seed: int) -> Tensor:
    """Add Gaussian or Poisson noise and clamp.

    Args:
        image: (3, H, W) in [0, 1].
        kind: ``gaussian`` or ``poisson``.
        strength: of Gaussian noise the standard deviation in 8-bit levels; of Poisson noise a factor on the shot noise
            that the picture's own number of levels gives.
        gray: the same noise in all channels.
        seed: of the noise.
    """
    generator = torch.Generator().manual_seed(seed)
    if kind == "gaussian":
        shape = (1 if gray else image.shape[0], *image.shape[1:])
        noise = torch.randn(shape, generator=generator) * (strength / 255)
    elif kind == "poisson":
        source = quantize(image.cpu())
        if gray:
            source = (source * torch.tensor([0.2989, 0.587, 0.114]).view(3, 1, 1)).sum(0, keepdim=True)
            source = quantize(source)
        levels = (torch.bincount((source * 255).round().long().flatten(), minlength=256) > 0).sum().item()
        peak = 2.0 ** math.ceil(math.log2(levels))
        noise = (torch.poisson(source * peak, generator=generator) / peak - source) * strength
    else:
        raise ValueError(f"unknown noise {kind!r}")
    return (image + noise.to(image)).clamp(0, 1)


def usm_sharpen(image: Tensor, *, weight: float = 0.5, radius: int = 51, threshold: float = 10.0) -> Tensor:
    """Unsharp masking as Real-ESRGAN does it to its targets.

    Args:
        image: (C, H, W) in [0, 1].
        weight: how much of the residual is added.
        radius: size of the Gaussian, odd; its standard deviation follows OpenCV's rule (8.0 for 51).
        threshold: residuals up to this many 8-bit levels are left alone, by a softened mask.
    """
    profile = gaussian_1d(radius, 0.3 * ((radius - 1) * 0.5 - 1) + 0.8)
    batch = image[None]
    residual = batch - separable_blur(batch, profile)
    mask = separable_blur((residual.abs() * 255 > threshold).to(image), profile)
    sharp = (batch + weight * residual).clamp(0, 1)
    return (mask * sharp + (1 - mask) * batch)[0]


def apply_step(image: Tensor, step: dict[str, Any], *, differentiable_jpeg: bool = False) -> Tensor:
    """Carry out one step of a record.

    Args:
        image: (3, H, W) in [0, 1].
        step: ``{"op": ...}`` with ``blur``, ``resize``, ``bicubic``, ``pillow_bicubic``, ``subsample``,
            ``noise``, ``jpeg`` or ``quantize``, and the numbers of that step.
        differentiable_jpeg: see `jpeg`.

    Raises:
        ValueError: an unknown step.
    """
    op = step["op"]
    if op == "blur":
        return _filter(image, step["kernel"])
    if op == "resize":
        mode = step["mode"]
        options: dict[str, Any] = {} if mode == "area" else {"align_corners": False}
        # Without antialiasing on purpose: this is what the recipe was published with.
        if "factor" in step:
            return F.interpolate(image[None], scale_factor=step["factor"], mode=mode, **options)[0]
        return F.interpolate(image[None], size=tuple(step["size"]), mode=mode, **options)[0]
    if op == "bicubic":
        return bicubic(image, (step["size"][0], step["size"][1]))
    if op == "pillow_bicubic":
        return pillow_bicubic(image, (step["size"][0], step["size"][1]))
    if op == "subsample":
        factor = step["factor"]
        return _filter(image, step["kernel"])[:, ::factor, ::factor].clamp(0, 1)
    if op == "noise":
        return add_noise(
            image, kind=step["kind"], strength=step["strength"], gray=step["gray"], seed=step["seed"]
        )
    if op == "jpeg":
        return jpeg(image.clamp(0, 1), step["quality"], differentiable=differentiable_jpeg)
    if op == "quantize":
        return quantize(image)
    raise ValueError(f"unknown degradation step {op!r}")


def _pixels(image: Tensor) -> np.ndarray:
    """(3, H, W) in [0, 1] to (H, W, 3) uint8."""
    return np.ascontiguousarray(
        (image.detach().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    )


def _filter(image: Tensor, kernel: dict[str, Any]) -> Tensor:
    if kernel["shape"] == "delta":
        return image
    separable = (
        kernel["shape"] == "gaussian"
        and kernel["sigma"][0] == kernel["sigma"][1]
        and not kernel.get("offset")
    )
    if separable:
        return separable_blur(image[None], gaussian_1d(kernel["size"], kernel["sigma"][0]))[0]
    return blur(image[None], make_kernel(kernel))[0]
