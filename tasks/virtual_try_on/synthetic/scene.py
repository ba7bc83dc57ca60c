"""One sample: a person in a garment, the garment laid flat, and the masks, from a seed and a number."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ....core.data.masks import convex_hull, dilate
from .body import SPLITS, draw_body
from .fabric import Pictures
from .flat import Lay, draw_flat
from .garment import Garment, draw_garment
from .person import Cloth, Figure, draw_person, masks_of

__all__ = ["MASKS", "Scene", "draw_scene"]

MASKS = ("body", "hull", "painted")
"""Kinds of agnostic masks: along the body, its convex hull, or rough as if painted by hand."""

Pixels = NDArray[np.float32]


@dataclass(frozen=True)
class Scene:
    """What one sample holds; colours and masks are float32 in [0, 1].

    Attributes:
        person: (H, W, 3), wearing the garment.
        garment: (H, W, 3), laid flat.
        mask: (H, W), 0 or 1; 1 is to be generated. It covers torso and arms whatever is worn.
        worn: (H, W), visible part of the worn garment.
        garment_mask: (H, W), the garment laid flat.
        kind: one of `polydit.tasks.virtual_try_on.synthetic.garment.KINDS`.
        flow: (2, H, W) float32: where in ``garment`` the cloth of a pixel of ``person`` lies, column and row in
            [-1, 1] from edge to edge (`grid_sample` with ``align_corners=False``); NaN where no cloth is seen, where
            cloth meets something else, and where the flat garment hides that cloth under another part.
    """

    person: Pixels
    garment: Pixels
    mask: Pixels
    worn: Pixels
    garment_mask: Pixels
    kind: str
    flow: Pixels


def draw_scene(
    index: int,
    size: tuple[int, int],
    pictures: Pictures,
    *,
    split: str = "train",
    seed: int = 0,
    garment: int | None = None,
    mask: str | None = None,
) -> Scene:
    """Draw sample number `index`.

    Args:
        index: number of the person.
        size: (height, width) in pixels.
        pictures: where fabrics, prints and backgrounds come from.
        split: ``train``, ``val`` or ``test``; none shares a body or a draw with another one.
        seed: of all draws.
        garment: number of the garment; the person's own when ``None``.
        mask: one of `MASKS`; at random (mostly ``body``) when ``None``.
    """
    worn = index if garment is None else garment
    part = SPLITS.index(split)
    person_rng = np.random.default_rng([seed, part, index, 1])
    garment_rng = np.random.default_rng([seed, part, worn, 2])
    factor = 2 if size[0] <= 256 else 1  # smaller pictures are drawn larger, for smooth edges
    fine = (size[0] * factor, size[1] * factor)
    body = draw_body(person_rng, split, size[1] / size[0])
    figure = Figure(body, fine)
    cut = draw_garment(garment_rng, pictures, max(48, fine[0] * 9 // 10))
    flat, flat_mask, lay = draw_flat(cut, fine, garment_rng)
    regions = masks_of(figure, person_rng)
    kind = mask or str(person_rng.choice(MASKS, p=[0.76, 0.12, 0.12]))
    agnostic = agnostic_mask(regions, kind, person_rng)
    person, visible, cloth = draw_person(figure, cut, pictures, person_rng)
    return Scene(
        *(_reduce(part, factor) for part in (person, flat)),
        mask=(_reduce(agnostic.astype(np.float32), factor) > 0).astype(np.float32),
        worn=_reduce(visible, factor),
        garment_mask=_reduce(flat_mask, factor),
        kind=cut.kind,
        flow=flow_of(cut, lay, cloth, factor),
    )


def flow_of(garment: Garment, lay: Lay, cloth: Cloth, factor: int) -> Pixels:
    """The ``flow`` of a scene, at a `factor`-th of the size that it was drawn at."""
    height, width = (side // factor for side in cloth.part.shape)
    shown = (cloth.part > 0) & lay.shows(garment, cloth.x, cloth.y, cloth.part > 1)
    part = np.where(shown, cloth.part, 0).reshape(height, factor, width, factor)
    one = (part == part[:, :1, :, :1]).all((1, 3)) & (part[:, 0, :, 0] > 0)
    places = lay.place(cloth.x, cloth.y).reshape(2, height, factor, width, factor).mean((2, 4))
    return np.where(one, places, np.nan).astype(np.float32)


def agnostic_mask(
    regions: dict[str, NDArray[np.bool_]], kind: str, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """The region to be generated anew: torso and arms, without head and hands."""
    area = regions["arms"] | regions["torso"]
    height = area.shape[0]
    if kind == "hull":
        area = convex_hull(area)
    elif kind == "painted":
        area = dilate(area, max(1, round(height * rng.uniform(0.01, 0.035))))
    return area & ~regions["head"] & ~regions["hands"]


def _reduce(values: Pixels, factor: int) -> Pixels:
    if factor == 1:
        return values
    height, width = values.shape[0] // factor, values.shape[1] // factor
    return values.reshape(height, factor, width, factor, *values.shape[2:]).mean((1, 3), dtype=np.float32)
