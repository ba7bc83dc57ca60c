"""Any number of layers in order: diffusers' Qwen-Image-Layered, from the folder that a user has."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from diffusers import ModelMixin, QwenImageLayeredPipeline
from PIL import Image

from ...core.errors import PolyditError
from ...core.media.layer_files import LayerStack, PictureLayer
from ...core.pipeline import LoadsLora

__all__ = ["LayerStackPipeline"]


class LayerStackPipeline(LoadsLora, QwenImageLayeredPipeline):
    """Qwen-Image-Layered (arXiv 2512.15603) as diffusers runs it, with its answer as a stack of layers.

    Opens a folder of ``QwenImageLayeredPipeline`` as it is.

    Args:
        scheduler: as in diffusers' class.
        vae: as in diffusers' class.
        text_encoder: as in diffusers' class.
        tokenizer: as in diffusers' class.
        processor: as in diffusers' class.
        transformer: as in diffusers' class.
        roles: the ``LayerRoles`` that a training of such a model learned; None for none.
    """

    _optional_components = ["roles"]

    def __init__(
        self,
        scheduler: Any,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        processor: Any,
        transformer: Any,
        roles: ModelMixin | None = None,
    ) -> None:
        super().__init__(scheduler, vae, text_encoder, tokenizer, processor, transformer)
        self.register_modules(roles=roles)

    def decompose(
        self,
        image: Image.Image,
        layers: int = 4,
        prompt: str = "",
        num_inference_steps: int = 50,
        true_cfg_scale: float = 4.0,
        generator: torch.Generator | None = None,
        resolution: int = 640,
        **options: object,
    ) -> LayerStack:
        """A picture as layers, bottom to top.

        Args:
            image: RGB or RGBA.
            layers: how many; the released model was trained with up to 20.
            prompt: what the whole picture shows; empty lets the text encoder describe it.
            num_inference_steps: denoising steps.
            true_cfg_scale: guidance away from a blank prompt; 1 is off, and half the work.
            generator: of the noise.
            resolution: of the square whose area the picture is reduced to, 640 or 1024.
            options: further ones of diffusers' call.

        Returns:
            The layers at the picture's own size. They are what the model made, enlarged; they do not recompose the
            picture exactly.

        Raises:
            PolyditError: an option is out of range.
        """
        if layers < 1:
            raise PolyditError(f"--layers {layers}: give at least 1")
        if resolution not in (640, 1024):
            raise PolyditError(f"--size {resolution}: this model knows 640 and 1024")
        # Without a second prompt diffusers leaves guidance off. Embeddings may be given instead.
        if true_cfg_scale > 1 and "negative_prompt_embeds" not in options:
            options["negative_prompt"] = " "
        if "prompt_embeds" not in options:
            options["prompt"] = prompt or " "
        roles = self.roles
        if roles is not None and layers != len(roles.config.roles):
            raise PolyditError(
                f"--layers {layers}: these weights make {len(roles.config.roles)}: {', '.join(roles.config.roles)}"
            )
        with nullcontext() if roles is None else roles.adding(self.transformer.img_in, range(1 + layers)):
            made = self(
                image=image.convert("RGBA"),
                layers=layers,
                num_inference_steps=num_inference_steps,
                true_cfg_scale=true_cfg_scale,
                generator=generator,
                resolution=resolution,
                output_type="pil",
                **options,
            ).images[0]
        names = roles.config.roles if roles is not None else [f"layer {n}" for n in range(1, layers + 1)]
        parts = tuple(
            PictureLayer(name, np.array(enlarged(picture, image.size)), role=name.replace(" ", ""))
            for name, picture in zip(names, made, strict=True)
        )
        return LayerStack(image.width, image.height, parts)


def enlarged(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """An RGBA picture at another size; Pillow weighs colours by their alpha."""
    picture = picture.convert("RGBA")
    return picture if picture.size == size else picture.resize(size, Image.Resampling.BICUBIC)
