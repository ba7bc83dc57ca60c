"""Alpha algebra: compositing, blend modes, and taking composites apart again; differentiable.

Colours and alpha are floats in [0, 1], alpha is straight. A layer is (..., 4, H, W) with alpha last; pictures without
alpha are (..., 3, H, W). The formulas are those of the W3C's "Compositing and Blending Level 1".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "BLEND_MODES",
    "area_resize",
    "composite",
    "fill_smoothly",
    "join",
    "over",
    "pad_rgb",
    "recompose",
    "solve_layers",
    "split",
    "unpremultiply",
]

_TINY = 1e-6  # keeps divisions finite; far below one level of 16 bits


def split(layer: Tensor) -> tuple[Tensor, Tensor]:
    """Colours (..., 3, H, W) and alpha (..., 1, H, W); a picture without alpha has ones."""
    channels = layer.shape[-3]
    if channels not in (3, 4):
        raise ValueError(f"a layer has 3 or 4 channels, not {channels}")
    return layer[..., :3, :, :], layer[..., 3:, :, :] if channels == 4 else torch.ones_like(
        layer[..., :1, :, :]
    )


def join(colour: Tensor, alpha: Tensor) -> Tensor:
    """The layer (..., 4, H, W) of colours and alpha."""
    return torch.cat([colour, alpha], dim=-3)


def unpremultiply(colour: Tensor, alpha: Tensor) -> Tensor:
    """Colours from colours times alpha; 0 where nothing can be seen."""
    seen = alpha > _TINY
    return torch.where(
        seen, colour / torch.where(seen, alpha, torch.ones_like(alpha)), torch.zeros_like(colour)
    )


# -- blend modes -------------------------------------------------------------------------------------------


def _normal(below: Tensor, above: Tensor) -> Tensor:
    return above.expand_as(below)


def _multiply(below: Tensor, above: Tensor) -> Tensor:
    return below * above


def _screen(below: Tensor, above: Tensor) -> Tensor:
    return below + above - below * above


def _hard_light(below: Tensor, above: Tensor) -> Tensor:
    return torch.where(above <= 0.5, _multiply(below, 2 * above), _screen(below, 2 * above - 1))


def _overlay(below: Tensor, above: Tensor) -> Tensor:
    return _hard_light(above, below)


def _colour_dodge(below: Tensor, above: Tensor) -> Tensor:
    lit = (below / (1 - above).clamp(min=_TINY)).clamp(max=1)
    return torch.where(below <= 0, torch.zeros_like(lit), lit)


def _colour_burn(below: Tensor, above: Tensor) -> Tensor:
    burnt = 1 - ((1 - below) / above.clamp(min=_TINY)).clamp(max=1)
    return torch.where(below >= 1, torch.ones_like(burnt), burnt)


def _soft_light(below: Tensor, above: Tensor) -> Tensor:
    root = torch.where(below <= 0.25, ((16 * below - 12) * below + 4) * below, below.clamp(min=_TINY).sqrt())
    return torch.where(
        above <= 0.5,
        below - (1 - 2 * above) * below * (1 - below),
        below + (2 * above - 1) * (root - below),
    )


BLEND_MODES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "normal": _normal,
    "multiply": _multiply,
    "screen": _screen,
    "overlay": _overlay,
    "darken": torch.minimum,
    "lighten": torch.maximum,
    "color-dodge": _colour_dodge,
    "color-burn": _colour_burn,
    "hard-light": _hard_light,
    "soft-light": _soft_light,
    "difference": lambda below, above: (below - above).abs(),
    "exclusion": lambda below, above: below + above - 2 * below * above,
    "plus": lambda below, above: (below + above).clamp(max=1),
}
"""Colour of two opaque pixels, by name: ``(below, above) -> colour``; names as in CSS."""


# -- compositing -------------------------------------------------------------------------------------------


def over(above: Tensor, below: Tensor, mode: str = "normal", opacity: float | Tensor = 1.0) -> Tensor:
    """A layer on another, or on a picture.

    In normal mode this is associative: ``over(a, over(b, c)) == over(over(a, b), c)``.

    Args:
        above: (..., 4, H, W); with 3 channels it is opaque.
        below: (..., 4, H, W), or an opaque picture (..., 3, H, W).
        mode: name in :data:`BLEND_MODES`.
        opacity: multiplies the alpha of ``above``.

    Returns:
        Of the channels of ``below``.

    Raises:
        ValueError: the mode is not known.
    """
    if mode not in BLEND_MODES:
        raise ValueError(f"blend mode {mode!r} is not known; choose from {', '.join(BLEND_MODES)}")
    (top, alpha), (bottom, backing) = split(above), split(below)
    alpha = alpha * opacity
    if below.shape[-3] == 3:
        blended = top if mode == "normal" else BLEND_MODES[mode](bottom, top.expand_as(bottom))
        return alpha * blended + (1 - alpha) * bottom
    shown = top if mode == "normal" else (1 - backing) * top + backing * BLEND_MODES[mode](bottom, top)
    total = alpha + backing * (1 - alpha)
    colour = alpha * shown + (1 - alpha) * backing * bottom
    return join(unpremultiply(colour, total), total)


def recompose(background: Tensor, foreground: Tensor) -> Tensor:
    """The picture (..., 3, H, W) that a foreground (..., 4, H, W) makes on a background (..., 3, H, W)."""
    return over(foreground, background)


def composite(
    layers: Sequence[Tensor] | Tensor,
    modes: Sequence[str] | None = None,
    opacities: Sequence[float | Tensor] | None = None,
    visible: Sequence[bool] | None = None,
    backdrop: Tensor | None = None,
) -> Tensor:
    """A stack of layers as one picture.

    Args:
        layers: bottom first, each (..., 4, H, W) or opaque (..., 3, H, W); or one tensor (N, ..., C, H, W).
        modes: blend mode of each; None is normal.
        opacities: of each; None is 1.
        visible: which to show; None is all.
        backdrop: an opaque picture (..., 3, H, W) below all; without one the result keeps its alpha.

    Returns:
        (..., 3, H, W) with a backdrop, else (..., 4, H, W).
    """
    count = len(layers)
    if not count:
        raise ValueError("a stack needs at least one layer")
    if backdrop is None:
        colour, alpha = split(layers[0])
        result = join(torch.zeros_like(colour), torch.zeros_like(alpha))
    else:
        result = backdrop
    for layer, mode, opacity, shown in zip(
        layers,
        modes or ["normal"] * count,
        opacities or [1.0] * count,
        visible or [True] * count,
        strict=True,
    ):
        if shown:
            result = over(layer, result, mode, opacity)
    return result


# -- taking apart ------------------------------------------------------------------------------------------


def solve_layers(image: Tensor, background: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """Layers that make a picture exactly, from an estimated background and alpha.

    The foreground's colour follows from the composite, ``(I - (1 - a) B) / a``. Where it would lie outside of [0, 1],
    alpha is raised to the least value with which a solution exists.

    Args:
        image: (..., 3, H, W).
        background: (..., 3, H, W).
        alpha: (..., 1, H, W).

    Returns:
        The background, (..., 3, H, W), equal to the picture where alpha is 0, and the foreground (..., 4, H, W):
        ``recompose`` of them is ``image``.
    """
    image, alpha = image.clamp(0, 1), alpha.clamp(0, 1)
    background = torch.where(alpha > 0, background.clamp(0, 1), image)
    alpha = torch.where(alpha > 0, torch.maximum(alpha, least_alpha(image, background)), alpha)
    colour = ((image - (1 - alpha) * background) / alpha.clamp(min=_TINY)).clamp(0, 1)
    return background, join(torch.where(alpha > 0, colour, torch.zeros_like(colour)), alpha)


def least_alpha(image: Tensor, background: Tensor) -> Tensor:
    """The least alpha (..., 1, H, W) with which some colour on the background makes the picture."""
    darker = (background - image) / background.clamp(min=_TINY)
    lighter = (image - background) / (1 - background).clamp(min=_TINY)
    return torch.maximum(darker, lighter).amax(dim=-3, keepdim=True).clamp(0, 1)


def pad_rgb(colour: Tensor, alpha: Tensor, factor: float = 1.2, exact: bool = True) -> Tensor:
    """Smooth colours where nothing is visible, as LayerDiffuse (arXiv 2402.17113) pads its training pictures.

    Premultiplied colours and alpha are shrunk by ``factor`` again and again; from the mean colour on the way back each
    level fills what the finer one does not show.

    Args:
        colour: (B, C, H, W), of any range.
        alpha: (B, 1, H, W) in [0, 1].
        factor: ratio of the sizes of neighbouring levels; 2 is fastest.
        exact: keep the colour of every pixel that is visible at all. False is the published formula, which mixes the
            colours of partly transparent pixels with the fill.

    Returns:
        (B, C, H, W); where alpha is 1 it is ``colour``. All transparent gives zeros.
    """
    if factor <= 1:
        raise ValueError(f"factor {factor}: neighbouring levels need different sizes, so more than 1")
    levels = [(colour * alpha, alpha)]
    height, width = colour.shape[-2:]
    while min(height, width) > 1:
        height, width = max(1, int(height / factor)), max(1, int(width / factor))
        both = torch.cat(levels[-1], dim=1)
        smaller = area_resize(both, height, width)
        levels.append((smaller[:, :-1], smaller[:, -1:]))
    top, weight = levels[-1]
    total = weight.sum((-2, -1), keepdim=True)
    filled = top.sum((-2, -1), keepdim=True) / total.clamp(min=1e-8)
    for seen, part in reversed(levels):
        grown = F.interpolate(filled, seen.shape[-2:], mode="bilinear", align_corners=False)
        filled = seen + grown * (1 - part)
    return torch.where(alpha > 0, colour, filled) if exact else filled


def fill_smoothly(picture: Tensor, known: Tensor, sweeps: int = 5) -> Tensor:
    """Fill what is not known of a picture like a membrane stretched from its rim (the harmonic equation, multigrid).

    Exact for what is linear across the hole, and it never leaves the range of the rim's colours.

    Args:
        picture: (B, C, H, W).
        known: (B, 1, H, W), above 0 where the picture counts.
        sweeps: of relaxation on each level; more are closer to the exact membrane, by little.

    Returns:
        (B, C, H, W); where ``known`` is above 0 it is ``picture``. Nothing known gives zeros.
    """
    levels = [(picture * known, known)]
    height, width = picture.shape[-2:]
    while min(height, width) > 2:
        both, even = torch.cat(levels[-1], dim=1), height % 2 == width % 2 == 0
        height, width = max(1, height // 2), max(1, width // 2)
        smaller = F.avg_pool2d(both, 2) if even else area_resize(both, height, width)
        levels.append((smaller[:, :-1], smaller[:, -1:]))
    top, weight = levels[-1]
    filled = top.sum((-2, -1), keepdim=True) / weight.sum((-2, -1), keepdim=True).clamp(min=1e-8)
    for seen, part in reversed(levels):
        fixed, mean = part > 0, seen / part.clamp(min=_TINY)
        grown = F.interpolate(filled, seen.shape[-2:], mode="bilinear", align_corners=False)
        filled = torch.where(fixed, mean, grown)
        for _ in range(sweeps):
            around = F.pad(filled, (1, 1, 1, 1), mode="replicate")
            rows, columns = around[..., 1:-1], around[..., 1:-1, :]
            average = (rows[..., :-2, :] + rows[..., 2:, :] + columns[..., :-2] + columns[..., 2:]) / 4
            filled = torch.where(fixed, mean, average)
    return torch.where(known > 0, picture, filled)


def area_resize(picture: Tensor, height: int, width: int) -> Tensor:
    """Shrink (..., H, W) by the mean over each new pixel's area; pixels on its border count by their share.

    Unlike torch's ``area`` mode, which averages whole pixels, this is exact for ratios that are not whole.
    """
    rows, columns = _shares(picture.shape[-2], height), _shares(picture.shape[-1], width)
    return rows.to(picture) @ picture @ columns.to(picture).T


def _shares(length: int, shorter: int) -> Tensor:
    """(shorter, length): the share of each old pixel in each new one; rows sum to 1."""
    edges = torch.arange(shorter + 1, dtype=torch.float64) * (length / shorter)
    pixels = torch.arange(length, dtype=torch.float64)
    shared = torch.minimum(edges[1:, None], pixels + 1) - torch.maximum(edges[:-1, None], pixels)
    return shared.clamp(min=0) * (shorter / length)
