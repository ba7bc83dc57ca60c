"""Agnostic masks: which part of a person is hidden and made anew, whatever the person wears.

A mask that follows the old garment tells its sleeves and hem to the network, which then makes them again; so whole
limbs are covered. Masks are (H, W) bool, True where the picture is to be generated.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ...core.data.images import ImageInfo, read_image, to_uint8
from ...core.data.masks import convex_hull, counted, dilate, harden
from ...core.errors import PolyditError

__all__ = [
    "CATEGORIES",
    "SCHEMES",
    "Scheme",
    "from_parse",
    "from_region",
    "light_of",
    "read_labels",
    "read_mask",
]

Region = NDArray[np.bool_]
CATEGORIES = ("upper", "lower", "overall")
REGION_GROWTH = 0.04
"""A region that somebody painted grows by this share of the picture's height."""


@dataclass(frozen=True)
class Scheme:
    """What the numbers in a map of labels mean.

    Attributes:
        garments: category -> labels of its clothes.
        limbs: category -> labels of the skin that such clothes may cover or bare.
        strong: labels that are never generated: the face, and what is on it.
    """

    garments: dict[str, tuple[int, ...]]
    limbs: dict[str, tuple[int, ...]]
    strong: tuple[int, ...]


SCHEMES = {
    "lip": Scheme(  # VITON-HD's image-parse: 10 is the neck there
        garments={"upper": (5, 6, 7), "lower": (9, 12), "overall": (5, 6, 7, 9, 12)},
        limbs={"upper": (10, 14, 15), "lower": (16, 17), "overall": (10, 14, 15, 16, 17)},
        strong=(4, 13),
    ),
    "atr": Scheme(  # DressCode's label_maps
        garments={"upper": (4, 7), "lower": (5, 6), "overall": (4, 5, 6, 7)},
        limbs={"upper": (14, 15), "lower": (12, 13), "overall": (12, 13, 14, 15)},
        strong=(3, 11),
    ),
}


def from_parse(labels: NDArray[np.integer], scheme: str, category: str = "upper") -> Region:
    """Hide a garment by a map of labels: clothes and limbs, their hulls, without face, hair and other things.

    The recipe of CatVTON's masks without the dense body map that it reads besides: the hands, which only that map
    knows, are hidden with the arms.

    Args:
        labels: (H, W).
        scheme: ``lip`` or ``atr``.
        category: what is to be replaced, one of `CATEGORIES`.

    Raises:
        PolyditError: nothing of the category is in the map.
    """
    from scipy.ndimage import gaussian_filter, label

    meaning = SCHEMES[scheme]
    garment = np.isin(labels, meaning.garments[category])
    area = garment | np.isin(labels, meaning.limbs[category])
    if not area.any():
        raise PolyditError(
            f"parse map: shows no {category} garment and no limbs ({scheme} labels); is it a map of a person?"
        )
    height, width = labels.shape
    weak = ~area & (labels != 0)
    parts, count = label(area)
    hull = np.zeros_like(area)
    for number in range(1, count + 1):
        hull |= convex_hull(parts == number)
    area = hull & ~weak
    # A Gaussian window of max(w, h) // 25 pixels, as OpenCV derives its width, and a tenth of the full value.
    window = max(height, width) // 25
    soft = gaussian_filter(area.astype(np.float32), 0.3 * ((window - 1) * 0.5 - 1) + 0.8, truncate=2.0)
    area = (soft > 0.1) | garment
    area &= ~np.isin(labels, meaning.strong)
    return np.asarray(dilate(area, max(height, width) // 250))


def from_region(region: Region, growth: float = REGION_GROWTH) -> Region:
    """Hide what lies around a region that was painted or marks a garment: its convex hull, grown.

    Args:
        region: (H, W).
        growth: by this share of the height.
    """
    return np.asarray(dilate(convex_hull(region), max(1, round(growth * region.shape[0]))))


def read_mask(path: Path, size: tuple[int, int] | None = None) -> Region:
    """A mask from a picture: set where it is light; where it has no light pixel but transparency, where it is opaque.

    Args:
        path: the file.
        size: (height, width) that it must have.

    Raises:
        PolyditError: it cannot be read, has another size, or is empty.
    """
    mask = light_of(*read_image(path, background=None))
    if size is not None and mask.shape != size:
        raise PolyditError(
            f"{path}: {mask.shape[1]}x{mask.shape[0]}, but the person is {size[1]}x{size[0]}; "
            "give a mask of the same size"
        )
    if not mask.any():
        raise PolyditError(f"{path}: is empty; paint white what is to be dressed anew")
    return mask


def light_of(pixels: NDArray[Any], info: ImageInfo) -> Region:
    """Where a picture as `read_image` gives it, without a background, is light, or see `read_mask`."""
    mask: Region = harden(counted(to_uint8(pixels).max(-1)))
    if info.alpha is not None:
        opaque = harden(to_uint8(info.alpha))
        mask = mask & opaque if (mask & opaque).any() else opaque
    return mask


def read_labels(path: Path) -> NDArray[np.uint8]:
    """A map of labels (H, W): the numbers as stored, not the colours that they are shown in.

    Raises:
        PolyditError: it cannot be read, or stores colours.
    """
    try:
        with Image.open(path) as picture:
            if picture.mode not in ("P", "L", "I;16", "I"):
                raise PolyditError(
                    f"{path}: stores colours ({picture.mode}), not labels; give the map as grey or palette PNG"
                )
            return np.asarray(picture).astype(np.uint8)
    except FileNotFoundError as error:
        raise PolyditError(f"{path}: no such file; check the path") from error
    except (OSError, UnidentifiedImageError, SyntaxError) as error:
        raise PolyditError(f"{path}: not a picture that can be read; replace or remove it") from error
