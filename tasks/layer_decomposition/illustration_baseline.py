"""What classical image processing makes of an illustration: the baseline of the illustration layers.

Lines are dark thin ridges, which a closing fills. Regions of the filled picture have their median colour; where the
picture is darker is shadow, where it is brighter, highlight. White that reaches the border is paper.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .cartoons import stack

__all__ = ["classical_layers"]

Picture = NDArray[np.float32]
_LUMA = np.array([0.2126, 0.7152, 0.0722], np.float32)


def classical_layers(picture: Picture, thickest: float = 0.025) -> NDArray[np.float32]:
    """Layers (4, H, W, 4), straight alpha in [0, 1], of a picture (H, W, 3) in [0, 1].

    Args:
        picture: on white paper.
        thickest: width of the thickest line, in sides of the picture.
    """
    from scipy import ndimage
    from skimage.segmentation import felzenszwalb

    luma = picture @ _LUMA
    radius = max(2, round(thickest * max(luma.shape)))
    rows, columns = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    disc = rows**2 + columns**2 <= radius**2
    closed = ndimage.grey_closing(luma, footprint=disc)
    depth = np.clip((closed - luma) / np.maximum(closed, 0.05), 0, 1)
    line = np.where((depth > 0.3) & (luma < 0.45), depth, 0).astype(np.float32)
    ink = np.median(picture[line > 0.8], axis=0) if (line > 0.8).any() else np.zeros(3)

    beside = ndimage.binary_dilation(line > 0.1, iterations=1)
    if beside.all():
        beside[:] = False
    near = ndimage.distance_transform_edt(beside, return_distances=False, return_indices=True)
    filled = picture[tuple(near)]
    regions = felzenszwalb(filled, scale=120, sigma=0.5, min_size=max(12, luma.size // 800))
    flat = np.empty_like(filled)
    for label, place in enumerate(ndimage.find_objects(regions + 1)):
        inside = regions[place] == label
        flat[place][inside] = np.median(filled[place][inside], axis=0)
    # White paper: what is white and connected with the border over white or line.
    white = (flat.min(-1) > 0.97) & (filled.min(-1) > 0.9)
    labels, _ = ndimage.label(white)
    edge = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
    alpha = (~np.isin(labels, edge[edge > 0])).astype(np.float32)

    base, light = flat @ _LUMA, filled @ _LUMA
    shadow = np.clip(1 - light / np.maximum(base, 0.05), 0, 1)
    highlight = np.clip((light - base) / np.maximum(1 - base, 0.05), 0, 1)
    shadow, highlight = (np.where(part < 0.04, 0, part).astype(np.float32) for part in (shadow, highlight))
    flat_layer = np.concatenate([flat, alpha[..., None]], -1).astype(np.float32)
    line_layer = np.concatenate([np.broadcast_to(ink, picture.shape), line[..., None]], -1).astype(np.float32)
    return stack(flat_layer, shadow, highlight, line_layer)
