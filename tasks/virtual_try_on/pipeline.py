"""The pipeline that a user calls: a person, where to change them, a garment; out comes the person wearing it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import ModelMixin, SchedulerMixin
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ...core.adapters import load_group_lora, save_lora
from ...core.adapters.group import plain_layers
from ...core.backbones.pretrained import PretrainedTransformer, as_backbone
from ...core.conditioning import KeyValueCache
from ...core.data.images import read_image, to_uint8
from ...core.data.masks import harden, paste_back
from ...core.data.pillow import from_pillow
from ...core.diffusion import Denoise, Guidance, Parameterization, shift_of_tokens, with_scheduler
from ...core.diffusion.samplers import Step
from ...core.errors import PolyditError
from ...core.pipeline import TaskPipeline
from .fitting import view_around
from .formulation import Formulation
from .formulations import formulation_from
from .framing import Frame
from .masks import light_of
from .sharpness import sharpened
from .warping import WarpingTokenGroupDiT

__all__ = ["VirtualTryOnOutput", "VirtualTryOnPipeline"]

Picture = Image.Image | np.ndarray | Tensor | str | Path
OUTPUT_TYPES = ("pil", "np", "pt")
ADAPTERS = "adapters"


class VirtualTryOnOutput(BaseOutput):
    """What the pipeline returns.

    Attributes:
        images: for ``"pil"`` a list of PIL pictures, for ``"np"`` a list of (H, W, 3) float32 arrays in [0, 1], for
            ``"pt"`` a list of (1, 3, H, W) float32 tensors in [-1, 1]; each of its person's size.
    """

    images: Any


class VirtualTryOnPipeline(TaskPipeline):
    """Put a garment on a person.

    A saved pipeline holds the plain transformer, as it was before anything was added to it, and in ``adapters`` a LoRA
    file for each group of tokens that has one.

    Args:
        transformer: a ``TokenGroupDiT``, also one that copies (``WarpingTokenGroupDiT``), or the transformer of FLUX or
            Stable Diffusion 3 (MC-VTON), or a ``DiT`` over person and garment in one picture (CatVTON).
        scheduler: a diffusers scheduler.
        vae: a diffusers autoencoder for latent models, or None for pixel space.
        text: what a transformer that reads text is given; None for others.
        formulation: what the network sees, as the ``config`` of a formulation gives it.
        parameterization: what the network's output means, as :meth:`Parameterization.config` gives it.
        adapters: group of tokens -> name of its LoRA.
        steps: denoising steps if nobody asks for another number.
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
        adapters: dict | None = None,
        steps: int = 30,
    ) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler, vae=vae, text=text)
        self.register_to_config(
            formulation=formulation, parameterization=parameterization, adapters=adapters, steps=steps
        )
        self.formulation: Formulation = formulation_from(formulation or {})
        self.parameterization = Parameterization.from_config(parameterization)

    # -- saving and loading --------------------------------------------------------------------------------

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Save the plain parts, and a LoRA file for each group: ``adapters/<group>.safetensors``."""
        with plain_layers(self.transformer):
            super().save_pretrained(save_directory, **kwargs)
        for name in (self.config.adapters or {}).values():
            folder = Path(save_directory) / ADAPTERS
            folder.mkdir(parents=True, exist_ok=True)
            save_lora(self.transformer, folder / f"{name}.safetensors", name, overwrite=True)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, **kwargs: Any
    ) -> VirtualTryOnPipeline:
        """Load, and attach the LoRAs of the groups.

        Raises:
            PolyditError: the file of a LoRA is missing, or not of this transformer.
        """
        pipeline: VirtualTryOnPipeline = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        for name in (pipeline.config.adapters or {}).values():
            file = Path(pretrained_model_name_or_path) / ADAPTERS / f"{name}.safetensors"
            if not file.is_file():
                raise PolyditError(f"{file}: missing; the folder is incomplete, get it again")
            load_group_lora(pipeline.transformer, file, name)
        return pipeline

    # -- running -------------------------------------------------------------------------------------------

    @torch.no_grad()
    def __call__(
        self,
        person: Picture | list[Picture],
        garment: Picture | list[Picture] | None,
        mask: Picture | list[Picture],
        num_inference_steps: int | None = None,
        generator: torch.Generator | None = None,
        guidance_scale: float = 1.0,
        repaint: bool = True,
        feather: float = 0.02,
        cache: bool = True,
        output_type: str = "pil",
    ) -> VirtualTryOnOutput:
        """Dress people; the network sees the part of each picture around the mask (see `view_around`), at its own size.

        Args:
            person: a PIL picture, the path of a file, an (H, W, 3) uint8 array, a (3, H, W) or (1, 3, H, W) tensor in
                [-1, 1], or a list of these.
            garment: likewise, one for all or one for each person; None shows none.
            mask: where the person is made anew, above half of white; of the person's size: a grey picture, an (H, W)
                array (bool or 8 bits), a (1, H, W) tensor of 0 and 1.
            num_inference_steps: None is what the weights are made for.
            generator: source of the noise; a CPU generator means the same picture everywhere.
            guidance_scale: how far to push from the person without the garment; 1 is not at all, and half the work.
            repaint: keep the person's own pixels outside of the mask, bit for bit; else only outside of the part.
            feather: width of the ramp inside the mask where the two are mixed, as a share of the part's height.
            cache: compute the keys and values of person and garment once, where that is exact.
            output_type: ``"pil"``, ``"np"`` or ``"pt"``.

        Returns:
            The pictures, each of its person's size.

        Raises:
            PolyditError: a picture cannot be read, a mask is of another size or empty, an option is not known.
        """
        if output_type not in OUTPUT_TYPES:
            raise PolyditError(f"output_type {output_type!r}: choose one of {', '.join(OUTPUT_TYPES)}")
        people = [to_tensor(one) for one in (person if isinstance(person, list) else [person])]
        garments = _each(garment, len(people), "garment")
        masks = [
            to_mask(one, tuple(p.shape[-2:]))
            for one, p in zip(_each(mask, len(people), "mask"), people, strict=True)
        ]
        results = []
        for picture, worn, region in zip(people, garments, masks, strict=True):
            # The network has learned from people who fill its picture.
            view = view_around(
                region[0, 0].bool().cpu().numpy(), (self.formulation.height, self.formulation.width)
            )
            whole, area = (as_tensor(view.cut(as_array(one))) for one in (picture, region))
            frame = Frame.fitting(tuple(whole.shape[-2:]), (self.formulation.height, self.formulation.width))
            flat = None if worn is None else to_tensor(worn)
            shown = None if flat is None else Frame.onto_white(flat, frame.size)
            small, spot = frame.shrink(whole), frame.shrink_mask(area)
            made = self.generate(small, shown, spot, num_inference_steps, generator, guidance_scale, cache)
            made = frame.enlarge(made.cpu())
            if flat is not None and shown is not None and isinstance(self.transformer, WarpingTokenGroupDiT):
                made = sharpened(made, self.transformer, small * (1 - spot), shown, flat, frame)
            if repaint:
                made = paste_back(whole, made, area, round(feather * whole.shape[-2]))
            results.append(as_tensor(view.insert(as_array(picture), as_array(made))))
        if output_type == "pt":
            return VirtualTryOnOutput(images=results)
        arrays = [((r[0].permute(1, 2, 0) + 1) / 2).clamp(0, 1).numpy() for r in results]
        if output_type == "np":
            return VirtualTryOnOutput(images=arrays)
        return VirtualTryOnOutput(
            images=[Image.fromarray((a * 255).round().astype(np.uint8)) for a in arrays]
        )

    @torch.no_grad()
    def generate(
        self,
        person: Tensor,
        garment: Tensor | None,
        mask: Tensor,
        num_inference_steps: int | None = None,
        generator: torch.Generator | None = None,
        guidance_scale: float = 1.0,
        cache: bool = True,
    ) -> Tensor:
        """Dress a batch at the size of the network, without pasting back.

        Args:
            person: (B, 3, H, W) in [-1, 1].
            garment: Likewise, or None.
            mask: (B, 1, H, W), 1 where the person is made anew.
            num_inference_steps: see :meth:`__call__`, as the other arguments.
            generator: source of the noise.
            guidance_scale: 1 is off.
            cache: see :meth:`__call__`.

        Returns:
            (B, 3, H, W) float32 in [-1, 1], on the network's device.
        """
        steps = self.config.steps if num_inference_steps is None else num_inference_steps
        if steps < 1:
            raise PolyditError(f"--steps {steps}: at least 1 step is needed")
        space, device = self.space, self.transformer.device
        was_training = self.transformer.training
        self.transformer.eval()
        shown = torch.zeros_like(person) if garment is None else garment
        batch = {"person": person.to(device), "garment": shown.to(device), "mask": mask.to(device)}
        conditions = self.formulation.conditions(batch, space)
        everyone = torch.ones(len(person), dtype=torch.bool, device=device)
        bare = self.formulation.without_garment(conditions, everyone)
        noise = randn_tensor(self.formulation.start(conditions), generator=generator, device=device)
        denoise = self.predictor(bare if garment is None else conditions, cache)
        if guidance_scale != 1:
            reference = self.predictor(bare, cache)
            denoise = Guidance(guidance_scale).separate(denoise, reference, self.parameterization.time)
        with self.progress_bar(total=steps) as bar:

            def show(step: Step) -> None:
                bar.update()

            latents = with_scheduler(
                denoise,
                noise,
                self.parameterization,
                self.scheduler,
                steps,
                set_timesteps=self.time_shift(noise),
                callback=show,
            )
        self.transformer.train(was_training)
        return self.formulation.finish(latents, space).float()

    def predictor(self, conditions: dict[str, Tensor], cache: bool = True) -> Denoise:
        """The network with its conditions filled in; with ``cache`` it keeps what does not change over the steps."""
        network, dtype = as_backbone(self.transformer), self.transformer.dtype
        network.eval()
        conditions = {name: value.to(dtype) for name, value in conditions.items()}
        text = None if self.text is None else self.text(["prompt"] * len(conditions["person"]))
        kept = KeyValueCache() if cache and self.formulation.can_cache(network) else None
        adapters = self.config.adapters or {}

        def denoise(x_t: Tensor, timestep: Tensor, /) -> Tensor:
            return self.formulation.predict(
                network, x_t.to(dtype), timestep, conditions, self.parameterization, text, adapters, kept
            ).float()

        return denoise

    def time_shift(self, latents: Tensor) -> dict[str, float] | None:
        """``mu`` for a scheduler whose time shift follows the number of tokens, as FLUX's does."""
        config = self.scheduler.config
        if not config.get("use_dynamic_shifting"):
            return None
        network = as_backbone(self.transformer)
        patch = network.patch if isinstance(network, PretrainedTransformer) else network.patch_size
        return {"mu": shift_of_tokens(config, math.prod(latents.shape[-2:]) / math.prod(patch))}


def _read(picture: Image.Image | str | Path) -> NDArray[np.uint8]:
    """(H, W, 3) of a PIL picture or a file, over white."""
    return to_uint8((from_pillow if isinstance(picture, Image.Image) else read_image)(picture)[0])  # type: ignore[operator]


def as_array(picture: Tensor) -> NDArray[np.float32]:
    """(1, C, H, W) as (H, W, C)."""
    return picture[0].permute(1, 2, 0).float().cpu().numpy()


def as_tensor(array: NDArray[np.float32]) -> Tensor:
    """(H, W, C) as (1, C, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(array)).permute(2, 0, 1)[None]


def _each(given: Any, count: int, name: str) -> list[Any]:
    listed = given if isinstance(given, list) else [given] * count
    if len(listed) != count:
        raise PolyditError(f"{len(listed)} pictures as {name} for {count} people; give one, or one for each")
    return listed


def to_tensor(picture: Picture) -> Tensor:
    """A PIL picture, a file or an (H, W, 3) uint8 array as (1, 3, H, W) float32 in [-1, 1]; a tensor passes.

    What is transparent in a picture or file is shown over white.
    """
    if isinstance(picture, str | Path | Image.Image):
        picture = _read(picture)
    if isinstance(picture, Tensor):
        return (picture if picture.ndim == 4 else picture[None]).float()
    array = np.array(picture)
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8:
        raise PolyditError(f"picture of shape {array.shape} and type {array.dtype}: give (H, W, 3) uint8")
    return torch.from_numpy(array).permute(2, 0, 1)[None].float() / 127.5 - 1


def to_mask(mask: Picture | None, size: tuple[int, ...]) -> Tensor:
    """A mask as (1, 1, H, W) of 0 and 1; of colours, the largest channel counts, of transparency what is opaque.

    Raises:
        PolyditError: there is none, it is of another size than the person, or nothing is set.
    """
    if mask is None:
        raise PolyditError("mask: none was given; give a picture that is white where the garment shall go")
    if isinstance(mask, str | Path | Image.Image):
        reader = from_pillow if isinstance(mask, Image.Image) else read_image
        mask = light_of(*reader(mask, background=None))  # type: ignore[operator]
    values = mask if isinstance(mask, Tensor) else torch.from_numpy(np.array(mask))
    if values.ndim == 3 and not isinstance(mask, Tensor):
        values = values.amax(-1)  # channels last
    if values.dtype == torch.uint8 and values.numel() and values.max() == 1:
        values = values.bool()  # counted, not painted
    values = harden(values.reshape(-1, *values.shape[-2:])[:1])
    if tuple(values.shape[-2:]) != size:
        raise PolyditError(
            f"mask of {values.shape[-1]}x{values.shape[-2]} pixels for a person of {size[1]}x{size[0]}; "
            "make it from the person's picture"
        )
    if not values.any():
        raise PolyditError("mask: nothing is set in it; paint white where the garment shall go")
    return values[None].float()
