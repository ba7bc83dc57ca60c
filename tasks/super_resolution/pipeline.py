"""The pipeline that a user calls: load, enlarge, save."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor

from ...core.autoencoders import as_autoencoder
from ...core.colour import adain, wavelet
from ...core.diffusion import Parameterization, with_scheduler
from ...core.errors import PolyditError
from ...core.tiling import Tile, tiled_strips
from .formulation import Formulation, upsample

__all__ = ["SuperResolutionOutput", "SuperResolutionPipeline"]

Picture = Image.Image | np.ndarray | Tensor
COLOR_FIXES = ("none", "adain", "wavelet")


class SuperResolutionOutput(BaseOutput):
    """``images``: a list of PIL pictures, or (B, H, W, 3) arrays in [0, 1], or (B, 3, H, W) tensors in [-1, 1]."""

    images: Any


class SuperResolutionPipeline(DiffusionPipeline):
    """Enlarge pictures by a whole factor with a diffusion transformer.

    Args:
        transformer: a ``StreamDiT`` (DiT4SR's condition stream) or a ``DiT`` that reads noisy and enlarged picture
            as channels (LDM-SR).
        scheduler: a diffusers scheduler.
        vae: a diffusers autoencoder for latent models, or None for pixel space.
        formulation: see :class:`Formulation`, as a dictionary.
        parameterization: what the network's output means, as :meth:`Parameterization.config` gives it.
    """

    model_cpu_offload_seq = "transformer->vae"
    _optional_components = ["vae"]

    def __init__(
        self,
        transformer: Any,
        scheduler: Any,
        vae: Any = None,
        formulation: dict[str, Any] | None = None,
        parameterization: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler, vae=vae)
        self.register_to_config(formulation=formulation, parameterization=parameterization)
        self.formulation = Formulation(**(formulation or {}))
        self.parameterization = (
            Parameterization.from_config(parameterization) if parameterization else Parameterization()
        )

    @property
    def space(self) -> Any:
        """Pixels or the autoencoder."""
        return as_autoencoder(self.vae)

    def check_scale(self, scale: int) -> None:
        """Refuse a factor that the weights were not trained for."""
        if scale not in self.formulation.scales:
            known = ", ".join(str(s) for s in self.formulation.scales)
            raise PolyditError(f"--scale {scale}: these weights know the factors {known}; choose one of them")

    @torch.no_grad()
    def __call__(
        self,
        image: Picture | list[Picture],
        scale: int = 4,
        num_inference_steps: int = 1,
        generator: torch.Generator | None = None,
        tile: int = 512,
        overlap: int = 64,
        color_fix: str = "none",
        output_type: str = "pil",
    ) -> SuperResolutionOutput:
        """Enlarge.

        Args:
            image: a PIL picture, an (H, W, 3) uint8 array, a (B, 3, H, W) tensor in [-1, 1], or a list of pictures.
            scale: factor, one of those that the weights know.
            num_inference_steps: 1 gives the most faithful picture; more steps add detail.
            generator: source of the noise; a CPU generator means the same picture everywhere.
            tile: side of a tile in output pixels; 0 for no tiling.
            overlap: output pixels that neighbouring tiles share.
            color_fix: ``"none"``, ``"adain"`` or ``"wavelet"``: take the colours from the enlarged input.
            output_type: ``"pil"``, ``"np"`` or ``"pt"``.
        """
        pictures = image if isinstance(image, list) else [image]
        results = []
        for picture in pictures:
            low = to_tensor(picture)
            for one in low.split(1):
                strips = self.strips(one, scale, num_inference_steps, generator, tile, overlap, color_fix)
                results.append(torch.cat(list(strips), dim=-2))
        if output_type == "pt":
            return SuperResolutionOutput(images=torch.cat(results) if _same_size(results) else results)
        arrays = [((r[0].permute(1, 2, 0) + 1) / 2).clamp(0, 1).numpy() for r in results]
        if output_type == "np":
            return SuperResolutionOutput(images=arrays)
        return SuperResolutionOutput(images=[Image.fromarray((a * 255).round().astype(np.uint8)) for a in arrays])

    @torch.no_grad()
    def strips(
        self,
        low: Tensor,
        scale: int = 4,
        num_inference_steps: int = 1,
        generator: torch.Generator | None = None,
        tile: int = 512,
        overlap: int = 64,
        color_fix: str = "none",
        progress: Callable[[int, int], None] | None = None,
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
            progress: called with (tiles done, tiles in all).

        Yields:
            (1, 3, rows, w * scale), float32 in [-1, 1] on the CPU.
        """
        self.check_scale(scale)
        if color_fix not in COLOR_FIXES:
            raise PolyditError(f"--color-fix {color_fix!r} is not known; choose one of {', '.join(COLOR_FIXES)}")
        if num_inference_steps < 1:
            raise PolyditError(f"--steps {num_inference_steps}: at least 1 step is needed")
        height, width = low.shape[-2:]
        side = max(tile // scale, 1) if tile else max(height, width)
        shared = min(overlap // scale, side // 2) if tile else 0
        noise = NoiseField(generator, scale)

        def crop(one: Tile) -> Tensor:
            part = to_float(one.crop(low))
            return torch.cat([part, noise.crop(one)], dim=1)

        def enlarge(parts: Tensor) -> Tensor:
            picture, unshuffled = parts[:, :3], parts[:, 3:]
            enlarged = upsample(picture, scale)
            out = self.restore(enlarged, F.pixel_shuffle(unshuffled, scale), scale, num_inference_steps)
            return wavelet(out, enlarged) if color_fix == "wavelet" else out

        strips = tiled_strips(enlarge, crop, height, width, side, shared, scale, blend="cosine", progress=progress)
        if color_fix == "adain":
            whole = torch.cat(list(strips), dim=-2)
            strips = iter([adain(whole, upsample(to_float(low), scale))])
        yield from strips

    def restore(self, enlarged: Tensor, noise: Tensor, scale: int, num_inference_steps: int) -> Tensor:
        """Restore an enlarged picture (B, 3, H, W) in [-1, 1], given standard normal noise of the same size."""
        formulation, space = self.formulation, self.space
        device, dtype = self.transformer.device, self.transformer.dtype
        multiple = getattr(space, "spatial_factor", 1) * _patch(self.transformer)
        height, width = enlarged.shape[-2:]
        padding = (0, -width % multiple, 0, -height % multiple)
        picture = F.pad(enlarged, padding, mode="replicate").to(device)
        condition = formulation.condition(picture, space)
        if condition.shape[-2:] != picture.shape[-2:]:  # latents: their own noise, from the same source
            noise = noise[..., : condition.shape[-2], : condition.shape[-1]].repeat(
                1, -(-condition.shape[1] // noise.shape[1]), 1, 1
            )[:, : condition.shape[1]]
        else:
            noise = F.pad(noise, padding)
        labels = formulation.labels(scale, len(picture), device)

        def denoise(x_t: Tensor, timestep: Tensor) -> Tensor:
            return formulation.predict(
                self.transformer, x_t.to(dtype), timestep, condition, labels, self.parameterization
            ).float()

        latents = with_scheduler(
            denoise,
            noise.to(device),
            self.parameterization,
            self.scheduler,
            steps=None,
            # Evenly from pure noise, so that one step is the network's direct answer at t = 1.
            set_timesteps={"sigmas": [1 - i / num_inference_steps for i in range(num_inference_steps)]},
        )
        restored = formulation.finish(latents, picture, space)[..., :height, :width]
        return restored.float().cpu()


class NoiseField:
    """Standard normal noise that belongs to places of the picture, so that tiles agree where they overlap.

    The output plane is cut into cells, each drawn from its own seed; any window of it can be had without
    drawing the whole.
    """

    def __init__(self, generator: torch.Generator | None, scale: int, channels: int = 3, cell: int = 32) -> None:
        self.seed = int(torch.randint(2**62, (), generator=generator))
        self.channels, self.cell = channels * scale**2, cell

    def crop(self, tile: Tile) -> Tensor:
        """Noise over a tile of the input, ``channels * scale^2`` values per pixel: (1, C, height, width)."""
        cell = self.cell
        rows = range(tile.top // cell, (tile.top + tile.height - 1) // cell + 1)
        columns = range(tile.left // cell, (tile.left + tile.width - 1) // cell + 1)
        field = torch.cat([torch.cat([self._draw(r, c) for c in columns], dim=2) for r in rows], dim=1)
        top, left = tile.top - rows[0] * cell, tile.left - columns[0] * cell
        return field[None, :, top : top + tile.height, left : left + tile.width]

    def _draw(self, row: int, column: int) -> Tensor:
        # Distinct for every cell of any picture that fits in memory.
        generator = torch.Generator().manual_seed((self.seed + row * 1_000_003 + column) % 2**63)
        return torch.randn(self.channels, self.cell, self.cell, generator=generator)


def to_float(image: Tensor) -> Tensor:
    """Pixels as float32 in [-1, 1]; uint8 is converted."""
    return image.float() / 127.5 - 1 if image.dtype == torch.uint8 else image.float()


def to_tensor(picture: Picture) -> Tensor:
    """A PIL picture or an (H, W, 3) uint8 array as (1, 3, H, W) uint8; a tensor passes."""
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
