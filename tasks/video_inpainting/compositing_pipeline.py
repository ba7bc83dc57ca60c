"""The pipeline that puts one video into another."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import ModelMixin
from diffusers.utils.torch_utils import randn_tensor
from numpy.typing import NDArray
from torch import Tensor

from ...core.backbones.pretrained import as_backbone
from ...core.data.masks import dilate, paste_back
from ...core.diffusion import Parameterization, sample
from ...core.diffusion.samplers import Step
from ...core.errors import PolyditError
from ...core.pipeline import TaskPipeline
from ...core.time_windows import mirrored
from .compositing import CompositingFormulation, Scene, centred, guess_of

__all__ = ["VideoCompositingPipeline"]

Pixels = NDArray[np.uint8]


class VideoCompositingPipeline(TaskPipeline):
    """GenCompositor's sampler (arXiv 2509.02460).

    Args:
        transformer: a ``CompositingTransformer``, or a ``TokenGroupDiT``.
        branch: the background's side branch, or None.
        vae: a diffusers autoencoder for video, or None for pixel space.
        text: what a transformer that reads text is given: the empty text.
        formulation: see :class:`CompositingFormulation`, as a dictionary.
        parameterization: what the network's output means, as :meth:`Parameterization.config` gives it.
    """

    model_cpu_offload_seq = "text->branch->transformer->vae"
    _optional_components = ["branch", "vae", "text"]

    def __init__(
        self,
        transformer: ModelMixin,
        branch: ModelMixin | None = None,
        vae: ModelMixin | None = None,
        text: ModelMixin | None = None,
        formulation: dict | None = None,  # plain types: diffusers checks what it loads against them
        parameterization: dict | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, branch=branch, vae=vae, text=text)
        self.register_to_config(formulation=formulation, parameterization=parameterization)
        self.formulation = CompositingFormulation(**(formulation or {}))
        self.parameterization = Parameterization.from_config(parameterization)

    @torch.no_grad()
    def __call__(
        self,
        background: Pixels,
        layers: Pixels,
        elements: list[Pixels],
        known: int = 0,
        num_inference_steps: int | None = None,
        generator: torch.Generator | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Pixels:
        """Composite one window.

        Args:
            background: (T, H, W, 3) uint8.
            layers: (T, H, W, 4) uint8: what is put in, at its place and size, straight alpha.
            elements: for each frame what is put in by itself, (h, w, 4), cut to what is visible.
            known: frames at the beginning that are finished already.
            num_inference_steps: default 1 for networks that answer in one step, else 50.
            generator: source of the noise.
            progress: called with (steps done, steps in all).

        Returns:
            (T, H, W, 3) uint8; outside of the inflated mask it is the background, bit for bit.
        """
        form = self.formulation
        if len(layers) != len(background) or layers.shape[1:3] != background.shape[1:3]:
            raise PolyditError(f"layers {layers.shape} do not fit frames {background.shape}")
        touched = layers[..., 3] > 0
        if known:
            touched[:known] = False
        masks = dilate(touched, form.inflate) if form.inflate else touched
        if not masks.any():
            return background.copy()
        height, width = background.shape[1:3]
        ratio = min(1.0, form.side / max(height, width))
        low = (max(1, round(height * ratio)), max(1, round(width * ratio)))
        video, layer = (
            torch.from_numpy(a.copy()).permute(0, 3, 1, 2).float() / 255 for a in (background, layers)
        )
        mask = torch.from_numpy(masks.copy())[:, None].float()
        guess = guess_of(video, mask, layer[:, :3], layer[:, 3:] * mask)
        small_mask = _resized(mask, low).gt(0).float()
        small = Scene(
            *(
                value.transpose(0, 1)[None]
                for value in (
                    _resized(video, low) * (1 - small_mask),
                    small_mask,
                    torch.from_numpy(centred(elements, low)).permute(0, 3, 1, 2).float() / 255,
                    _resized(guess, low),
                )
            )
        )
        made = self.make(small, num_inference_steps, generator, progress)[0].transpose(0, 1)
        if ratio < 1 and form.residual_scale is not None:
            made = guess + _resized(made - small.guess[0].transpose(0, 1), (height, width))
        elif ratio < 1:
            made = _resized(made, (height, width))
        pixels = (made * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
        return paste_back(background, pixels, masks)

    @torch.no_grad()
    def make(
        self,
        scene: Scene,
        num_inference_steps: int | None = None,
        generator: torch.Generator | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """What the network says at the size of its input: (B, 3, T, H, W) in [0, 1], float32 on the CPU."""
        form, space = self.formulation, self.space
        device, dtype = self.transformer.device, self.transformer.dtype
        frames, height, width = scene.mask.shape[2:]
        patch = self.transformer.config.patch_size
        multiple = space.spatial_factor * (patch if isinstance(patch, int) else max(patch))
        factor = space.temporal_factor
        length = frames if factor == 1 else 1 + -(-(frames - 1) // factor) * factor
        order = torch.tensor(mirrored(list(range(frames)), length))

        def pad(values: Tensor) -> Tensor:
            flat = values[:, :, order].transpose(1, 2).flatten(0, 1)
            flat = F.pad(flat, (0, -width % multiple, 0, -height % multiple), mode="replicate")
            return flat.unflatten(0, (len(values), -1)).transpose(1, 2).to(device)

        padded = Scene(*(pad(value.float()) for value in vars(scene).values()))
        given = {name: value.to(dtype) for name, value in form.conditions(padded, space).items()}
        shape = given["background"].shape
        noise = randn_tensor(shape, generator=generator, device=device)
        steps = num_inference_steps or (1 if form.residual_scale is not None else 50)
        network = as_backbone(self.transformer)
        text = None if self.text is None else self.text(["prompt"] * len(noise))

        def denoise(x_t: Tensor, timestep: Tensor) -> Tensor:
            return form.predict(
                network, self.branch, x_t.to(dtype), timestep, given, self.parameterization, text
            ).float()

        def show(step: Step) -> None:
            if progress is not None:
                progress(step.index + 1, step.total)

        x0 = sample(denoise, noise, self.parameterization, steps, callback=show)
        return form.finish(x0, padded, space)[:, :, :frames, :height, :width].float().cpu()


def _resized(values: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(values.shape[-2:]) == size:
        return values
    smaller = size[0] * size[1] < values.shape[-1] * values.shape[-2]
    return F.interpolate(values, size, mode="bilinear", antialias=smaller, align_corners=False)
