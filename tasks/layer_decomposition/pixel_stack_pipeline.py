"""The pipeline of general stacks in pixel space: a picture to any number of RGBA layers in order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline, ModelMixin, SchedulerMixin
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor

from ...core.diffusion import Parameterization, with_scheduler
from ...core.errors import PolyditError
from ...core.media.layer_files import LayerStack, PictureLayer
from ...core.pipeline import LoadsLora
from .illustration import LayerCode, predict, shown
from .illustration_pipeline import to_paper

__all__ = ["PixelStackOutput", "PixelStackPipeline"]


class PixelStackOutput(BaseOutput):
    """What the pipeline returns.

    Attributes:
        layers: (B, N, 4, H, W) float32, straight alpha in [0, 1], bottom to top.
    """

    layers: Tensor


class PixelStackPipeline(LoadsLora, DiffusionPipeline):
    """Any number of layers of a picture, bottom to top, by a native ``LayerStackDiT`` on pixels.

    Args:
        transformer: a ``LayerStackDiT`` without roles.
        scheduler: a diffusers scheduler.
        parameterization: what the network's output means, as :meth:`Parameterization.config` gives it.
        size: longest side at which it sees a picture where the call does not say: that of the pictures it learned from.
    """

    model_cpu_offload_seq = "transformer"

    def __init__(
        self,
        transformer: ModelMixin,
        scheduler: SchedulerMixin,
        parameterization: dict | None = None,
        size: int = 64,
    ) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler)
        self.register_to_config(parameterization=parameterization, size=size)
        self.parameterization = Parameterization.from_config(parameterization)

    @torch.no_grad()
    def __call__(
        self,
        image: Image.Image | np.ndarray | Tensor | str | Path,
        layers: int = 4,
        num_inference_steps: int = 1,
        generator: torch.Generator | None = None,
        size: int | None = None,
    ) -> PixelStackOutput:
        """Take pictures apart.

        Args:
            image: a PIL picture, the path of a file, an (H, W, 3 or 4) uint8 array, or a (B, 3, H, W) tensor in
                [-1, 1]. Transparency is put on white.
            layers: how many, the bottom one included; the weights do not depend on it.
            num_inference_steps: 1 gives the most faithful layers.
            generator: source of the noise; a CPU generator means the same layers everywhere.
            size: longest side that the network sees; None is as trained. Each side is rounded to whole tokens. Layers
                have the picture's own size: as sharp as it is where the network predicts them as affine in the
                picture (``local_affine``), else enlarged.

        Raises:
            PolyditError: the picture cannot be read, or an option is out of range.
        """
        size = self.config.size if size is None else size
        if size < 32 or num_inference_steps < 1:
            raise PolyditError(
                f"--size {size}, --steps {num_inference_steps}: give 32 pixels or more and at least one step"
            )
        if layers < 1:
            raise PolyditError(f"--layers {layers}: give at least 1")
        network = self.transformer
        picture = to_paper(image).to(network.device)
        whole = tuple(picture.shape[-2:])
        scale = min(1.0, size / max(whole))
        sides = tuple(
            max(1, round(side * scale / patch)) * patch
            for side, patch in zip(whole, network.patch_size, strict=True)
        )
        seen = picture
        if sides != whole:
            seen = F.interpolate(picture, sides, mode="bicubic", antialias=True).clamp(-1, 1)
        known = shown(seen, network.condition_channels).to(network.dtype)
        asked: tuple[Tensor, Tensor] | None = None

        def denoise(x_t: Tensor, timestep: Tensor) -> Tensor:
            nonlocal asked
            asked = x_t.to(network.dtype), timestep
            return predict(network, *asked, known, self.parameterization).float()

        count = layers + (1 - network.first_slot)  # the composite, where there is one, is dropped
        noise = randn_tensor((len(picture), 4, count, *sides), generator=generator, device=picture.device)
        code = with_scheduler(denoise, noise, self.parameterization, self.scheduler, num_inference_steps)
        if sides != whole and network.config.local_affine and self.parameterization.prediction == "x0":
            # The last step's maps, enlarged, on the full picture.
            assert asked is not None
            detail = {"detail": shown(picture, network.condition_channels).to(network.dtype)}
            code = predict(network, *asked, known, self.parameterization, detail).float()
        elif sides != whole:
            code = F.interpolate(code.flatten(1, 2), whole, mode="bicubic", antialias=True)
            code = code.unflatten(1, (4, -1))
        made = LayerCode.decode_plain(code[:, :, -layers:].clamp(-1, 1).float().cpu())
        return PixelStackOutput(layers=made.transpose(1, 2).contiguous())

    def decompose(
        self,
        image: Image.Image | np.ndarray | str | Path,
        layers: int = 4,
        num_inference_steps: int = 1,
        generator: torch.Generator | None = None,
        size: int | None = None,
    ) -> LayerStack:
        """One picture as a stack of its own size, bottom to top; arguments and errors as in :meth:`__call__`."""
        made = self(image, layers, num_inference_steps, generator, size).layers[0]
        pixels = (made * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()
        height, width = pixels.shape[1:3]
        parts = tuple(
            PictureLayer(f"layer {number}", layer, role=f"layer{number}")
            for number, layer in enumerate(pixels, 1)
        )
        return LayerStack(width, height, parts)
