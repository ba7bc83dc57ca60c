"""The inference pipeline of DiffDIS and of the small model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor, nn

from ...core.backbones.diffdis_unet import DiffdisUNet
from ...core.backbones.pretrained import PretrainedTransformer, as_backbone
from ...core.data.images import read_image, to_uint8
from ...core.data.pillow import from_pillow
from ...core.diffusion import Parameterization
from ...core.errors import PolyditError
from ...core.pipeline import TaskPipeline
from ...core.tiling import blend_weights, plan_tiles
from .backbone import PretrainedDichotomy
from .diffdis_sd import UNetDichotomy
from .formulation import Formulation
from .guided import guided_upsample, uncertainty

__all__ = ["SegmentationOutput", "SegmentationPipeline"]

Picture = Image.Image | str | Path | np.ndarray | Tensor
Box = tuple[int, int, int, int]
Progress = Callable[[int, int], None]
DETAILS = ("tiles", "guided", "none")
DETAIL_SIDE = 1024
"""Larger pictures are brought to the area of a square of this side before they are cut into tiles."""
OUTPUT_TYPES = ("pil", "np", "pt")
SCALES = (0.75, 1.0, 1.25)
"""Of the picture, where the mean over several looks is taken; published."""


@dataclass
class SegmentationOutput(BaseOutput):
    """What was found, of the type that was asked for.

    Attributes:
        masks: soft masks: 8-bit PIL pictures, (H, W) arrays in [0, 1], or (1, H, W) tensors in [0, 1].
        edges: the same for the edges.
    """

    masks: list[Any]
    edges: list[Any]


class SegmentationPipeline(TaskPipeline):
    """Find the object in pictures of any size.

    The picture is seen once as a whole; larger ones get their detail from tiles that are told what was found
    (``tiles``), or from the picture's own edges (``guided``).

    Args:
        transformer: a ``DichotomousDiT``, or a diffusers transformer beside ``parts``.
        parts: a ``DichotomyModel``; None for the native DiT.
        vae: a diffusers autoencoder for latent models, or None for pixel space.
        text: an ``EmptyText`` for a transformer that reads text.
        formulation: see :class:`Formulation`, as a dictionary.
        parameterization: what the network's output means, as :meth:`Parameterization.config` gives it.
    """

    model_cpu_offload_seq = "text->transformer->vae"
    _optional_components = ["parts", "vae", "text"]

    def __init__(
        self,
        transformer: ModelMixin,
        parts: ModelMixin | None = None,
        vae: ModelMixin | None = None,
        text: ModelMixin | None = None,
        formulation: dict | None = None,  # plain types: diffusers checks what it loads against them
        parameterization: dict | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, parts=parts, vae=vae, text=text)
        self.register_to_config(formulation=formulation, parameterization=parameterization)
        self.formulation = Formulation(**(formulation or {}))
        self.parameterization = Parameterization.from_config(parameterization)

    @property
    def network(self) -> nn.Module:
        """The transformer behind the call of a ``DichotomousDiT``."""
        network = as_backbone(self.transformer)
        if isinstance(network, PretrainedTransformer):
            return PretrainedDichotomy(network, self.parts)
        return UNetDichotomy(network) if isinstance(network, DiffdisUNet) else network

    @property
    def multiple(self) -> int:
        """What the sides of the pictures that the network sees divide by."""
        network = as_backbone(self.transformer)
        if isinstance(network, DiffdisUNet):
            network = UNetDichotomy(network)
        patch = network.patch[-1] if isinstance(network, PretrainedTransformer) else max(network.patch_size)
        factor = self.space.spatial_factor
        return max(factor * patch, factor * 2**self.formulation.scales)

    @torch.no_grad()
    def __call__(
        self,
        image: Picture | list[Picture],
        num_inference_steps: int = 1,
        generator: torch.Generator | None = None,
        detail: str = "tiles",
        detail_side: int = DETAIL_SIDE,
        box: Box | None = None,
        min_max: bool = False,
        augment: bool | None = None,
        output_type: str = "pil",
        progress: Progress | None = None,
    ) -> SegmentationOutput:
        """Segment.

        Args:
            image: a PIL picture, the path of a file, an (H, W, 3) uint8 array, a (B, 3, H, W) tensor in [-1, 1], or a
                list of pictures.
            num_inference_steps: 1, which is what the networks are trained for.
            generator: source of the noise; a CPU generator means the same mask everywhere.
            detail: ``"tiles"``, ``"guided"`` or ``"none"``: how pictures larger than the network's get their detail.
                Weights that were not trained on tiles with a context take ``"guided"`` for ``"tiles"``.
            detail_side: tiles are of the picture reduced to the area of a square of this side; what is larger gets
                its last detail from the picture's edges.
            box: (left, top, right, bottom) in pixels: only the object in it.
            min_max: stretch each mask to the whole of [0, 1].
            augment: look at the whole six times, mirrored or not and at three sizes, and take the mean, as DiffDIS
                does; None is as the weights have it.
            output_type: ``"pil"``, ``"np"`` or ``"pt"``.
            progress: called with (parts done, parts in all).

        Raises:
            PolyditError: an option is not known, or a picture cannot be read.
        """
        for option, value, known in (("detail", detail, DETAILS), ("output_type", output_type, OUTPUT_TYPES)):
            if value not in known:
                raise PolyditError(f"{option} {value!r}: choose one of {', '.join(known)}")
        if num_inference_steps != 1:
            raise PolyditError(
                f"--steps {num_inference_steps}: masks are predicted in one step; leave it out"
            )
        masks, edges = [], []
        for picture in image if isinstance(image, list) else [image]:
            for one in to_tensor(picture).split(1):
                mask, rim = self.segment(one, generator, detail, detail_side, box, progress, augment)
                if min_max and mask.max() > mask.min():
                    mask = (mask - mask.min()) / (mask.max() - mask.min())
                masks.append(_as(mask[0], output_type))
                edges.append(_as(rim[0], output_type))
        return SegmentationOutput(masks=masks, edges=edges)

    # -- one picture ---------------------------------------------------------------------------------------

    def segment(
        self,
        picture: Tensor,
        generator: torch.Generator | None = None,
        detail: str = "tiles",
        detail_side: int = DETAIL_SIDE,
        box: Box | None = None,
        progress: Progress | None = None,
        augment: bool | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Mask and edges (1, 1, H, W) in [0, 1], float32 on the CPU, of a picture (1, 3, H, W); see `__call__`."""
        height, width = picture.shape[-2:]
        if box is not None:
            left, top, right, bottom = checked_box(box, height, width)
            # Some of the surroundings tell the object from what is behind it.
            margin = round(0.25 * max(right - left, bottom - top))
            rows = slice(max(0, top - margin), min(height, bottom + margin))
            columns = slice(max(0, left - margin), min(width, right + margin))
            part = picture[..., rows, columns]
            found = self.segment(part, generator, detail, detail_side, None, progress, augment)
            inside = torch.zeros(1, 1, height, width)
            inside[..., top:bottom, left:right] = 1
            whole = [torch.zeros(1, 1, height, width) for _ in found]
            for target, value in zip(whole, found, strict=True):
                target[..., rows, columns] = value
            return whole[0] * inside, whole[1] * inside
        form = self.formulation
        scales = SCALES if (form.augment if augment is None else augment) else (1.0,)
        mask, edges = self.look_at_whole(picture, generator, scales)
        if progress is not None:
            progress(1, 2)
        size = (height, width)
        if detail == "tiles" and form.context and height * width > mask.shape[-2] * mask.shape[-1]:
            mask, edges = self.look_closer(
                resized(picture, min(detail_side, (height * width) ** 0.5), self.multiple),
                mask,
                edges,
                generator,
            )
        if progress is not None:
            progress(2, 2)
        if tuple(mask.shape[-2:]) == size:
            return mask, edges
        if detail == "none" or height * width <= mask.shape[-2] * mask.shape[-1]:
            mask = F.interpolate(mask, size, mode="bilinear", antialias=True, align_corners=False)
        else:
            mask = guided_upsample(mask, to_float(picture))
        edges = F.interpolate(edges, size, mode="bilinear", antialias=True, align_corners=False)
        return mask.clamp(0, 1), edges.clamp(0, 1)

    def look(
        self, picture: Tensor, generator: torch.Generator | None = None, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """One step of the network on pictures (B, 3, H, W) in [-1, 1] of a size that it takes.

        Args:
            picture: see above.
            generator: source of the noise.
            context: (B, 1, H, W), for formulations with one.

        Returns:
            Masks and edges (B, 1, H, W) in [0, 1], float32 on the CPU.
        """
        form, device, dtype = self.formulation, self.transformer.device, self.transformer.dtype
        condition = form.condition(
            picture.to(device), self.space, None if context is None else context.to(device)
        )
        latents, count = condition["picture"], len(picture)
        if form.halves == "channels":
            shape = (count, 2, *latents.shape[-2:])
        else:
            shape = (count if form.same_noise else 2 * count, *latents.shape[1:])
        noise = torch.zeros(shape) if form.noise == "none" else torch.randn(shape, generator=generator)
        if form.halves == "batch" and form.same_noise:
            noise = torch.cat([noise] * 2)
        noise = noise.to(device)
        t = torch.ones(len(noise), device=device)
        extra = self.text.rows(len(noise)) if self.text is not None else None
        raw = form.predict(
            self.network,
            noise.to(dtype),
            self.parameterization.model_timestep(t),
            condition,
            self.parameterization,
            extra,
        )
        x0 = self.parameterization.x0(form.bound(raw.float()), noise, t)
        mask, edges = form.finish(x0, self.space)
        return mask.float().cpu(), edges.float().cpu()

    def look_at_whole(
        self, picture: Tensor, generator: torch.Generator | None, scales: Sequence[float] = (1.0,)
    ) -> tuple[Tensor, Tensor]:
        """Mask and edges at the network's size; with several scales, the mean over them and mirror images."""
        found = []
        for scale in scales:
            view = resized(picture, scale * self.formulation.side, self.multiple)
            if len(scales) > 1:
                view = torch.cat([view, view.flip(-1)])
            mask, edges = self.look(view, generator)
            if len(scales) > 1:
                mask, edges = ((both[:1] + both[1:].flip(-1)) / 2 for both in (mask, edges))
            found.append(torch.cat([mask, edges], dim=1))
        size = tuple(found[-1].shape[-2:])
        views = [F.interpolate(view, size, mode="bilinear", align_corners=False) for view in found]
        mask, edges = (sum(views) / len(views)).split(1, dim=1)
        return mask, edges

    def look_closer(
        self, picture: Tensor, mask: Tensor, edges: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """The same picture larger, tile by tile, told the mask so far; tiles without a rim are left as they are."""
        size = tuple(picture.shape[-2:])
        mask, edges = (
            F.interpolate(part, size, mode="bilinear", align_corners=False) for part in (mask, edges)
        )
        side = [min(self.formulation.tile, length) for length in size]
        overlap = min(self.formulation.tile // 8, *(length // 2 for length in side))
        open_ = uncertainty(F.avg_pool2d(mask, 4, ceil_mode=True), 2)
        total, weight = [torch.zeros_like(mask) for _ in range(2)], torch.zeros_like(mask)
        for tile in plan_tiles(*size, tuple(side), overlap):
            bottom, right = tile.top + tile.height, tile.left + tile.width
            rows, columns = slice(tile.top, bottom), slice(tile.left, right)
            known = mask[..., rows, columns]
            part = open_[..., tile.top // 4 : -(-bottom // 4), tile.left // 4 : -(-right // 4)]
            found = (known, edges[..., rows, columns])
            if part.max() > 0.2:
                found = self.look(picture[..., rows, columns], generator, known)
            share = blend_weights(*known.shape[-2:], "cosine").float()
            for target, value in zip(total, found, strict=True):
                target[..., rows, columns] += share * value
            weight[..., rows, columns] += share
        return total[0] / weight, total[1] / weight


def resized(picture: Tensor, side: float, multiple: int) -> Tensor:
    """A picture with the area of a square of ``side``, its sides multiples of ``multiple``, float32 in [-1, 1].

    Very long ones are squeezed to 4 : 1, so that their short side keeps some pixels.
    """
    height, width = picture.shape[-2:]
    ratio = min(max(height / width, 0.25), 4.0)
    size = [max(1, round(side * r / multiple)) * multiple for r in (ratio**0.5, ratio**-0.5)]
    if (height, width) == tuple(size):
        return to_float(picture)
    if picture.dtype == torch.uint8 and height * width > 4 * size[0] * size[1]:
        # Pillow reduces bytes; a float copy of a very large picture would not fit.
        image = Image.fromarray(picture[0].permute(1, 2, 0).numpy())
        image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR, reducing_gap=3)
        return to_float(torch.from_numpy(np.array(image)).permute(2, 0, 1)[None])
    small = F.interpolate(to_float(picture), size, mode="bilinear", antialias=True, align_corners=False)
    return small.clamp(-1, 1)


def checked_box(box: Box, height: int, width: int) -> Box:
    """The box within the picture.

    Raises:
        PolyditError: nothing of it is.
    """
    left, top, right, bottom = box
    left, right = max(0, min(left, right)), min(width, max(left, right))
    top, bottom = max(0, min(top, bottom)), min(height, max(top, bottom))
    if right <= left or bottom <= top:
        raise PolyditError(
            f"--box {','.join(map(str, box))}: nothing of it lies in the picture ({width}x{height})"
        )
    return left, top, right, bottom


def to_float(picture: Tensor) -> Tensor:
    """Pixels as float32 in [-1, 1]; uint8 is converted."""
    return picture.float() / 127.5 - 1 if picture.dtype == torch.uint8 else picture.float()


def to_tensor(picture: Picture) -> Tensor:
    """A PIL picture, a file or an (H, W, 3) uint8 array as (1, 3, H, W) uint8; a tensor passes."""
    if isinstance(picture, str | Path):
        picture = to_uint8(read_image(picture)[0])
    if isinstance(picture, Tensor):
        return picture if picture.ndim == 4 else picture[None]
    if isinstance(picture, Image.Image):
        picture = to_uint8(from_pillow(picture)[0])
    array = np.asarray(picture)
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8:
        raise PolyditError(f"picture of shape {array.shape} and type {array.dtype}: give (H, W, 3) uint8")
    return torch.from_numpy(array.copy()).permute(2, 0, 1)[None]


def _as(values: Tensor, output_type: str) -> Any:
    if output_type == "pt":
        return values
    array = values[0].numpy()
    return array if output_type == "np" else Image.fromarray(np.rint(array * 255).astype(np.uint8))
