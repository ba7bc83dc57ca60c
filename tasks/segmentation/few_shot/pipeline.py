"""The inference pipeline of few-shot segmentation: mark a thing in one picture, find it in others."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ....core.conditioning import KeyValueBank
from ....core.errors import PolyditError
from ....core.pipeline import TaskPipeline
from ..guided import guided_upsample
from ..pipeline import to_float, to_tensor
from .formulation import Formulation
from .supports import classes_in, light, paired, read_mask

if TYPE_CHECKING:
    from ..predict import Segmented

__all__ = ["FewShotOutput", "FewShotPipeline", "WaysOutput", "segment"]

Picture = Image.Image | NDArray[np.uint8] | Tensor | str | Path
OUTPUT_TYPES = ("pil", "np", "pt")
DETAILS = ("guided", "none")


@dataclass
class FewShotOutput(BaseOutput):
    """What was found, a picture at a time.

    Attributes:
        alpha: soft masks: 8-bit PIL pictures, (H, W) float32 arrays in [0, 1], or (1, H, W) tensors in [0, 1].
        masks: hard masks: 8-bit PIL pictures, boolean (H, W) arrays, or boolean (1, H, W) tensors.
    """

    alpha: list[Any]
    masks: list[Any]


@dataclass
class WaysOutput(BaseOutput):
    """What was found of several classes.

    Attributes:
        names: of the classes; number ``i + 1`` in ``labels`` is ``names[i]``.
        labels: (H, W) uint8 for each picture, 0 where there is none of them.
        alpha: soft masks (ways, H, W) float32 for each picture.
    """

    names: list[str]
    labels: list[NDArray[np.uint8]]
    alpha: list[NDArray[np.float32]]


class FewShotPipeline(TaskPipeline):
    """Find in pictures what supports show (DiffewS, NeurIPS 2024).

    Args:
        transformer: a ``ReferenceDiT``, or a ``DiffewsUNet`` on Stable Diffusion.
        vae: a diffusers autoencoder for latent models, or None for pixel space.
        text: the embedding of the empty prompt, for a network that reads text.
        formulation: see :class:`Formulation`, as a dictionary.
    """

    model_cpu_offload_seq = "text->transformer->vae"
    _optional_components = ["vae", "text"]

    def __init__(
        self,
        transformer: ModelMixin,
        vae: ModelMixin | None = None,
        text: ModelMixin | None = None,
        formulation: dict | None = None,  # plain types: diffusers checks what it loads against them
    ) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, vae=vae, text=text)
        self.register_to_config(formulation=formulation)
        self.formulation = Formulation(**(formulation or {}))
        self._shown: tuple[Any, dict[str, KeyValueBank]] | None = None

    @torch.no_grad()
    def __call__(
        self,
        image: Picture | list[Picture],
        supports: Picture | Sequence[Picture] | Tensor = (),
        support_masks: Any | Sequence[Any] | Tensor = (),
        threshold: float | None = None,
        detail: str = "guided",
        output_type: str = "pil",
    ) -> FewShotOutput:
        """Segment one class.

        Args:
            image: what to look at: a PIL picture, the path of a file, an (H, W, 3) uint8 array, a (B, 3, H, W) tensor
                in [-1, 1], or a list of pictures.
            supports: pictures that show the class, 1 to any number, or one alone; without any the network looks at
                the query alone.
            support_masks: for each where it is: PIL pictures or files (light is the class, or what is opaque in a
                cut-out), or (H, W) arrays or (1, H, W) tensors: boolean, of 0 and 1, or from 0 to the greatest value
                of 8 or 16 bits; of the size of its picture.
            threshold: of the hard masks, in [0, 1]; None is that of the weights.
            detail: ``"guided"``: the mask follows the edges of a picture that is larger than what the network sees;
                ``"none"``: it is enlarged.
            output_type: ``"pil"``, ``"np"`` or ``"pt"``.

        Raises:
            PolyditError: supports and masks do not fit each other, or an option is not known.
        """
        for option, value, known in (("detail", detail, DETAILS), ("output_type", output_type, OUTPUT_TYPES)):
            if value not in known:
                raise PolyditError(f"{option} {value!r}: choose one of {', '.join(known)}")
        _check_threshold(threshold)
        bank = self.show(supports, support_masks)
        alpha, masks = [], []
        for picture in image if isinstance(image, list) else [image]:
            for one in _pixels(picture).split(1):
                soft, hard = self.ask(bank, one, threshold, detail)
                alpha.append(_as(soft[0], output_type))
                masks.append(_as(hard[0], output_type))
        return FewShotOutput(alpha=alpha, masks=masks)

    @torch.no_grad()
    def ways(
        self,
        image: Picture | list[Picture],
        classes: Mapping[str, tuple[Sequence[Picture], Sequence[Any]]],
        threshold: float | None = None,
        detail: str = "guided",
    ) -> WaysOutput:
        """Segment several classes: each pixel is of the class that is surest of it, or of none.

        Args:
            image: as in :meth:`__call__`.
            classes: supports and their masks by the name of the class.
            threshold: below it a class does not claim a pixel, in [0, 1]; None is that of the weights.
            detail: as in :meth:`__call__`.

        Raises:
            PolyditError: as :meth:`__call__`; or there are no classes, or more than 255.
        """
        _check_threshold(threshold)
        banks = {name: self.show(*shown) for name, shown in classes.items()}
        labels, alpha = [], []
        for picture in image if isinstance(image, list) else [image]:
            for one in _pixels(picture).split(1):
                soft, label = self.ask_ways(banks, one, threshold, detail)
                labels.append(label)
                alpha.append(soft)
        return WaysOutput(names=list(classes), labels=labels, alpha=alpha)

    @torch.no_grad()
    def ask_ways(
        self,
        banks: Mapping[str, KeyValueBank],
        picture: Tensor,
        threshold: float | None = None,
        detail: str = "guided",
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Soft masks (ways, H, W) of a picture (1, 3, H, W) in [-1, 1], and which class each pixel is of, 0 for none.

        Raises:
            PolyditError: there are no classes, or more than 255.
        """
        if not 0 < len(banks) < 256:
            raise PolyditError(f"{len(banks)} classes: give 1 to 255")
        found = [self.ask(bank, picture, threshold, detail) for bank in banks.values()]
        soft = torch.cat([soft[0] for soft, _ in found])
        claimed = torch.cat([hard[0] for _, hard in found])
        best = soft.where(claimed, -1.0).max(dim=0)
        labels = torch.where(best.values < 0, 0, best.indices + 1).to(torch.uint8)
        return soft.numpy(), labels.numpy()

    # -- the two passes ------------------------------------------------------------------------------------

    @torch.no_grad()
    def show(
        self, supports: Picture | Sequence[Picture] | Tensor, masks: Any | Sequence[Any] | Tensor
    ) -> KeyValueBank:
        """Run the supports; what :meth:`ask` needs of them.

        Raises:
            PolyditError: their numbers differ, a mask has another size than its picture, or is empty.
        """
        supports, masks = _several(supports, 3), _several(masks, 2)
        if len(supports) != len(masks):
            raise PolyditError(
                f"supports: {len(supports)} pictures and {len(masks)} masks; each picture needs its mask"
            )
        bank = KeyValueBank(self.transformer)
        for number, (picture, mask) in enumerate(zip(supports, masks, strict=True), 1):
            pixels = _pixels(picture)
            marked = _mask(mask)
            name = str(picture) if isinstance(picture, str | Path) else f"support {number}"
            if marked.shape[-2:] != pixels.shape[-2:]:
                raise PolyditError(
                    f"{name}: is {pixels.shape[3]}x{pixels.shape[2]} and its mask {marked.shape[3]}x{marked.shape[2]}; "
                    "they must have the same size"
                )
            if not marked.any():
                raise PolyditError(f"{name}: its mask is empty, so it shows nothing; mark the thing in white")
            references = self.formulation.encode_supports(
                self._square(pixels)[:, None],
                self._move(self._squared_mask(marked))[:, None],
                self.space,
            )
            self.formulation.show(
                self.transformer, bank, references.to(self.transformer.dtype), 1, self._text()
            )
        return bank

    @torch.no_grad()
    def ask(
        self, bank: KeyValueBank, picture: Tensor, threshold: float | None = None, detail: str = "guided"
    ) -> tuple[Tensor, Tensor]:
        """Soft and hard mask (1, 1, H, W), on the CPU, of a picture (1, 3, H, W) in [-1, 1]."""
        latents = self.space.encode(self._square(picture)).to(self.transformer.dtype)
        raw = self.formulation.ask(self.transformer, bank, latents, self._text())
        soft = self.formulation.decode_mask(-raw.float(), self.space).float().cpu()
        size = picture.shape[-2:]
        if soft.shape[-2:] == size:
            return soft, self.formulation.cut(soft, threshold)
        if detail == "guided" and min(size) > soft.shape[-1]:
            soft = guided_upsample(soft, picture)
        else:
            soft = F.interpolate(soft, size, mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)
        return soft, self.formulation.cut(soft, threshold)

    def shown(self, classes: Mapping[str, Sequence[tuple[Path, Path]]]) -> dict[str, KeyValueBank]:
        """:meth:`show` for files, kept from one call to the next while files and weights are the same."""
        key = tuple(
            (name, path, path.stat().st_mtime_ns, path.stat().st_size)
            for name, pairs in classes.items()
            for pair in pairs
            for path in pair
        )
        if self._shown is None or self._shown[0] != key:
            banks = {
                name: self.show([picture for picture, _ in pairs], [read_mask(mask) for _, mask in pairs])
                for name, pairs in classes.items()
            }
            self._shown = (key, banks)
        return self._shown[1]

    def _text(self) -> dict[str, Tensor] | None:
        return None if self.text is None else self.text(["empty"])

    def _move(self, pixels: Tensor) -> Tensor:
        return pixels.to(self.transformer.device)

    def _square(self, pixels: Tensor) -> Tensor:
        side = (self.formulation.size,) * 2
        if pixels.shape[-2:] != side:
            pixels = F.interpolate(pixels, side, mode="bilinear", antialias=True, align_corners=False)
        return self._move(pixels.clamp(-1, 1))

    def _squared_mask(self, mask: Tensor) -> Tensor:
        """Nearest, but a thing that is too small for that keeps the pixel that holds its middle."""
        small = F.interpolate(mask, (self.formulation.size,) * 2, mode="nearest")
        return small if small.any() else F.adaptive_max_pool2d(mask, (self.formulation.size,) * 2)


def segment(
    pipe: FewShotPipeline,
    picture: NDArray[np.uint8],
    source: Path,
    options: Namespace,
    generator: torch.Generator,
) -> Segmented:
    """What ``polydit segmentation predict`` does with one picture (H, W, 3); there is nothing random in it.

    Raises:
        PolyditError: there are no supports, or they cannot be used.
    """
    from ..predict import Segmented

    detail = options.detail or "guided"
    if options.support_classes is not None:
        return _segment_classes(pipe, picture, options, detail)
    pairs = paired(options.support or [], options.support_mask or [])
    bank = pipe.shown({"": pairs})[""]
    soft, _ = pipe.ask(bank, _pixels(picture), None, detail)
    form = pipe.formulation
    level = form.threshold if options.threshold is None else options.threshold
    return Segmented(
        alpha=soft[0, 0].numpy(),
        threshold=level * float(soft.max()) if form.relative else level,
        record={"supports": [str(picture) for picture, _ in pairs], "shots": len(pairs)},
    )


def _segment_classes(
    pipe: FewShotPipeline, picture: NDArray[np.uint8], options: Namespace, detail: str
) -> Segmented:
    from ..predict import Segmented, to_bytes

    if options.support or options.support_mask:
        raise PolyditError(
            "--support-classes: brings its own supports; leave --support and --support-mask out"
        )
    classes = classes_in(options.support_classes)
    soft, labels = pipe.ask_ways(pipe.shown(classes), _pixels(picture), options.threshold, detail)
    claimed = labels > 0
    return Segmented(
        alpha=np.where(claimed, soft.max(0), 0.0).astype(np.float32),
        threshold=0.0,
        pictures={
            "classes": labels,
            **{f"{name}_alpha": to_bytes(mask) for name, mask in zip(classes, soft, strict=True)},
        },
        record={
            "shots": {name: len(pairs) for name, pairs in classes.items()},
            "classes": {
                name: {"label": number, "share": round(float((labels == number).mean()), 4)}
                for number, name in enumerate(classes, start=1)
            },
        },
    )


def _pixels(picture: Picture) -> Tensor:
    """(B, 3, H, W) float32 in [-1, 1]."""
    return to_float(to_tensor(picture))


def _mask(mask: Any) -> Tensor:
    """(1, 1, H, W) float32 of 0 and 1."""
    if isinstance(mask, str | Path):
        mask = read_mask(Path(mask))
    if isinstance(mask, Image.Image):
        mask = light(mask)
    if isinstance(mask, Tensor):
        mask = (mask.float() if mask.is_floating_point() else mask).detach().cpu().numpy()
        if mask.ndim in (3, 4) and mask.shape[:-2].count(1) == mask.ndim - 2:
            mask = mask.reshape(mask.shape[-2:])
    array = np.asarray(mask)
    if array.ndim != 2 or array.dtype.kind not in "biuf":
        raise PolyditError(f"mask of shape {array.shape} and type {array.dtype}: give (H, W) numbers")
    if array.dtype != bool:
        greatest = array.max(initial=0)
        # White is 1, or the greatest value of 8 or 16 bits; floats may exceed 1 a little.
        array = array > (1 if greatest < 2 else 255 if greatest < 256 else 65535) / 2
    return torch.from_numpy(array)[None, None].float()


def _several(given: Any, dimensions: int) -> Any:
    """A picture alone, which has so many dimensions as an array, counts as one of a list."""
    alone = isinstance(given, str | Path | Image.Image) or getattr(given, "ndim", None) == dimensions
    return [given] if alone else given


def _check_threshold(threshold: float | None) -> None:
    if threshold is not None and not 0 <= threshold <= 1:
        raise PolyditError(f"threshold {threshold:g}: must lie between 0 and 1")


def _as(mask: Tensor, output_type: str) -> Any:
    """(1, H, W) as it was asked for."""
    if output_type == "pt":
        return mask
    array = mask[0].numpy()
    if output_type == "np":
        return array
    return Image.fromarray(np.rint(array.astype(np.float32) * 255).astype(np.uint8))
