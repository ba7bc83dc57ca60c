"""The inference pipeline of Direct3D: a mesh from a picture, or of a category."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ...core.data.images import read_image, to_uint8
from ...core.diffusion import Guidance, Parameterization, Step, with_scheduler
from ...core.errors import PolyditError
from ...core.geometry.mesh import Mesh
from ...core.geometry.surfaces import surface_of_query
from ...core.pipeline import LoadsLora
from .cloud_formulation import category_number
from .conditions import TransformersEncoder, token_shapes
from .pictures import prepare_picture
from .triplane_formulation import TriplaneFormulation

__all__ = ["ShapeOutput", "TriplanePipeline"]

CHUNK = 50_000
Progress = Callable[[int, int], None]


@dataclass
class ShapeOutput(BaseOutput):
    """Generated shapes.

    Attributes:
        meshes: watertight, Y-up, in [-1, 1]^3; empty where the network saw nothing solid.
        latents: (N, C, r, 3 r).
    """

    meshes: list[Mesh]
    latents: Tensor


class TriplanePipeline(LoadsLora, DiffusionPipeline):
    """Make meshes (Direct3D, arXiv 2405.14832).

    Args:
        vae: a :class:`~polydit.core.autoencoders.triplane.TriplaneVAE`.
        transformer: a :class:`~polydit.core.backbones.d3d_dit.D3DDiT`; None for the autoencoder alone.
        encoder: a :class:`~.conditions.PictureEncoder`, or None.
        semantic_encoder: a vision network of transformers, or None.
        pixel_encoder: likewise, for detail.
        scheduler: any that ``with_scheduler`` takes.
        formulation: see :class:`TriplaneFormulation`, as a dictionary.
        parameterization: see :class:`polydit.core.diffusion.Parameterization`, as a dictionary.
    """

    model_cpu_offload_seq = "encoder->semantic_encoder->pixel_encoder->transformer->vae"
    _optional_components = ["transformer", "encoder", "semantic_encoder", "pixel_encoder", "scheduler"]

    def __init__(
        self,
        vae: ModelMixin,
        transformer: ModelMixin | None = None,
        encoder: ModelMixin | None = None,
        semantic_encoder: Any = None,
        pixel_encoder: Any = None,
        scheduler: SchedulerMixin | None = None,
        formulation: dict | None = None,  # plain types: diffusers checks what it loads against them
        parameterization: dict | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            vae=vae,
            transformer=transformer,
            encoder=encoder,
            semantic_encoder=semantic_encoder,
            pixel_encoder=pixel_encoder,
            scheduler=scheduler,
        )
        self.register_to_config(formulation=formulation, parameterization=parameterization)
        self.formulation = TriplaneFormulation(**(formulation or {}))
        self.parameterization = Parameterization.from_config(parameterization)

    @property
    def categories(self) -> list[str]:
        """What the weights know without a picture."""
        return list(self.formulation.categories)

    @property
    def eyes(self) -> Any:
        """What turns pictures into tokens, or None."""
        if self.semantic_encoder is not None and self.pixel_encoder is not None:
            sizes = (self.semantic_encoder.config.image_size, self.pixel_encoder.config.image_size)
            return TransformersEncoder(self.semantic_encoder, self.pixel_encoder, sizes)
        return self.encoder

    @torch.no_grad()
    def __call__(
        self,
        image: Image.Image | NDArray[np.uint8] | str | Path | None = None,
        category: str | None = None,
        num: int = 1,
        steps: int | None = None,
        guidance_scale: float | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        resolution: int = 96,
        level: float | None = None,
        batch_size: int = 8,
        progress: Progress | None = None,
    ) -> ShapeOutput:
        """Make shapes.

        Args:
            image: of one object, cut out (with alpha) or on a plain background.
            category: one of :attr:`categories`, instead of a picture.
            num: how many.
            steps: of the sampler; default as the weights say.
            guidance_scale: 1 is none; default as the weights say.
            generator: source of the noise, on the CPU.
            resolution: cells of the mesh's grid along each axis.
            level: logit of the surface; default as the weights say.
            batch_size: shapes in memory at a time.
            progress: called with (steps done, steps in all).

        Raises:
            PolyditError: neither or both of picture and category, an unknown category, a picture without an object.
        """
        if self.transformer is None:
            raise PolyditError(
                "--weights: hold an autoencoder alone; train a transformer on it with small.yaml"
            )
        if (image is None) == (category is None):
            raise PolyditError("--image or --category: give one of them")
        conditional, empty = self._conditions(image, category)
        noise = randn_tensor((num, *self.vae.latent_shape), generator=generator)
        steps = steps or self.formulation.steps
        form = self.formulation
        usual = form.guidance_scale
        if image is not None and form.picture_guidance is not None:
            usual = form.picture_guidance
        scale = usual if guidance_scale is None else guidance_scale
        device, dtype = self.transformer.device, self.transformer.dtype
        total = -(-num // batch_size) * steps
        made = []
        for start in range(0, num, batch_size):
            x = noise[start : start + batch_size].to(device)

            def reading(condition: dict[str, Any], batch: int = len(x)) -> Callable[[Tensor, Tensor], Tensor]:
                told = {
                    name: value.expand(batch, *[-1] * (value.ndim - 1))
                    if isinstance(value, Tensor)
                    else value
                    for name, value in condition.items()
                }
                return lambda x_t, t: self.transformer(x_t.to(dtype), t, **told).sample.float()

            denoise = reading(conditional)
            if scale != 1:
                denoise = Guidance(scale).separate(denoise, reading(empty), self.parameterization.time)

            def watch(step: Step, done: int = start // batch_size * steps) -> None:
                if progress is not None:
                    progress(done + step.index + 1, total)

            one = generator[0] if isinstance(generator, list) else generator
            made.append(
                with_scheduler(
                    denoise, x, self.parameterization, self.scheduler, steps, generator=one, callback=watch
                )
            )
        latents = torch.cat(made)
        if not torch.isfinite(latents).all():
            raise PolyditError(
                "the network gave numbers that are not finite; use --dtype float32, or other weights"
            )
        meshes = [self.mesh(z[None], resolution, level) for z in latents]
        return ShapeOutput(meshes=meshes, latents=latents.cpu())

    @torch.no_grad()
    def mesh(self, latents: Tensor, resolution: int = 96, level: float | None = None) -> Mesh:
        """The surface of one latent (1, C, r, 3 r), without floating crumbs."""
        planes = self.vae.decode(latents.to(self.vae.dtype)).float()

        def query(points: NDArray[Any]) -> NDArray[Any]:
            parts = torch.from_numpy(points).float().split(CHUNK)
            return np.concatenate(
                [
                    self.vae.query(planes, part[None].to(planes.device))[0].float().cpu().numpy()
                    for part in parts
                ]
            )

        height = self.formulation.level if level is None else level
        return surface_of_query(query, resolution, height).without_floaters()

    @torch.no_grad()
    def reconstruct(
        self, points: NDArray[Any], normals: NDArray[Any], resolution: int = 96, level: float | None = None
    ) -> Mesh:
        """Through the autoencoder: the mesh of a cloud (N, 3) in [-1, 1]^3 with normals."""
        device, dtype = self.vae.device, self.vae.dtype
        cloud, directions = (
            torch.from_numpy(np.asarray(a)).to(device, dtype)[None] for a in (points, normals)
        )
        return self.mesh(self.vae.encode(cloud, directions), resolution, level)

    def _conditions(self, image: Any, category: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the network is told, and what it is told when it is told nothing; a batch of one."""
        device, dtype = self.transformer.device, self.transformer.dtype
        eyes = self.eyes
        told: dict[str, Any] = {"class_labels": None}
        if eyes is not None:
            semantic, pixel = token_shapes(eyes, self.formulation.size, device)
            told |= {"encoder_hidden_states": semantic.to(dtype), "pixel_hidden_states": pixel.to(dtype)}
        if self.categories:
            told["class_labels"] = torch.tensor([len(self.categories)], device=device)
        empty = dict(told)
        if category is not None:
            if not self.categories:
                raise PolyditError("--category: these weights make shapes from pictures only; give --image")
            number = category_number(self.categories, category)
            told["class_labels"] = torch.tensor([number], device=device)
            return told, empty
        if eyes is None:
            raise PolyditError(
                f"--image: these weights make shapes of a category only; give --category ({', '.join(self.categories)})"
            )
        name = str(image) if isinstance(image, str | Path) else "image"
        if isinstance(image, str | Path):
            image = with_alpha(Path(image))
        picture = prepare_picture(image, self.formulation.size, name)[None].to(device, eyes_dtype(eyes))
        semantic, pixel = eyes(picture)
        return {
            **told,
            "encoder_hidden_states": semantic.to(dtype),
            "pixel_hidden_states": pixel.to(dtype),
        }, empty


def with_alpha(file: Path) -> NDArray[np.uint8]:
    """A picture (H, W, 3), or (H, W, 4) where it has an alpha channel.

    Raises:
        PolyditError: it cannot be read.
    """
    colours, info = read_image(file)
    pixels = to_uint8(colours)
    alpha = getattr(info, "alpha", None)
    if alpha is None:
        return pixels
    return np.concatenate([pixels, to_uint8(np.asarray(alpha).reshape(*pixels.shape[:2], 1))], axis=2)


def eyes_dtype(encoder: Any) -> torch.dtype:
    """The precision that an encoder computes in."""
    return next(encoder.parameters()).dtype
