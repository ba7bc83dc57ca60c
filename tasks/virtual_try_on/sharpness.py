"""At the person's own size a copy can be as sharp as the garment's picture, however few pixels the network has."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .framing import Frame
from .warping import WarpingTokenGroupDiT, copied_with, own_places, places_of, sample, trust_of

__all__ = ["sharpened"]


@torch.no_grad()
def sharpened(
    made: Tensor, model: WarpingTokenGroupDiT, person: Tensor, shown: Tensor, garment: Tensor, frame: Frame
) -> Tensor:
    """Add what the copy from the garment's own picture has and the enlarged copy of the network's size has not.

    Places, trust and light vary slowly, so they are enlarged; the garment's pixels are taken where they are.

    Args:
        made: (1, 3, *frame.whole) in [-1, 1], the network's answer, enlarged.
        model: That made it.
        person: (1, 3, *frame.size), as the network was shown them: 0 where they are made anew.
        shown: (1, 3, *frame.size), the garment as the network was shown it.
        garment: (1, 3, h, w) in [-1, 1], before it was framed.
        frame: Of the person.

    Returns:
        Like made; made itself, where it is no larger than the network's picture.
    """
    scale = frame.whole[0] / frame.inner[0]
    if scale <= 1:
        return made
    maps = model.maps(person.to(model.device, model.dtype), shown.to(model.device, model.dtype)).float().cpu()
    small = copied_with(sample(shown, places_of(maps)), maps)
    whole = frame.stretch(maps)
    places = frame.outside(own_places(whole)[None]) + whole[:, :2]
    own = Frame.fitting(tuple(garment.shape[-2:]), frame.size)
    side = [min(limit, max(1, round(part * scale))) for part, limit in zip(own.inner, own.whole, strict=True)]
    source = F.interpolate(garment, side, mode="bicubic", antialias=True).clamp(
        -1, 1
    )  # no finer than is seen
    # White lies around the garment's picture: what is beyond its edge is sampled as 0 of the picture less white.
    grid = own.inside(places).permute(0, 2, 3, 1)
    large = copied_with(F.grid_sample(source - 1, grid, align_corners=False) + 1, whole)
    return (made + trust_of(whole) * (large - frame.enlarge(small.clamp(-1, 1)))).clamp(-1, 1)
