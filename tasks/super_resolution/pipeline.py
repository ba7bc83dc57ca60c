"""The pipeline that a user calls: load, enlarge, save."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import ModelMixin, SchedulerMixin
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor

from ...core.backbones.pretrained import as_backbone
from ...core.colour import adain, colour_fix, wavelet
from ...core.data.images import read_image, to_uint8
from ...core.diffusion import Denoise, Guidance, Parameterization, with_scheduler
from ...core.diffusion.samplers import Step
from ...core.errors import PolyditError
from ...core.pipeline import TaskPipeline
from ...core.tiling import Tile, crop_tiles, multidiffusion, tiled_strips
from .formulation import Formulation, upsample
from .noise_field import NoiseField

__all__ = ["SuperResolutionOutput", "SuperResolutionPipeline"]

Picture = Image.Image | np.ndarray | Tensor | str | Path
COLOR_FIXES = ("none", "adain", "wavelet")
OUTPUT_TYPES = ("pil", "np", "pt")


class SuperResolutionOutput(BaseOutput):
    """What the pipeline returns.

    Attributes:
        images: for ``"pil"`` a list of PIL pictures, for ``"np"`` a list of (H, W, 3) float32 arrays in [0, 1], for
            ``"pt"`` a (B, 3, H, W) float32 tensor in [-1, 1], or a list of (1, 3, H, W) if sizes differ.
    """

    images: Any


class SuperResolutionPipeline(TaskPipeline):
    """Enlarge pictures by a whole factor with a diffusion transformer.

    Args:
        transformer: a ``StreamDiT`` (DiT4SR's condition stream) or a ``DiT`` that reads noisy and enlarged picture
            as channels (LDM-SR); or ``DiT4SR``, on Stable Diffusion 3.
        scheduler: a diffusers scheduler.
        vae: a diffusers autoencoder for latent models, or None for pixel space.
        text: what a transformer that reads text is given; None for others.
        formulation: see :class:`Formulation`, as a dictionary.
        parameterization: what the network's output means, as :meth:`Parameterization.config` gives it.
    """

    model_cpu_offload_seq = "text->transformer->vae"
    _optional_components = ["vae", "text"]

    def __init__(
        self,
        transformer: ModelMixin,
        scheduler: SchedulerMixin,
        vae: ModelMixin | None = None,
        text: ModelMixin | None = None,
        formulation: dict | None = None,  # plain types: diffusers checks what it loads against them
        parameterization: dict | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler, vae=vae, text=text)
        self.register_to_config(formulation=formulation, parameterization=parameterization)
        self.formulation = Formulation(**(formulation or {}))
        self.parameterization = Parameterization.from_config(parameterization)

    def check_scale(self, scale: int) -> None:
        """Refuse a factor that the weights were not trained for.

        Raises:
            PolyditError: with the factors that they know.
        """
        if scale not in self.formulation.scales:
            known = ", ".join(str(s) for s in self.formulation.scales)
            raise PolyditError(f"--scale {scale}: these weights know the factors {known}; choose one of them")

    def check_guidance(self, guidance_scale: float) -> None:
        """Refuse guidance without a text that it could push away from.

        Raises:
            PolyditError: these weights read none.
        """
        if guidance_scale != 1 and self.text is None:
            raise PolyditError(
                f"--guidance-scale {guidance_scale:g}: these weights read no text; leave it out"
            )

    @torch.no_grad()
    def __call__(
        self,
        image: Picture | list[Picture],
        scale: int = 4,
        num_inference_steps: int = 1,
        generator: torch.Generator | None = None,
        tile: int = 1024,
        overlap: int = 64,
        color_fix: str = "none",
        output_type: str = "pil",
        guidance_scale: float = 1.0,
    ) -> SuperResolutionOutput:
        """Enlarge.

        Args:
            image: a PIL picture, the path of a file, an (H, W, 3) uint8 array, a (B, 3, H, W) tensor in [-1, 1], or a
                list of pictures.
            scale: factor, one of those that the weights know.
            num_inference_steps: 1 gives the most faithful picture; more steps add detail.
            generator: source of the noise; a CPU generator means the same picture everywhere.
            tile: side of a tile in output pixels; 0 for no tiling. Never more than the transformer has positions for.
            overlap: output pixels that neighbouring tiles share.
            color_fix: ``"none"``, ``"adain"`` or ``"wavelet"``: take the colours from the enlarged input.
            output_type: ``"pil"``, ``"np"`` or ``"pt"``.
            guidance_scale: how far to push from the negative text to the text, for weights that read them; 1 is not
                at all, and half the work.

        Returns:
            The pictures, each ``scale`` times as wide and high as its own input.

        Raises:
            PolyditError: the weights do not know the factor, an option is not known, or a picture cannot be read.
        """
        if output_type not in OUTPUT_TYPES:
            raise PolyditError(f"output_type {output_type!r}: choose one of {', '.join(OUTPUT_TYPES)}")
        pictures = image if isinstance(image, list) else [image]
        results = []
        for picture in pictures:
            low = to_tensor(picture)
            for one in low.split(1):
                with self.progress_bar(total=1) as bar:

                    def show(done: int, total: int, bar: Any = bar) -> None:
                        bar.total = total
                        bar.update(done - bar.n)

                    strips = self.strips(
                        one,
                        scale,
                        num_inference_steps,
                        generator,
                        tile,
                        overlap,
                        color_fix,
                        show,
                        guidance_scale,
                    )
                    results.append(torch.cat(list(strips), dim=-2))
        if output_type == "pt":
            return SuperResolutionOutput(images=torch.cat(results) if _same_size(results) else results)
        arrays = [((r[0].permute(1, 2, 0) + 1) / 2).clamp(0, 1).numpy() for r in results]
        if output_type == "np":
            return SuperResolutionOutput(images=arrays)
        return SuperResolutionOutput(
            images=[Image.fromarray((a * 255).round().astype(np.uint8)) for a in arrays]
        )

    @torch.no_grad()
    def strips(
        self,
        low: Tensor,
        scale: int = 4,
        num_inference_steps: int = 1,
        generator: torch.Generator | None = None,
        tile: int = 1024,
        overlap: int = 64,
        color_fix: str = "none",
        progress: Callable[[int, int], None] | None = None,
        guidance_scale: float = 1.0,
    ) -> Iterator[Tensor]:
        """Finished rows of the enlarged picture from top to bottom; memory does not grow with its height.

        Args:
            low: (1, 3, h, w), float in [-1, 1] or uint8.
            scale: see :meth:`__call__`.
            num_inference_steps: see :meth:`__call__`.
            generator: see :meth:`__call__`.
            tile: see :meth:`__call__`.
            overlap: see :meth:`__call__`.
            color_fix: see :meth:`__call__`; ``"adain"`` needs the whole picture and yields one strip.
            progress: called with (tiles done, tiles in all); of a latent model, with steps.
            guidance_scale: see :meth:`__call__`.

        Yields:
            (1, 3, rows, w * scale), float32 in [-1, 1] on the CPU.
        """
        self.check_scale(scale)
        self.check_guidance(guidance_scale)
        if color_fix not in COLOR_FIXES:
            raise PolyditError(
                f"--color-fix {color_fix!r} is not known; choose one of {', '.join(COLOR_FIXES)}"
            )
        if min(tile, overlap) < 0:
            raise PolyditError(
                f"--tile {tile}, --overlap {overlap}: a size cannot be below zero; 0 is for none"
            )
        if num_inference_steps < 1:
            raise PolyditError(f"--steps {num_inference_steps}: at least 1 step is needed")
        if self.vae is not None:
            whole = self.restore_latents(
                to_float(low), scale, num_inference_steps, generator, tile, overlap, progress, guidance_scale
            )
            yield colour_fix(whole, upsample(to_float(low), scale), color_fix)
            return
        height, width = low.shape[-2:]
        side = max(tile // scale, 1) if tile else max(height, width)
        shared = min(overlap // scale, side // 2) if tile else 0
        noise = NoiseField(generator, 3 * scale**2)

        def crop(one: Tile) -> Tensor:
            return torch.cat([to_float(one.crop(low)), noise.crop(one)], dim=1)

        def enlarge(parts: Tensor) -> Tensor:
            picture = parts[:, :3]
            restored = self.restore(picture, F.pixel_shuffle(parts[:, 3:], scale), scale, num_inference_steps)
            return wavelet(restored, upsample(picture, scale)) if color_fix == "wavelet" else restored

        strips = tiled_strips(
            enlarge, crop, height, width, side, shared, scale, blend="cosine", progress=progress
        )
        if color_fix == "adain":  # needs the statistics of the whole picture
            strips = iter([adain(torch.cat(list(strips), dim=-2), upsample(to_float(low), scale))])
        yield from strips

    def restore(self, low: Tensor, noise: Tensor, scale: int, num_inference_steps: int) -> Tensor:
        """Restore one tile in pixel space.

        Args:
            low: (B, 3, h, w) in [-1, 1].
            noise: standard normal (B, 3, h * scale, w * scale).
            scale: see :meth:`__call__`.
            num_inference_steps: see :meth:`__call__`.

        Returns:
            (B, 3, h * scale, w * scale), float32 on the CPU.
        """
        enlarged = upsample(low, scale)
        height, width = enlarged.shape[-2:]
        multiple = _patch(self.transformer)
        padding = (0, -width % multiple, 0, -height % multiple)
        enlarged = F.pad(enlarged, padding, mode="replicate").to(self.transformer.device)
        condition = self.formulation.condition(None, enlarged, self.space)
        predict = self.predictor(condition, scale)
        latents = self.sample(predict, F.pad(noise, padding).to(condition.device), num_inference_steps)
        restored = self.formulation.finish(latents, enlarged, self.space)
        return restored[..., :height, :width].float().cpu()

    def restore_latents(
        self,
        low: Tensor,
        scale: int,
        num_inference_steps: int,
        generator: torch.Generator | None,
        tile: int,
        overlap: int,
        progress: Callable[[int, int], None] | None = None,
        guidance_scale: float = 1.0,
    ) -> Tensor:
        """Restore a whole picture in latent space, averaging the predictions of latent tiles inside each step.

        "MultiDiffusion" (arXiv 2302.08113), as DiT4SR runs pictures larger than it was trained on.
        """
        space, device = self.space, self.transformer.device
        factor = space.spatial_factor
        low = low.to(device)
        height, width = (side * scale for side in low.shape[-2:])
        multiple = math.lcm(factor * _patch(self.transformer), scale) // scale
        low = F.pad(low, (0, -low.shape[-1] % multiple, 0, -low.shape[-2] % multiple), mode="replicate")
        enlarged = upsample(low, scale)
        condition = self.formulation.condition(low, enlarged, space)
        shape = (len(low), space.channels, enlarged.shape[-2] // factor, enlarged.shape[-1] // factor)
        noise = randn_tensor(shape, generator=generator, device=device)
        side = max(tile // factor, 1) if tile else max(shape[-2:])
        side += -side % _patch(self.transformer)
        if positions := self.transformer.config.get("pos_embed_max_size"):  # a table ends somewhere
            side = min(side, positions * _patch(self.transformer))
        shared = min(overlap // factor, side // 2) if tile else 0

        def predict(x_t: Tensor, timestep: Tensor) -> Tensor:
            def one_call(crops: Tensor, tiles: Sequence[Tile]) -> Tensor:
                predictor = self.predictor(crop_tiles(condition, tiles), scale, guidance_scale)
                return predictor(crops, timestep.repeat(len(tiles)))

            return multidiffusion(one_call, x_t, side, shared)

        latents = self.sample(predict, noise, num_inference_steps, progress)
        restored = self.formulation.finish(latents, enlarged, space)
        return restored[..., :height, :width].float().cpu()

    def predictor(self, condition: Tensor, scale: int, guidance_scale: float = 1.0) -> Denoise:
        """The network with its condition filled in."""
        labels = self.formulation.labels(scale, len(condition), condition.device)
        dtype = self.transformer.dtype
        network = as_backbone(self.transformer)

        def reading(name: str) -> Denoise:
            text = None if self.text is None else self.text([name] * len(condition))

            def denoise(x_t: Tensor, timestep: Tensor) -> Tensor:
                return self.formulation.predict(
                    network, x_t.to(dtype), timestep, condition, labels, self.parameterization, text
                ).float()

            return denoise

        if guidance_scale == 1:
            return reading("prompt")
        guidance = Guidance(guidance_scale)
        return guidance.separate(reading("prompt"), reading("negative"), self.parameterization.time)

    def sample(
        self,
        denoise: Denoise,
        noise: Tensor,
        num_inference_steps: int,
        progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """From noise to latents; the levels are even, so that one step is the network's answer at pure noise."""
        callback = None
        if progress is not None:

            def callback(step: Step) -> None:
                progress(step.index + 1, step.total)

        return with_scheduler(
            denoise, noise, self.parameterization, self.scheduler, num_inference_steps, callback=callback
        )


def to_float(image: Tensor) -> Tensor:
    """Pixels as float32 in [-1, 1]; uint8 is converted."""
    return image.float() / 127.5 - 1 if image.dtype == torch.uint8 else image.float()


def to_tensor(picture: Picture) -> Tensor:
    """A PIL picture, a file or an (H, W, 3) uint8 array as (1, 3, H, W) uint8; a tensor passes."""
    if isinstance(picture, str | Path):
        picture = to_uint8(read_image(picture)[0])
    if isinstance(picture, Tensor):
        return picture if picture.ndim == 4 else picture[None]
    array = np.array(picture.convert("RGB") if isinstance(picture, Image.Image) else picture)
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8:
        raise PolyditError(f"picture of shape {array.shape} and type {array.dtype}: give (H, W, 3) uint8")
    return torch.from_numpy(array).permute(2, 0, 1)[None]


def _patch(transformer: Any) -> int:
    size = transformer.config.patch_size
    return size if isinstance(size, int) else max(size)


def _same_size(results: list[Tensor]) -> bool:
    return len({r.shape for r in results}) == 1
