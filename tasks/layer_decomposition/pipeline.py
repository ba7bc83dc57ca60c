"""The pipeline that a user calls: picture and mask in, background and foreground out."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import ModelMixin, SchedulerMixin
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ...core.alpha import area_resize, fill_smoothly, recompose, solve_layers, split
from ...core.backbones.pretrained import PretrainedTransformer, as_backbone
from ...core.data.images import ImageInfo, read_image, to_uint8
from ...core.data.masks import Box, bounding_box, counted, soften
from ...core.data.pillow import from_pillow
from ...core.diffusion import Parameterization, with_scheduler
from ...core.diffusion.samplers import Step
from ...core.errors import PolyditError
from ...core.pipeline import TaskPipeline
from .formulation import Formulation, Layers

__all__ = ["LayerDecompositionOutput", "LayerDecompositionPipeline"]

Picture = Image.Image | NDArray[Any] | str | Path
_FAINT = 2 / 255  # alpha below this, outside of the mask, is the network's noise
_LARGEST_FILL = 1024


class LayerDecompositionOutput(BaseOutput):
    """What the pipeline returns.

    Attributes:
        background: (H, W, 3) uint8.
        foreground: (H, W, 4) uint8, straight alpha.
        composite: (H, W, 3) uint8, the foreground over the background.
        empty: the mask showed no object: the background is the picture.
    """

    background: NDArray[np.uint8]
    foreground: NDArray[np.uint8]
    composite: NDArray[np.uint8]
    empty: bool = False


class LayerDecompositionPipeline(TaskPipeline):
    """Take an object with its shadow and reflection off its background.

    Args:
        transformer: a ``LayerGroupDiT``, or a diffusers transformer.
        scheduler: a diffusers scheduler.
        vae: a diffusers autoencoder for latent models, or None for pixel space.
        types: type embeddings of the groups, for a diffusers transformer.
        text: what a transformer that reads text is given.
        formulation: see :class:`Formulation`, as a dictionary.
        parameterization: what the network's output means, as :meth:`Parameterization.config` gives it.
    """

    model_cpu_offload_seq = "text->types->transformer->vae"
    _optional_components = ["vae", "types", "text"]

    def __init__(
        self,
        transformer: ModelMixin,
        scheduler: SchedulerMixin,
        vae: ModelMixin | None = None,
        types: ModelMixin | None = None,
        text: ModelMixin | None = None,
        formulation: dict | None = None,  # plain types: diffusers checks what it loads against them
        parameterization: dict | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler, vae=vae, types=types, text=text)
        self.register_to_config(formulation=formulation, parameterization=parameterization)
        self.formulation = Formulation(**(formulation or {}))
        self.parameterization = Parameterization.from_config(parameterization)

    @torch.no_grad()
    def __call__(
        self,
        image: Picture,
        mask: Picture,
        num_inference_steps: int = 1,
        generator: torch.Generator | None = None,
        size: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> LayerDecompositionOutput:
        """Decompose one picture of any size.

        Args:
            image: a PIL picture, the path of a file, or an (H, W, 3) uint8 array.
            mask: of the object, of the same size: PIL, a path, or an array (H, W), uint8 or bool.
            num_inference_steps: 1 is the network's direct answer.
            generator: source of the noise.
            size: longer side at which the network sees the object with its surroundings; default as in training.
            progress: called with (steps done, steps in all).

        Returns:
            Layers that recompose to the picture: pixels without foreground are the picture's own, bit for bit.

        Raises:
            PolyditError: a file cannot be read, the mask is of another size, or an option is out of range.
        """
        pixels, given = to_array(image), to_mask(mask)
        if given.shape != pixels.shape[:2]:
            raise PolyditError(
                f"--mask: is {given.shape[1]}x{given.shape[0]} and the picture {pixels.shape[1]}x{pixels.shape[0]}; "
                "give one of the same size"
            )
        if num_inference_steps < 1:
            raise PolyditError(f"--steps {num_inference_steps}: at least 1 step is needed")
        if size is not None and size < 32:
            raise PolyditError(f"--size {size}: give 32 pixels or more")
        empty = np.zeros((*pixels.shape[:2], 4), np.uint8)
        box = bounding_box(given, threshold=_FAINT)
        if box is None:
            return LayerDecompositionOutput(
                background=pixels.copy(), foreground=empty, composite=pixels.copy(), empty=True
            )
        around = surroundings(box, given.shape)
        whole = torch.from_numpy(pixels[around.slices].copy()).permute(2, 0, 1)[None].float() / 255
        part = torch.from_numpy(given[around.slices].copy())[None, None]
        background, foreground = self.decompose(
            whole,
            part,
            size or self.formulation.size,
            around,
            given.shape,
            num_inference_steps,
            generator,
            progress,
        )
        behind, front = pixels.copy(), empty
        seen = foreground[..., 3:] > 0
        behind[around.slices] = np.where(seen, background, pixels[around.slices])
        front[around.slices] = foreground
        return LayerDecompositionOutput(background=behind, foreground=front, composite=compose(behind, front))

    def decompose(
        self,
        image: Tensor,
        mask: Tensor,
        size: int,
        box: Box,
        whole: tuple[int, ...],
        num_inference_steps: int,
        generator: torch.Generator | None,
        progress: Callable[[int, int], None] | None = None,
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """The layers of a part of a picture: at the network's resolution, then carried to the picture's.

        Args:
            image: (1, 3, h, w) in [0, 1].
            mask: (1, 1, h, w) in [0, 1].
            size: longer side for the network.
            box: where the part lies, within a picture of the size ``whole``.
            whole: height and width.
            num_inference_steps: see :meth:`__call__`.
            generator: see :meth:`__call__`.
            progress: see :meth:`__call__`.
        """
        height, width = image.shape[-2:]
        ratio = min(1.0, size / max(height, width))
        low = (max(1, round(height * ratio)), max(1, round(width * ratio)))
        small, small_mask = (
            (image, mask) if ratio == 1 else (area_resize(image, *low), area_resize(mask, *low))
        )
        layers = self.layers(small * 2 - 1, small_mask, num_inference_steps, generator, progress)
        known = self.formulation.known(small * 2 - 1, small_mask)
        above = known.mask * known.image

        def up(values: Tensor) -> Tensor:
            if ratio == 1:
                return values
            return F.interpolate(values, (height, width), mode="bilinear", align_corners=False)

        # Only what the network adds to a cheap guess is carried over; the guess is made again at full size.
        hole = (up(known.hole) > 0.02).float() if ratio < 1 else known.hole
        hole = torch.maximum(hole, (mask > _FAINT).float())
        alpha = (mask + up(layers.alpha - known.mask)).clamp(0, 1)
        faint = ((alpha - _FAINT) / (1 - _FAINT)).clamp(0, 1)
        alpha = torch.where(mask > _FAINT, alpha, faint * fading(box, whole)[None, None])
        colour = (mask * image + up(layers.premultiplied - above)).clamp(0, 1)
        colour = torch.minimum(colour, alpha)
        lit = ((image - colour) / (1 - alpha.clamp(max=0.95))).clamp(0, 1)
        guess = fill_smoothly(layers.background, 1 - known.hole)
        filled = filling(lit, hole) + up(known.hole * (layers.background - guess))
        background, foreground = solve_layers(image, torch.where(hole > 0, filled, lit).clamp(0, 1), alpha)
        return quantised(image, background, foreground)

    @torch.no_grad()
    def layers(
        self,
        image: Tensor,
        mask: Tensor,
        num_inference_steps: int = 1,
        generator: torch.Generator | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Layers:
        """What the network says, at the size of its input.

        Args:
            image: (B, 3, H, W) in [-1, 1].
            mask: (B, 1, H, W) in [0, 1].
            num_inference_steps: see :meth:`__call__`.
            generator: see :meth:`__call__`.
            progress: see :meth:`__call__`.

        Returns:
            Float32 on the CPU.
        """
        space, device = self.space, self.transformer.device
        height, width = image.shape[-2:]
        multiple = space.spatial_factor * _patch(self.transformer)
        padding = (0, -width % multiple, 0, -height % multiple)
        known = self.formulation.known(
            F.pad(image.float(), padding, mode="replicate").to(device),
            F.pad(mask.float(), padding, mode="replicate").to(device),
        )
        conditions = self.formulation.conditions(known, space)
        channels = 4 if self.formulation.residual_scale is not None else space.channels
        grid = [side // space.spatial_factor for side in known.image.shape[-2:]]
        shape = (len(image), len(self.formulation.layers) * channels, *grid)
        noise = randn_tensor(shape, generator=generator, device=device)
        network, dtype = as_backbone(self.transformer), self.transformer.dtype
        types = None
        if isinstance(network, PretrainedTransformer):
            types = {name: vector.to(dtype) for name, vector in self.types().items()}
        text = None if self.text is None else self.text(["prompt"] * len(image))

        def denoise(x_t: Tensor, timestep: Tensor) -> Tensor:
            return self.formulation.predict(
                network, x_t.to(dtype), timestep, conditions, self.parameterization, types, text
            ).float()

        def show(step: Step) -> None:
            if progress is not None:
                progress(step.index + 1, step.total)

        x0 = with_scheduler(
            denoise, noise, self.parameterization, self.scheduler, num_inference_steps, callback=show
        )
        found = self.formulation.finish(x0, known, space)
        parts = (found.background, found.premultiplied, found.alpha)
        return Layers(*(part[..., :height, :width].float().cpu() for part in parts))


# -- sizes -------------------------------------------------------------------------------------------------


def surroundings(box: Box, whole: tuple[int, ...]) -> Box:
    """The object with room for its shadow: three quarters of its extent on each side, as far as the picture reaches."""
    margin = max(16, math.ceil(0.75 * max(box.height, box.width)))
    return Box(
        max(0, box.top - margin),
        max(0, box.left - margin),
        min(whole[0], box.bottom + margin),
        min(whole[1], box.right + margin),
    )


def fading(box: Box, whole: tuple[int, ...]) -> Tensor:
    """(h, w): 1 inside, down to 0 where the box ends within the picture; a shadow that is cut off there fades out."""
    ramps = []
    for start, end, length in ((box.top, box.bottom, whole[0]), (box.left, box.right, whole[1])):
        side = end - start
        reach = max(1.0, 0.08 * side)
        place = torch.arange(side) + 0.5
        near = place / reach if start > 0 else torch.ones(side)
        far = (side - place) / reach if end < length else torch.ones(side)
        ramps.append(torch.minimum(near, far).clamp(max=1))
    return ramps[0][:, None] * ramps[1][None]


def filling(image: Tensor, hole: Tensor) -> Tensor:
    """The picture with its hole filled smoothly; of a large one, the fill is made at reduced size."""
    ratio = min(1.0, _LARGEST_FILL / max(image.shape[-2:]))
    if ratio == 1:
        return fill_smoothly(image, 1 - hole)
    low = [max(1, round(side * ratio)) for side in image.shape[-2:]]
    seen = area_resize(torch.cat([image * (1 - hole), 1 - hole], dim=1), *low)
    small = fill_smoothly(seen[:, :3] / seen[:, 3:].clamp(min=1e-6), seen[:, 3:])
    grown = F.interpolate(small, image.shape[-2:], mode="bilinear", align_corners=False)
    return torch.where(hole > 0, grown, image)


# -- pixels ------------------------------------------------------------------------------------------------


def quantised(
    image: Tensor, background: Tensor, foreground: Tensor
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """8-bit layers (H, W, 3) and (H, W, 4) of (1, 3, H, W) and (1, 4, H, W), solved again for what rounding did."""
    alpha = (split(foreground)[1] * 255 - 1e-3).ceil().clamp(
        0, 255
    ) / 255  # rounded up: less would not suffice
    background = (background * 255).round() / 255
    _, foreground = solve_layers(image, background, alpha)
    colour, alpha = split(foreground)
    alpha = (alpha * 255 - 1e-3).ceil().clamp(0, 255)
    return _bytes(background * 255), _bytes(torch.cat([colour * 255, alpha], dim=1))


def compose(background: NDArray[np.uint8], foreground: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The foreground (H, W, 4) over the background (H, W, 3), as files show it."""
    result = background.copy()
    rows, columns = (np.flatnonzero(foreground[..., 3].any(axis)) for axis in (1, 0))
    if len(rows):
        part = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        behind, front = (
            torch.from_numpy(layer[part].copy()).permute(2, 0, 1)[None].float() / 255
            for layer in (background, foreground)
        )
        result[part] = _bytes(recompose(behind, front) * 255)
    return result


def _bytes(values: Tensor) -> NDArray[np.uint8]:
    return values[0].clamp(0, 255).round().byte().permute(1, 2, 0).numpy()


def to_array(picture: Picture) -> NDArray[np.uint8]:
    """A PIL picture, a file or an array as (H, W, 3) uint8; what is transparent is shown over white."""
    if isinstance(picture, str | Path | Image.Image):
        return to_uint8(_read(picture)[0])
    array = np.array(picture)
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8:
        raise PolyditError(f"picture of shape {array.shape} and type {array.dtype}: give (H, W, 3) uint8")
    return array


def to_mask(mask: Picture) -> NDArray[np.float32]:
    """A mask, white on black, as (H, W) float32 in [0, 1]; of a picture with transparency, its alpha.

    Of colours the largest channel counts. Where nothing is above 1 of 255, 1 is set.
    """
    if isinstance(mask, str | Path | Image.Image):
        pixels, info = _read(mask)
        flat = info.alpha is None or info.alpha.min() == info.alpha.max()
        values = to_uint8(pixels).max(-1) if flat else to_uint8(info.alpha)
    else:
        values = mask
    if values.ndim != 2 or values.dtype not in (np.uint8, np.bool_):
        raise PolyditError(
            f"mask of shape {values.shape} and type {values.dtype}: give (H, W), uint8 or bool"
        )
    return soften(values if values.dtype == np.bool_ else counted(values))


def _read(picture: Image.Image | str | Path) -> tuple[NDArray[Any], ImageInfo]:
    return from_pillow(picture) if isinstance(picture, Image.Image) else read_image(picture)


def _patch(transformer: Any) -> int:
    size = transformer.config.patch_size
    return size if isinstance(size, int) else max(size)
