"""Degradations that can be replayed: every random number of a low-quality picture is in a record that JSON can hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...errors import PolyditError
from .kernels import Dice
from .operations import apply_step, bicubic, jpeg, quantize, usm_sharpen
from .recipes import RECIPES

__all__ = ["PRESETS", "Degradation", "Degraded", "bicubic", "jpeg", "quantize", "replay", "usm_sharpen"]

PRESETS = tuple(RECIPES)


@dataclass(frozen=True)
class Degraded:
    """A pair made by a degradation.

    Attributes:
        lq: (3, H/scale, W/scale) in [0, 1], on 8-bit levels.
        gt: (3, H, W) in [0, 1]: the target, sharpened if the degradation was asked to.
        record: what was drawn; `replay` gives the same `lq` and `gt` from it.
    """

    lq: Tensor
    gt: Tensor
    record: dict[str, Any]


class Degradation:
    """Turns a high-quality picture into a low-quality one.

    Each sample has draws of its own (kernels, factors, noise), so a batch needs no queue that mixes factors.

    Args:
        preset: ``bicubic`` (as Pillow), ``mild`` (one order: blur, bicubic, noise, JPEG), ``real_esrgan`` (two orders,
            arXiv:2107.10833), ``real_esrgan_mild``, ``bsrgan_light`` (as the released LDM upscaler, arXiv:2112.10752).
        scale: whole factor between target and low-quality picture.
        sharpen: unsharp-mask the target first, as Real-ESRGAN does.
        differentiable_jpeg: kornia's JPEG on tensors in place of Pillow's; for large batches on a GPU.

    Raises:
        PolyditError: unknown preset, or a scale below 1.
    """

    def __init__(
        self,
        preset: str = "bicubic",
        scale: int = 4,
        *,
        sharpen: bool = False,
        differentiable_jpeg: bool = False,
    ) -> None:
        if preset not in RECIPES:
            raise PolyditError(f"degradation '{preset}': unknown; choose from {', '.join(PRESETS)}")
        if not isinstance(scale, int) or scale < 1:
            raise PolyditError(f"degradation scale {scale}: must be a whole number from 1 on")
        self.preset, self.scale, self.sharpen, self.differentiable_jpeg = (
            preset,
            scale,
            sharpen,
            differentiable_jpeg,
        )

    def draw(self, size: tuple[int, int], generator: torch.Generator) -> dict[str, Any]:
        """Draw a record for a picture of this (height, width).

        Raises:
            PolyditError: a side that the scale does not divide.
        """
        if size[0] % self.scale or size[1] % self.scale or min(size) < self.scale:
            raise PolyditError(
                f"degradation: {size[1]}x{size[0]} is not a multiple of scale {self.scale}; crop it first"
            )
        steps = RECIPES[self.preset](Dice(generator), (int(size[0]), int(size[1])), self.scale)
        return {
            "preset": self.preset,
            "scale": self.scale,
            "size": [int(size[0]), int(size[1])],
            "sharpen": self.sharpen,
            "steps": steps,
        }

    def __call__(self, image: Tensor, generator: torch.Generator) -> Degraded:
        """Degrade one picture.

        Args:
            image: (3, H, W) float in [0, 1]; H and W are multiples of the scale.
            generator: source of every draw.
        """
        record = self.draw((image.shape[-2], image.shape[-1]), generator)
        lq, gt = replay(image, record, differentiable_jpeg=self.differentiable_jpeg)
        return Degraded(lq, gt, record)


def replay(
    image: Tensor, record: dict[str, Any], *, differentiable_jpeg: bool = False
) -> tuple[Tensor, Tensor]:
    """Repeat a degradation.

    Args:
        image: the (3, H, W) picture in [0, 1] that the record was drawn for.
        record: of `Degradation`, as it is or after a round through JSON.
        differentiable_jpeg: as it was.

    Returns:
        the low-quality picture and the target, bit-identical to the first time on the same machine.

    Raises:
        PolyditError: the picture has another size than the record.
    """
    if list(image.shape[-2:]) != list(record["size"]):
        height, width = record["size"]
        raise PolyditError(
            f"degradation record: drawn for {width}x{height}, but the picture is {image.shape[-1]}x{image.shape[-2]}"
        )
    gt = usm_sharpen(image) if record["sharpen"] else image
    lq = gt
    for step in record["steps"]:
        lq = apply_step(lq, step, differentiable_jpeg=differentiable_jpeg)
    return lq, gt
