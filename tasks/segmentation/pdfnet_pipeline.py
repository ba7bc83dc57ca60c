"""The inference pipeline of PDFNet."""

from __future__ import annotations

from argparse import Namespace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from diffusers.models.modeling_utils import ModelMixin
from numpy.typing import NDArray
from torch import Tensor

from ...core.errors import PolyditError
from ...core.pipeline import LoadsLora
from .depth import DepthSource, open_depth
from .guided import guided_upsample
from .pdfnet import standardized
from .pipeline import Picture, SegmentationOutput, checked_box, to_float, to_tensor
from .predict import Segmented, parse_box

__all__ = ["PDFNetPipeline", "segment"]

DETAILS = ("guided", "none")


class PDFNetPipeline(LoadsLora, DiffusionPipeline):
    """Find the object in pictures of any size, from the pictures and their depth.

    Args:
        transformer: a ``PDFNet``.
        side: of the square that pictures are brought to; as the weights were trained.
        may_lack_depth: whether the weights were trained with pictures without depth, too.
    """

    model_cpu_offload_seq = "transformer"

    def __init__(self, transformer: ModelMixin, side: int = 1024, may_lack_depth: bool = False) -> None:
        super().__init__()
        self.register_modules(transformer=transformer)
        self.register_to_config(side=side, may_lack_depth=may_lack_depth)

    @torch.no_grad()
    def __call__(
        self,
        image: Picture | list[Picture],
        depth: NDArray[np.floating] | list[NDArray[np.floating]] | None = None,
        detail: str = "guided",
        box: tuple[int, int, int, int] | None = None,
        min_max: bool = False,
        output_type: str = "np",
    ) -> SegmentationOutput:
        """Segment.

        Args:
            image: a PIL picture, the path of a file, an (H, W, 3) uint8 array, a (1, 3, H, W) tensor in [-1, 1], or a
                list of pictures.
            depth: (h, w) of any range and size for each picture. None, for weights that were trained without, too.
            detail: ``"guided"``: pictures larger than the network's get the mask's rim from their own edges; or
                ``"none"``.
            box: (left, top, right, bottom) in pixels: only the object in it.
            min_max: stretch each mask to the whole of [0, 1].
            output_type: ``"np"`` (H, W) arrays, or ``"pt"`` (1, H, W) tensors, in [0, 1].

        Returns:
            The masks; edges are not predicted.

        Raises:
            PolyditError: an option is not known, or a depth is missing.
        """
        for option, value, known in (("detail", detail, DETAILS), ("output_type", output_type, ("np", "pt"))):
            if value not in known:
                raise PolyditError(f"{option} {value!r}: choose one of {', '.join(known)}")
        pictures = image if isinstance(image, list) else [image]
        depths = depth if isinstance(depth, list) else [depth] * len(pictures)
        if len(depths) != len(pictures):
            raise PolyditError(f"depth: {len(depths)} maps for {len(pictures)} pictures; give one for each")
        masks = []
        for picture, one in zip(pictures, depths, strict=True):
            mask = self.segment(to_tensor(picture), one, detail, box)
            if min_max and mask.max() > mask.min():
                mask = (mask - mask.min()) / (mask.max() - mask.min())
            masks.append(mask[0] if output_type == "pt" else mask[0, 0].numpy())
        return SegmentationOutput(masks=masks, edges=[])

    def segment(
        self,
        picture: Tensor,
        depth: NDArray[np.floating] | None,
        detail: str = "guided",
        box: tuple[int, int, int, int] | None = None,
    ) -> Tensor:
        """Mask (1, 1, H, W) in [0, 1], float32 on the CPU, of a picture (1, 3, H, W); see `__call__`."""
        if depth is None and not self.config.may_lack_depth:
            raise PolyditError(
                "--depth: these weights need the depth of pictures; give a folder of depth maps or of a depth network"
            )
        size, side = tuple(picture.shape[-2:]), (self.config.side, self.config.side)
        if depth is None:
            distance = torch.zeros(1, 1, *side)
        else:
            distance = torch.from_numpy(np.array(depth, np.float32))[None, None]
            if not torch.isfinite(distance).all():
                raise PolyditError("depth: a map holds NaN or infinity; make it again")
            distance = F.interpolate(distance, side, mode="bilinear", align_corners=True)
        pixels = to_float(picture)
        small = F.interpolate(pixels, side, mode="bilinear", antialias=True, align_corners=False).clamp(-1, 1)
        network = self.transformer
        logits = network(
            standardized(small).to(network.device, network.dtype), distance.to(network.device, network.dtype)
        ).sample
        mask = logits.float().sigmoid().cpu()
        if size != side:
            if detail == "guided" and min(size) > min(side):
                mask = guided_upsample(mask, pixels)
            else:
                mask = F.interpolate(mask, size, mode="bilinear", antialias=True, align_corners=False)
        if box is not None:
            left, top, right, bottom = checked_box(box, *size)
            inside = torch.zeros_like(mask)
            inside[..., top:bottom, left:right] = 1
            mask = mask * inside
        return mask.clamp(0, 1)


def segment(
    pipe: PDFNetPipeline,
    picture: NDArray[np.uint8],
    source: Path,
    options: Namespace,
    generator: torch.Generator,
) -> Segmented:
    """``predict`` with PDFNet: soft mask of one picture."""
    given = getattr(options, "depth", None)
    depth = None
    if given is not None:
        depth = _source(str(given), str(pipe.transformer.device))(picture, source)
        if not np.isfinite(depth).all():
            raise PolyditError(f"{source.name}: its depth holds NaN or infinity; give another --depth")
    found = pipe(
        picture,
        depth,
        detail=options.detail or "guided",
        box=parse_box(options.box, picture, source),
        min_max=options.min_max,
    )
    return Segmented(alpha=found.masks[0], record={"depth": str(given) if given is not None else "none"})


@lru_cache(maxsize=1)
def _source(path: str, device: str) -> DepthSource:
    """The depth network is loaded once for all pictures of a run."""
    return open_depth(path, device)
