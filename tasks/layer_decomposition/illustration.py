"""What an illustration's layers are to the network: the one place that training and inference share.

Four production layers, bottom to top: flat colour, shadow, highlight, line art ("Workflow-Aware Structured Layer
Decomposition for Illustration Production", arXiv 2603.14925), on white paper. A shadow is black and multiplied, a
highlight white and screened; so both are their alpha. (Black multiplied with strength k is black of alpha k in normal
mode, white screened with strength h is white of alpha h: programs without blend modes show the same.)

The network sees a layer as its *code*, in [-1, 1]: colours in [-1, 1] times alpha, then ``2 alpha - 1``. Colours that
nobody sees are zero there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...core.data.corpus.illustrations import LAYERS
from ...core.diffusion import Parameterization
from ...core.diffusion.paths import expand_like

__all__ = ["BLEND_MODES", "ROLES", "LayerCode", "hints", "leaky_clamp", "recompose_code", "shown"]

ROLES = tuple(name for name, _ in LAYERS)
BLEND_MODES = tuple(mode for _, mode in LAYERS)
_INK = {"shadow": 0.0, "highlight": 1.0}  # colour of the layers that are only their alpha


class LayerCode:
    """Layers (B, 4, L, H, W), straight alpha in [0, 1], to and from what the network denoises."""

    @staticmethod
    def encode(layers: Tensor) -> Tensor:
        """(B, 4, L, H, W) in [-1, 1]."""
        colour, alpha = layers[:, :3], layers[:, 3:]
        return torch.cat([(2 * colour - 1) * alpha, 2 * alpha - 1], dim=1)

    @staticmethod
    def decode(code: Tensor) -> Tensor:
        """Layers with straight alpha in [0, 1], in the order of :data:`ROLES`; shadows black, highlights white."""
        layers = LayerCode.decode_plain(code)
        for name, value in _INK.items():
            layers[:, :3, ROLES.index(name)] = value
        return layers

    @staticmethod
    def decode_plain(code: Tensor) -> Tensor:
        """The same for layers without roles, each with its own colours."""
        alpha = ((code[:, 3:] + 1) / 2).clamp(0, 1)
        colour = ((code[:, :3] / alpha.clamp(min=1e-3)).clamp(-1, 1) + 1) / 2
        colour = torch.where(alpha > 1e-3, colour, torch.zeros_like(colour))
        return torch.cat([colour, alpha], dim=1)

    @staticmethod
    def alpha(code: Tensor) -> Tensor:
        """(B, L, H, W) in about [0, 1], not clamped."""
        return (code[:, 3] + 1) / 2


def recompose_code(code: Tensor) -> Tensor:
    """The picture (B, 3, H, W) in [0, 1] that layers make on white paper, from their code; differentiable."""
    code = code.float().clamp(-1, 1)
    alpha = (code[:, 3:] + 1) / 2  # (B, 1, L, H, W)
    seen = ((code[:, :3] + alpha) / 2).clamp(min=0)  # colours in [0, 1] times alpha
    layer = dict(zip(ROLES, zip(seen.unbind(2), alpha.unbind(2), strict=True), strict=True))
    flat, flat_alpha = layer["flat"]
    picture = 1 - flat_alpha + flat
    picture = picture * (1 - layer["shadow"][1])
    picture = 1 - (1 - picture) * (1 - layer["highlight"][1])
    line, line_alpha = layer["line"]
    return picture * (1 - line_alpha) + line


def leaky_clamp(values: Tensor, slope: float = 0.05) -> Tensor:
    """To [-1, 1], but for a small slope outside, so that what is beyond can be learned back."""
    inside = values.clamp(-1, 1)
    return inside + slope * (values - inside)


def noise_gain(x_t: Tensor, t: Tensor, parameterization: Parameterization) -> Tensor:
    """``x_t`` times the gain of the best linear estimate of unit-variance data: nothing at pure noise.

    A narrow network then need not spend its width on carrying noise, and its one-step answer does not depend on the
    seed.
    """
    path = parameterization.path
    alpha, sigma = (expand_like(value, x_t) for value in (path.alpha(t), path.sigma(t)))
    return x_t * (alpha / (alpha**2 + sigma**2)).to(x_t)


@torch.library.custom_op("polydit::reaches_border", mutates_args=())
def reaches_border(area: Tensor) -> Tensor:
    """The connected pieces of an area (B, 1, H, W), bool, that touch the border.

    An operator of its own, so that a step can be rehearsed with shapes alone.
    """
    from scipy import ndimage

    found = torch.empty_like(area, device="cpu")
    for one, inside in zip(found[:, 0], area[:, 0].cpu().numpy(), strict=True):
        regions, _ = ndimage.label(inside)
        edge = np.concatenate([regions[0], regions[-1], regions[:, 0], regions[:, -1]])
        one.copy_(torch.from_numpy(np.isin(regions, np.unique(edge[edge > 0]))))
    return found.to(area.device)


@reaches_border.register_fake
def _(area: Tensor) -> Tensor:
    return torch.empty_like(area)


HINTS = 2
"""Channels that :func:`hints` adds to a picture."""


def hints(picture: Tensor, width: int = 7) -> Tensor:
    """What a few tokens find hard to see, as channels (B, 2, H, W) in [-1, 1] behind those of the picture.

    Which white reaches the border, by way of white: on paper it is not the figure. And how much darker a pixel is than
    what a closing puts there: thin dark lines.

    Args:
        picture: (B, 3, H, W) in [-1, 1].
        width: of the lines that the closing fills, in pixels; odd.
    """
    outside = reaches_border(picture.amin(1, keepdim=True) > 0.9).to(picture)
    luma = (picture * picture.new_tensor([0.2126, 0.7152, 0.0722]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    closed = -_greatest(-_greatest(luma, width), width)
    return torch.cat([2 * outside - 1, (closed - luma) - 1], dim=1)


def _greatest(values: Tensor, width: int) -> Tensor:
    """The greatest value in a square around each: by rows and then by columns, since `width` grows with the picture."""
    rows = F.max_pool2d(values, (1, width), 1, (0, width // 2))
    return F.max_pool2d(rows, (width, 1), 1, (width // 2, 0))


def shown(picture: Tensor, channels: int, width: int = 7) -> Tensor:
    """The picture as a network with so many channels for it takes it: by itself, with hints, or as an opaque layer."""
    if channels == 3 + HINTS:
        return torch.cat([picture, hints(picture, width)], dim=1)
    return picture if channels else torch.cat([picture, torch.ones_like(picture[:, :1])], dim=1)


def predict(
    network: Any,
    x_t: Tensor,
    timestep: Tensor,
    picture: Tensor,
    parameterization: Parameterization,
    extra: Mapping[str, Any] | None = None,
) -> Tensor:
    """The network's answer for noisy layers (B, 4, L, H, W) of a picture that :func:`shown` made ready."""
    t = parameterization.time.project_time(timestep)
    answer = network(noise_gain(x_t, t, parameterization), timestep, picture, **(extra or {})).sample
    return leaky_clamp(answer) if parameterization.prediction == "x0" else answer


def blurred(values: Tensor, radius: int) -> Tensor:
    """Mean over a square around each pixel (B, C, H, W); the border is continued."""
    padded = F.pad(values, (radius,) * 4, mode="replicate")
    return F.avg_pool2d(padded, 2 * radius + 1, 1)
