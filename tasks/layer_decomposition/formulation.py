"""What LayerDecomp diffuses and what its network is shown: the one place that training and inference share.

"Generative Image Layer Decomposition with Visual Effects", arXiv 2411.17864: groups of tokens for a noisy background
and a noisy foreground beside the picture and the object's mask.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.alpha import fill_smoothly, join, pad_rgb, unpremultiply
from ...core.backbones.pretrained import PretrainedTransformer
from ...core.conditioning import TokenGroup, forward_groups
from ...core.conditioning.layer_group_dit import layer_looks
from ...core.data.masks import dilate
from ...core.diffusion import Parameterization
from ...core.errors import PolyditError

__all__ = ["CONDITIONS", "Formulation", "Known", "Layers"]

CONDITIONS = ("image", "mask")
_LARGEST = 0.95  # shadows are divided out up to this alpha


@dataclass(frozen=True)
class Known:
    """What is given for a picture; colours and masks in [0, 1].

    Attributes:
        image: (B, 3, H, W).
        mask: (B, 1, H, W) of the object.
        hole: (B, 1, H, W), 0 or 1: the mask grown a little, where nothing of the background is to be seen.
        fill: (B, 3, H, W), the picture with the hole filled smoothly from its surroundings.
    """

    image: Tensor
    mask: Tensor
    hole: Tensor
    fill: Tensor


@dataclass(frozen=True)
class Layers:
    """What a picture is taken apart into; values in [0, 1].

    Attributes:
        background: (B, 3, H, W).
        premultiplied: (B, 3, H, W), colour of the foreground times alpha.
        alpha: (B, 1, H, W) of the object with its shadow and reflection.
    """

    background: Tensor
    premultiplied: Tensor
    alpha: Tensor

    def composite(self) -> Tensor:
        """The picture (B, 3, H, W) that they make."""
        return self.premultiplied + (1 - self.alpha) * self.background

    def foreground(self) -> Tensor:
        """(B, 4, H, W), straight alpha."""
        return join(unpremultiply(self.premultiplied, self.alpha).clamp(0, 1), self.alpha)


@dataclass(frozen=True)
class Formulation:
    """How layers become what the network works on, and back.

    Attributes:
        residual_scale: if set, for pixel space, the network works on what a cheap guess lacks, in these units: the
            background inside the hole over a smooth fill from what is around it, and the premultiplied foreground with
            its alpha over the masked picture and the mask. A network that answers zero makes these guesses. The
            background around the hole follows from the foreground: a shadow is divided out, before the hole is filled.
        grow: pixels by which the hole reaches beyond the mask.
        alpha_layer: the foreground's alpha is a layer of its own, a grey picture: for autoencoders without alpha.
        attention: between the groups of a diffusers transformer, see ``layer_looks``; a ``LayerGroupDiT`` has its own.
        signal_gain: see :meth:`Parameterization.signal_gain`.
        size: longer side, in pixels, at which the network is shown an object with its surroundings.
        guidance: the scale that a guidance-distilled transformer (FLUX.1-dev) reads with the layers; 1 with picture and
            mask. All of it learns, so there is no other one in sampling.
    """

    residual_scale: float | None = None
    grow: int = 1
    alpha_layer: bool = False
    attention: str = "in_turn"
    signal_gain: bool = False
    size: int = 512
    guidance: float = 1.0

    def __post_init__(self) -> None:
        if self.residual_scale is not None and (self.residual_scale <= 0 or self.alpha_layer):
            raise PolyditError("residual_scale: is for pixel space, above 0 and without alpha_layer")
        if not 0 <= self.guidance < math.inf:
            raise PolyditError(f"guidance {self.guidance:g}: a scale, 0 or more; 1 is none")
        if self.grow < 0:
            raise PolyditError(f"grow {self.grow}: is a number of pixels, 0 or more")

    def config(self) -> dict[str, Any]:
        """JSON-ready description, stored in the pipeline folder."""
        return asdict(self)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the noisy groups, in the order of their channels."""
        return ("background", "foreground", "alpha") if self.alpha_layer else ("background", "foreground")

    def known(self, image: Tensor, mask: Tensor) -> Known:
        """Prepare a picture.

        Args:
            image: (B, 3, H, W) in [-1, 1].
            mask: (B, 1, H, W) in [0, 1].
        """
        image = ((image.float() + 1) / 2).clamp(0, 1)
        mask = mask.float().clamp(0, 1)
        hole = dilate((mask > 0.02).float(), self.grow)
        return Known(image, mask, hole, fill_smoothly(image, 1 - hole))

    # -- to and from what is diffused ----------------------------------------------------------------------

    def target(self, known: Known, background: Tensor, foreground: Tensor, space: Any) -> Tensor:
        """What the network shall predict, (B, layers * channels, h, w).

        Args:
            known: what is given.
            background: (B, 3, H, W) in [0, 1].
            foreground: (B, 4, H, W) in [0, 1], straight alpha.
            space: pixels or an autoencoder.
        """
        colour, alpha = foreground[:, :3], foreground[:, 3:]
        if self.residual_scale is not None:
            behind = known.hole * (background - fill_smoothly(background, 1 - known.hole))
            front = torch.cat([alpha * colour - known.mask * known.image, alpha - known.mask], dim=1)
            return torch.cat([behind, torch.zeros_like(alpha), front], dim=1) / self.residual_scale
        colour = pad_rgb(colour, alpha, factor=2.0)
        if self.alpha_layer:
            pictures = [background, colour, alpha.expand_as(colour)]
        else:
            pictures = [join(background, torch.ones_like(alpha)), join(colour, alpha)]
        return torch.cat([space.encode(picture * 2 - 1) for picture in pictures], dim=1)

    def finish(self, x0: Tensor, known: Known, space: Any) -> Layers:
        """The inverse of :meth:`target`; values are clipped to what is possible."""
        if self.residual_scale is not None:
            x0 = x0 * self.residual_scale
            behind, front = x0[:, :3], x0[:, 4:]
            alpha = (known.mask + front[:, 3:]).clamp(0, 1)
            colour = (known.mask * known.image + front[:, :3]).clamp(0, 1)
            lit = ((known.image - colour) / (1 - alpha.clamp(max=_LARGEST))).clamp(0, 1)
            filled = fill_smoothly(lit.detach(), 1 - known.hole) + behind
            background = torch.where(known.hole > 0, filled, lit).clamp(0, 1)
            return Layers(background, colour, alpha)
        parts = [(space.decode(part) + 1) / 2 for part in x0.chunk(len(self.layers), dim=1)]
        background, colour = parts[0][:, :3].clamp(0, 1), parts[1][:, :3].clamp(0, 1)
        alpha = (parts[2].mean(1, keepdim=True) if self.alpha_layer else parts[1][:, 3:]).clamp(0, 1)
        return Layers(background, alpha * colour, alpha)

    def weight(
        self, known: Known, has_foreground: Tensor, channels: int, background_weight: float = 1.0
    ) -> Tensor:
        """Weight of the error of each element: none for the foreground of samples that have no true one.

        Args:
            known: what is given.
            has_foreground: (B,) bool.
            channels: of one layer.
            background_weight: of the background; that of the foreground is 1.

        Returns:
            (B, layers * channels, 1, 1).
        """
        there = has_foreground.to(known.image)[:, None, None, None]
        parts = [torch.full_like(there, background_weight)] + [there] * (len(self.layers) - 1)
        return torch.cat([part.expand(-1, channels, -1, -1) for part in parts], dim=1)

    # -- the network ---------------------------------------------------------------------------------------

    def conditions(self, known: Known, space: Any) -> dict[str, Tensor]:
        """What the groups of conditions hold, of the spatial size of the latents.

        In pixel space the picture's group has a fourth channel, how bright a pixel is beside its surroundings, and the
        mask's group has seven: the filled picture, the mask, the hole, and places counted from the middle of the
        object's foot in heights of the object. A shadow is a dark patch that begins there.
        """
        if self.residual_scale is not None:
            image = torch.cat([known.image * 2 - 1, _relative_brightness(known)], dim=1)
            mask = torch.cat([known.fill * 2 - 1, known.mask, known.hole, _places(known.mask)], dim=1)
            return {"image": image, "mask": mask}
        pictures = {"image": known.image, "mask": known.mask.expand_as(known.image)}
        if getattr(space, "pixel_channels", 3) == 4:
            pictures = {name: join(p, torch.ones_like(known.mask)) for name, p in pictures.items()}
        return {name: space.encode(picture * 2 - 1) for name, picture in pictures.items()}

    def predict(
        self,
        network: nn.Module,
        x_t: Tensor,
        timestep: Tensor,
        conditions: Mapping[str, Tensor],
        parameterization: Parameterization,
        types: Mapping[str, Tensor] | None = None,
        text: Mapping[str, Any] | None = None,
    ) -> Tensor:
        """One call of the network.

        Args:
            network: a ``LayerGroupDiT``, or the adapter of a diffusers transformer.
            x_t: (B, layers * channels, h, w).
            timestep: (B,), as the network takes it.
            conditions: from :meth:`conditions`.
            parameterization: what the network's output means.
            types: type embedding (D,) of each group, for a diffusers transformer.
            text: what it reads.

        Returns:
            Like ``x_t``.
        """
        if self.signal_gain:
            x_t = x_t * parameterization.signal_gain(timestep)[:, None, None, None].to(x_t.dtype)
        given = {name: value.to(x_t.dtype) for name, value in conditions.items()}
        if not isinstance(network, PretrainedTransformer):
            return network(x_t, timestep, conditions=given).sample
        assert types is not None
        groups = [
            TokenGroup(name, value, type_embedding=types[name], guidance=1.0) for name, value in given.items()
        ]
        noisy = zip(self.layers, x_t.chunk(len(self.layers), dim=1), strict=True)
        groups += [
            TokenGroup(name, part, timestep=timestep, type_embedding=types[name], guidance=self.guidance)
            for name, part in noisy
        ]
        looks = layer_looks(self.attention, self.layers, list(given))
        if self.attention != "full" and text:  # each group reads the text
            looks = {name: (*row, "text") for name, row in looks.items()}
        samples = forward_groups(network, groups, looks, self.layers, **(text or {}))
        return torch.cat([samples[name] for name in self.layers], dim=1)


def _relative_brightness(known: Known) -> Tensor:
    """(B, 1, H, W): the picture over the mean of a quarter of its side around, without the object; in [-1, 1]."""
    here = known.image.mean(1, keepdim=True)
    around = known.fill.mean(1, keepdim=True)
    reach = max(1, min(here.shape[-2:]) // 8)
    around = F.pad(around, (reach, reach, reach, reach), mode="replicate")
    for kernel in ((2 * reach + 1, 1), (1, 2 * reach + 1)):  # one axis at a time: pooling on a CPU is direct
        around = F.avg_pool2d(around, kernel, stride=1)
    return (here / around.clamp(min=0.02) - 1).clamp(-1, 1)


def _places(mask: Tensor) -> Tensor:
    """(B, 2, H, W): rows below the object's foot and columns right of its middle, in its heights, within -2 and 2."""
    hard = mask > 0.5 * mask.amax((1, 2, 3), keepdim=True).clamp(min=1e-3)
    rows, columns = hard.any(-1).float()[:, 0], hard.any(-2).float()[:, 0]  # (B, H), (B, W)
    down = torch.arange(1, rows.shape[1] + 1, device=mask.device, dtype=torch.float32)
    right = torch.arange(columns.shape[1], device=mask.device, dtype=torch.float32) + 0.5
    foot = (rows * down).amax(1)
    height = rows.sum(1).clamp(min=4)
    middle = (columns * right).sum(1) / columns.sum(1).clamp(min=1)
    below = ((down[None] - 0.5 - foot[:, None]) / height[:, None]).clamp(-2, 2)
    beside = ((right[None] - middle[:, None]) / height[:, None]).clamp(-2, 2)
    size = (len(mask), 1, *mask.shape[-2:])
    return torch.cat([below[:, None, :, None].expand(size), beside[:, None, None, :].expand(size)], dim=1)
