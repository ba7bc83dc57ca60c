"""Shadows and reflections for cut-outs: what an object does to its surroundings, as layers below it.

A shadow is a black layer whose alpha is its strength, so object over shadow over background is one foreground with one
alpha, ``1 - (1 - a_object)(1 - a_shadow)``, exactly (see ``polydit.core.alpha``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from torch import Tensor

from ...core.alpha import join, over

__all__ = ["ShadowOptions", "cast_shadow", "contact_shadow", "reflection", "with_effects"]

Map = NDArray[np.float32]
_FULL = np.float32(255)


@dataclass(frozen=True)
class ShadowOptions:
    """How effects are drawn. Pairs are ranges, drawn from uniformly.

    Attributes:
        shadow: probability of a cast shadow.
        contact: probability of a soft dark patch under the foot, alone or beside the cast shadow.
        reflection: probability of a reflection.
        intensity: alpha of a shadow where it is darkest.
        length: height of a shadow over that of the object; the sign, which way it falls, is drawn.
        slant: sideways shift per height of the object.
        blur: blur at the foot and at the far end, in shares of the picture's shorter side.
        reflectivity: alpha of a reflection at the foot.
    """

    shadow: float = 0.85
    contact: float = 0.4
    reflection: float = 0.12
    intensity: tuple[float, float] = (0.3, 0.7)
    length: tuple[float, float] = (0.15, 0.6)
    slant: tuple[float, float] = (-0.9, 0.9)
    blur: tuple[float, float] = (0.004, 0.035)
    reflectivity: tuple[float, float] = (0.15, 0.45)

    @classmethod
    def none(cls) -> ShadowOptions:
        """No effects."""
        return cls(shadow=0.0, contact=0.0, reflection=0.0)


def with_effects(cutout: Tensor, rng: np.random.Generator, options: ShadowOptions) -> tuple[Tensor, Tensor]:
    """A cut-out over its own shadow and reflection, as one layer.

    Args:
        cutout: (4, H, W) in [0, 1], straight alpha.
        rng: where it is drawn from.
        options: see :class:`ShadowOptions`.

    Returns:
        The foreground (4, H, W) and the alpha of the effects alone (1, H, W).
    """
    alpha = cutout[3].numpy()
    dark = np.zeros_like(alpha)
    intensity = rng.uniform(*options.intensity)
    if rng.random() < options.shadow:
        length = rng.uniform(*options.length) * (1 if rng.random() < 0.65 else -1)
        dark = cast_shadow(alpha, length, rng.uniform(*options.slant), options.blur) * intensity
    if rng.random() < options.contact:
        dark = np.maximum(dark, contact_shadow(alpha, rng.uniform(0.03, 0.1)) * intensity)
    shade = torch.from_numpy(dark.astype(np.float32))[None]
    effects = join(torch.zeros_like(shade).expand(3, -1, -1), shade)
    if rng.random() < options.reflection:
        mirrored = reflection(cutout, rng.uniform(*options.reflectivity), rng.uniform(0.3, 1.0))
        effects = over(mirrored, effects)
    return over(cutout, effects), effects[3:]


def cast_shadow(alpha: Map, length: float, slant: float, blur: tuple[float, float] = (0.004, 0.035)) -> Map:
    """The alpha of an object laid on the ground about its foot line.

    Args:
        alpha: (H, W) of the object.
        length: height of the shadow over that of the object; above 0 it falls away from the viewer (up in the
            picture), below 0 towards him.
        slant: sideways shift per height of the object.
        blur: at the foot and at the far end, in shares of the shorter side.

    Returns:
        (H, W) in [0, 1]; zeros for an empty object.
    """
    rows = np.flatnonzero((alpha > 0.5).any(1))
    if not len(rows):
        return np.zeros_like(alpha)
    foot, height = float(rows[-1]) + 1, float(rows[-1] - rows[0]) + 1
    # From a pixel of the shadow back to the object: h = (foot - y) / length above the foot, x - slant h across.
    back = (1.0, slant / length, -slant * foot / length, 0.0, 1 / length, foot - foot / length)
    laid = _transformed(alpha, back)
    side = min(alpha.shape)
    distance = np.abs(np.arange(alpha.shape[0], dtype=np.float32) + 0.5 - foot)[:, None]
    far = np.clip(distance / max(height * abs(length), 1), 0, 1)
    levels = [_blurred(laid, share * side) for share in np.linspace(*blur, 3)]
    position = far * (len(levels) - 1)
    weights = [np.clip(1 - np.abs(position - i), 0, 1) for i in range(len(levels))]
    return sum(level * weight for level, weight in zip(levels, weights, strict=True)).astype(np.float32)


def contact_shadow(alpha: Map, thickness: float) -> Map:
    """A soft patch where an object stands: its lowest part, laid flat and blurred.

    Args:
        alpha: (H, W) of the object.
        thickness: height of the patch over that of the object.
    """
    rows = np.flatnonzero((alpha > 0.5).any(1))
    if not len(rows):
        return np.zeros_like(alpha)
    foot, height = rows[-1] + 1, rows[-1] - rows[0] + 1
    lowest = alpha.copy()
    lowest[: int(foot - 0.08 * height)] = 0
    columns = lowest.max(0)
    reach = max(thickness * height, 1.0)
    profile = np.exp(-(((np.arange(alpha.shape[0]) + 0.5 - foot) / reach) ** 2))
    return _blurred((profile[:, None] * columns[None]).astype(np.float32), 0.5 * reach)


def reflection(cutout: Tensor, strength: float, reach: float) -> Tensor:
    """The mirror image below the foot line, fading out.

    Args:
        cutout: (4, H, W).
        strength: alpha at the foot.
        reach: where it has faded to a third, over the height of the object.

    Returns:
        (4, H, W).
    """
    alpha = cutout[3].numpy()
    rows = np.flatnonzero((alpha > 0.5).any(1))
    if not len(rows):
        return torch.zeros_like(cutout)
    foot, height = int(rows[-1]) + 1, int(rows[-1] - rows[0]) + 1
    mirrored = torch.zeros_like(cutout)
    count = min(cutout.shape[-2] - foot, foot)
    if count > 0:
        mirrored[:, foot : foot + count] = cutout[:, foot - count : foot].flip(-2)
        fade = torch.exp(-(torch.arange(count) + 0.5) / max(reach * height, 1.0))
        mirrored[3, foot : foot + count] *= strength * fade[:, None]
    return mirrored


def _transformed(values: Map, back: tuple[float, ...]) -> Map:
    """``values`` at the places that the affine map ``back`` gives for the pixels' middles; 0 outside."""
    picture = Image.fromarray(values.astype(np.float32), "F")
    moved = picture.transform(picture.size, Image.Transform.AFFINE, back, Image.Resampling.BILINEAR)
    return np.asarray(moved)


def _blurred(values: Map, sigma: float) -> Map:
    picture = Image.fromarray(np.rint(values.clip(0, 1) * _FULL).astype(np.uint8))
    return np.asarray(picture.filter(ImageFilter.GaussianBlur(float(sigma))), dtype=np.float32) / _FULL
