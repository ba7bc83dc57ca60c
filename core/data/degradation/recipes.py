"""Degradation recipes: which steps, in which order, with which ranges."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .kernels import Dice, draw_blur_kernel, draw_sinc_kernel, gaussian
from .operations import RESIZE_MODES

__all__ = ["REAL_ESRGAN", "REAL_ESRGAN_MILD", "RECIPES", "Order", "TwoOrder"]

Step = dict[str, Any]


@dataclass(frozen=True)
class Order:
    """Ranges of one order of the Real-ESRGAN recipe.

    Attributes:
        blur_probability: how often the order begins with a blur.
        sigma: standard deviations of the blur kernels, pixels.
        resize: probabilities of enlarging, reducing, keeping.
        factor: lowest and highest factor of that resize (split at 1).
        gaussian_probability: Gaussian noise, else Poisson.
        gaussian: standard deviations of Gaussian noise, 8-bit levels.
        poisson: scales of Poisson noise.
        gray_probability: how often the noise is the same in all channels.
        quality: of the JPEG compression.
    """

    blur_probability: float
    sigma: tuple[float, float]
    resize: tuple[float, float, float]
    factor: tuple[float, float]
    gaussian: tuple[float, float]
    poisson: tuple[float, float]
    quality: tuple[float, float]
    gaussian_probability: float = 0.5
    gray_probability: float = 0.4

    def draw_factor(self, dice: Dice) -> float:
        """A resize factor."""
        what = dice.pick(("up", "down", "keep"), self.resize)
        if what == "up":
            return dice.uniform(1, self.factor[1])
        return dice.uniform(self.factor[0], 1) if what == "down" else 1.0

    def draw_noise(self, dice: Dice) -> Step:
        """A noise step."""
        kind = "gaussian" if dice.chance(self.gaussian_probability) else "poisson"
        strength = dice.uniform(*(self.gaussian if kind == "gaussian" else self.poisson))
        return {
            "op": "noise",
            "kind": kind,
            "strength": strength,
            "gray": dice.chance(self.gray_probability),
            "seed": dice.seed(),
        }


@dataclass(frozen=True)
class TwoOrder:
    """Blur, resize, noise and JPEG, twice, with a sinc filter at the end (Real-ESRGAN, arXiv:2107.10833)."""

    first: Order
    second: Order

    def __call__(self, dice: Dice, size: tuple[int, int], scale: int) -> list[Step]:
        """Draw the steps for one picture of this (height, width)."""
        low = (size[0] // scale, size[1] // scale)
        steps: list[Step] = []
        one, two = self.first, self.second
        if dice.chance(one.blur_probability):
            steps.append({"op": "blur", "kernel": draw_blur_kernel(dice, one.sigma)})
        # At least one pixel must be left, whatever the factor.
        factor = max(one.draw_factor(dice), 1.001 / min(size))
        steps.append({"op": "resize", "factor": factor, "mode": dice.pick(RESIZE_MODES)})
        steps.append(one.draw_noise(dice))
        steps.append({"op": "jpeg", "quality": dice.uniform(*one.quality)})

        if dice.chance(two.blur_probability):
            steps.append({"op": "blur", "kernel": draw_blur_kernel(dice, two.sigma)})
        factor = two.draw_factor(dice)
        between = [max(1, int(size[0] / scale * factor)), max(1, int(size[1] / scale * factor))]
        steps.append({"op": "resize", "size": between, "mode": dice.pick(RESIZE_MODES)})
        steps.append(two.draw_noise(dice))
        final = [
            {"op": "resize", "size": list(low), "mode": dice.pick(RESIZE_MODES)},
            {"op": "blur", "kernel": draw_sinc_kernel(dice)},
        ]
        compressed = {"op": "jpeg", "quality": dice.uniform(*two.quality)}
        steps += [*final, compressed] if dice.chance(0.5) else [compressed, *final]
        return [*steps, {"op": "quantize"}]


REAL_ESRGAN = TwoOrder(
    first=Order(
        1.0, (0.2, 3.0), (0.2, 0.7, 0.1), (0.15, 1.5), gaussian=(1, 30), poisson=(0.05, 3.0), quality=(30, 95)
    ),
    second=Order(
        0.8, (0.2, 1.5), (0.3, 0.4, 0.3), (0.3, 1.2), gaussian=(1, 25), poisson=(0.05, 2.5), quality=(30, 95)
    ),
)
# The milder numbers that DiT4SR's loader also has.
REAL_ESRGAN_MILD = TwoOrder(
    first=Order(
        1.0, (0.2, 3.0), (0.2, 0.7, 0.1), (0.3, 1.5), gaussian=(1, 15), poisson=(0.05, 2.0), quality=(60, 95)
    ),
    second=Order(
        0.5, (0.2, 1.5), (0.3, 0.4, 0.3), (0.6, 1.2), gaussian=(1, 12), poisson=(0.05, 1.0), quality=(60, 100)
    ),
)


def _bicubic(dice: Dice, size: tuple[int, int], scale: int) -> list[Step]:
    return [{"op": "pillow_bicubic", "size": [size[0] // scale, size[1] // scale]}]


def _mild(dice: Dice, size: tuple[int, int], scale: int) -> list[Step]:
    """One order of moderate strength: Gaussian blur, bicubic reduction, Gaussian noise, JPEG."""
    steps: list[Step] = []
    if dice.chance(0.8):
        steps.append({"op": "blur", "kernel": gaussian(13, dice.uniform(0.2, 2.0))})
    steps.append({"op": "bicubic", "size": [size[0] // scale, size[1] // scale]})
    if dice.chance(0.8):
        noise = {
            "op": "noise",
            "kind": "gaussian",
            "strength": dice.uniform(0.5, 8.0),
            "gray": dice.chance(0.4),
        }
        steps.append({**noise, "seed": dice.seed()})
    if dice.chance(0.8):
        steps.append({"op": "jpeg", "quality": dice.uniform(60, 95)})
    return [*steps, {"op": "quantize"}]


def _bsrgan_light(dice: Dice, size: tuple[int, int], scale: int) -> list[Step]:
    """The light variant of BSRGAN (arXiv:2103.14006) that the released latent diffusion upscaler was trained on.

    A shuffled order of blur, resize, final resize, faint noise and JPEG, sometimes after halving, always before a last
    JPEG. The strength of the blur follows BSRGAN's widths divided by four; JPEG quality is 80 to 95.
    """
    steps: list[Step] = []
    height, width = size
    low = [height // scale, width // scale]
    left = scale
    if scale == 4 and dice.chance(0.25):
        height, width, left = height // 2, width // 2, 2
        steps.append({"op": "resize", "size": [height, width], "mode": dice.pick(RESIZE_MODES)})
    order = dice.pick_order(("blur", "resize", "final", "noise", "jpeg"))
    # The final resize comes after the other one.
    first, second = sorted((order.index("resize"), order.index("final")))
    order[first], order[second] = "resize", "final"
    for what in order:
        if what == "blur":
            wide, narrow = (4 + left) / 4, (2 + 0.2 * left) / 4
            taps = 2 * dice.integer(2, 11) + 3
            if dice.chance(0.5):
                along, across = max(0.05, dice.uniform(0, wide)), max(0.05, dice.uniform(0, wide))
                kernel = gaussian(taps, along, across, theta=dice.uniform(0, math.pi))
            else:
                kernel = gaussian(taps, max(0.05, dice.uniform(0, narrow)))
            steps.append({"op": "blur", "kernel": kernel})
        elif what == "resize" and dice.chance(0.2):
            kernel = {**gaussian(25, dice.uniform(0.1, 0.6 * left)), "offset": (left - 1) / 2}
            steps.append({"op": "subsample", "kernel": kernel, "factor": left})
        elif what == "resize":
            factor = dice.uniform(1, 2 * left)
            reduced = [max(1, int(height / factor)), max(1, int(width / factor))]
            steps.append({"op": "resize", "size": reduced, "mode": dice.pick(RESIZE_MODES)})
        elif what == "final":
            steps.append({"op": "resize", "size": low, "mode": dice.pick(RESIZE_MODES)})
        elif what == "noise":
            steps.append(
                {
                    "op": "noise",
                    "kind": "gaussian",
                    "strength": dice.uniform(1, 2),
                    "gray": dice.chance(0.4),
                    "seed": dice.seed(),
                }
            )
        elif what == "jpeg" and dice.chance(0.9):
            steps.append({"op": "jpeg", "quality": dice.uniform(80, 95)})
    return [*steps, {"op": "jpeg", "quality": dice.uniform(80, 95)}, {"op": "quantize"}]


RECIPES: dict[str, Callable[[Dice, tuple[int, int], int], list[Step]]] = {
    "bicubic": _bicubic,
    "mild": _mild,
    "real_esrgan": REAL_ESRGAN,
    "real_esrgan_mild": REAL_ESRGAN_MILD,
    "bsrgan_light": _bsrgan_light,
}
