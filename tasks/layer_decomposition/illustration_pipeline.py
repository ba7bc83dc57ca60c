"""The pipeline that takes an illustration apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline, ModelMixin, SchedulerMixin
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor

from ...core.data.images import read_image, to_uint8
from ...core.data.pillow import from_pillow
from ...core.diffusion import Parameterization, with_scheduler
from ...core.errors import PolyditError
from ...core.media.layer_files import LayerStack, PictureLayer
from ...core.pipeline import LoadsLora
from .illustration import BLEND_MODES, ROLES, LayerCode, predict, shown

__all__ = ["IllustrationLayersOutput", "IllustrationLayersPipeline", "as_stack"]


class IllustrationLayersOutput(BaseOutput):
    """What the pipeline returns.

    Attributes:
        layers: (B, L, 4, H, W) float32, straight alpha in [0, 1], bottom to top.
        roles: their names: flat, shadow, highlight, line.
        blend_modes: how each lies on what is below: normal, multiply, screen, normal.
    """

    layers: Tensor
    roles: tuple[str, ...]
    blend_modes: tuple[str, ...]


class IllustrationLayersPipeline(LoadsLora, DiffusionPipeline):
    """Flat colour, shadow, highlight and line art of an illustration on white paper.

    Args:
        transformer: a ``LayerStackDiT`` with these four roles.
        scheduler: a diffusers scheduler.
        parameterization: what the network's output means, as :meth:`Parameterization.config` gives it.
        size: longest side at which it sees a picture where the call does not say: that of the drawings it learned from.
    """

    model_cpu_offload_seq = "transformer"

    def __init__(
        self,
        transformer: ModelMixin,
        scheduler: SchedulerMixin,
        parameterization: dict | None = None,
        size: int = 160,
    ) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler)
        self.register_to_config(parameterization=parameterization, size=size)
        self.parameterization = Parameterization.from_config(parameterization)

    @torch.no_grad()
    def __call__(
        self,
        image: Image.Image | np.ndarray | Tensor | str | Path,
        num_inference_steps: int = 1,
        generator: torch.Generator | None = None,
        size: int | None = None,
    ) -> IllustrationLayersOutput:
        """Take pictures apart.

        Args:
            image: a PIL picture, the path of a file, an (H, W, 3 or 4) uint8 array, or a (B, 3, H, W) tensor in
                [-1, 1]. Transparency is put on white paper.
            num_inference_steps: 1 gives the most faithful layers.
            generator: source of the noise; a CPU generator means the same layers everywhere.
            size: longest side that the network sees; None is as trained. A larger picture is seen smaller; its layers
                are as sharp as it is where the network predicts them as affine in the picture (``local_affine``), else
                they are enlarged.

        Raises:
            PolyditError: the picture cannot be read, or an option is out of range.
        """
        size = self.config.size if size is None else size
        if size < 32 or num_inference_steps < 1:
            raise PolyditError(
                f"--size {size}, --steps {num_inference_steps}: give 32 pixels or more and at least one step"
            )
        picture = to_paper(image).to(self.transformer.device)
        height, width = picture.shape[-2:]
        patch = max(self.transformer.patch_size)
        scale = min(1.0, size / max(height, width))
        seen = picture
        if scale < 1:
            sides = [max(1, round(side * scale)) for side in (height, width)]
            seen = F.interpolate(picture, sides, mode="bicubic", antialias=True).clamp(-1, 1)
        # White is what is around a picture on paper; mirrored or repeated borders would make shapes.
        padding = (0, -seen.shape[-1] % patch, 0, -seen.shape[-2] % patch)
        inner = seen.shape[-2:]
        seen = F.pad(seen, padding, value=1.0)
        fine = scale < 1 and self.transformer.config.local_affine
        detail = None
        if fine:
            ratio = [seen.shape[-2 + i] / inner[i] for i in range(2)]
            full = [round(height * ratio[0]), round(width * ratio[1])]
            detail = F.pad(picture, (0, full[1] - width, 0, full[0] - height), value=1.0)
        noise = randn_tensor(
            (len(picture), 4, len(ROLES), *seen.shape[-2:]), generator=generator, device=picture.device
        )
        dtype = self.transformer.dtype
        channels = self.transformer.condition_channels
        known = shown(seen, channels).to(dtype)

        def denoise(x_t: Tensor, timestep: Tensor) -> Tensor:
            return predict(self.transformer, x_t.to(dtype), timestep, known, self.parameterization).float()

        if fine:
            # The last step's maps, enlarged, on the full picture.
            ridge = int(7 / scale) // 2 * 2 + 1
            fine_picture = shown(detail, channels, ridge).to(dtype)
            code = self._finely(denoise, noise, known, fine_picture, num_inference_steps)
            code = code[..., :height, :width]
        else:
            code = with_scheduler(denoise, noise, self.parameterization, self.scheduler, num_inference_steps)[
                ..., : inner[0], : inner[1]
            ]
            if scale < 1:
                code = F.interpolate(code.flatten(1, 2), (height, width), mode="bicubic", antialias=True)
                code = code.unflatten(1, (4, -1))
        layers = LayerCode.decode(code.clamp(-1, 1).float().cpu())
        return IllustrationLayersOutput(
            layers=layers.transpose(1, 2).contiguous(), roles=ROLES, blend_modes=BLEND_MODES
        )

    def _finely(self, denoise: Any, noise: Tensor, known: Tensor, detail: Tensor, steps: int) -> Tensor:
        """Sample at the size that the network sees; what the last step answers is made at the picture's size."""
        last: dict[str, Tensor] = {}

        def remember(x_t: Tensor, timestep: Tensor) -> Tensor:
            last["x_t"], last["timestep"] = x_t, timestep
            return denoise(x_t, timestep)

        with_scheduler(remember, noise, self.parameterization, self.scheduler, steps)
        if self.parameterization.prediction != "x0":
            raise PolyditError(
                "--size: smaller than the picture; these weights need --size of its longest side"
            )
        dtype = self.transformer.dtype
        return predict(
            self.transformer,
            last["x_t"].to(dtype),
            last["timestep"],
            known,
            self.parameterization,
            {"detail": detail},
        ).float()


def to_paper(image: Image.Image | np.ndarray | Tensor | str | Path) -> Tensor:
    """A picture on white paper, (B, 3, H, W) in [-1, 1].

    Raises:
        PolyditError: it is no picture.
    """
    if isinstance(image, Tensor):
        return (image if image.ndim == 4 else image[None]).float()
    if isinstance(image, str | Path | Image.Image):
        reader = from_pillow if isinstance(image, Image.Image) else read_image
        array = to_uint8(reader(image)[0]).astype(np.float32) / 255  # type: ignore[operator]
    else:
        array = np.asarray(image)
        if array.ndim != 3 or array.shape[2] not in (3, 4) or array.dtype != np.uint8:
            raise PolyditError(
                f"picture of shape {array.shape} and type {array.dtype}: give (H, W, 3 or 4) uint8"
            )
        array = array.astype(np.float32) / 255
        if array.shape[2] == 4:
            array = array[..., :3] * array[..., 3:] + 1 - array[..., 3:]
    return torch.from_numpy(np.ascontiguousarray(array)).permute(2, 0, 1)[None] * 2 - 1


def as_stack(layers: Tensor) -> LayerStack:
    """Layers (L, 4, H, W) of one picture as a stack on white paper, to be written."""
    pixels = (layers.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()
    height, width = pixels.shape[1:3]
    parts = [
        PictureLayer(role, picture, blend_mode=mode, role=role)
        for role, mode, picture in zip(ROLES, BLEND_MODES, pixels, strict=True)
    ]
    return LayerStack(width, height, tuple(parts), (255, 255, 255))
