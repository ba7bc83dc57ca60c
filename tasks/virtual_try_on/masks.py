"""Regions of pictures: growing, hulls, what to generate anew."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["convex_hull", "dilate"]

Region = NDArray[np.bool_]


def dilate(region: Region, radius: int) -> Region:
    """Grow a region by a disc of `radius` pixels."""
    from scipy.ndimage import distance_transform_edt

    if radius <= 0 or not region.any():
        return region
    distance = distance_transform_edt(~region)
    assert isinstance(distance, np.ndarray)
    return distance <= radius


def convex_hull(region: Region) -> Region:
    """Convex hull of each connected part of a region, joined."""
    from scipy.ndimage import label
    from skimage.morphology import convex_hull_image

    parts, count = label(region)
    hull = np.zeros_like(region)
    for number in range(1, count + 1):
        hull |= convex_hull_image(parts == number, offset_coordinates=False)
    return hull
