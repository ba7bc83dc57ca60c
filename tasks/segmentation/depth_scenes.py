"""Composites with a made depth: what an object is can be seen in the depth, and only there.

Depth is 0 far away and 1 close by, as disparity is. The background is a slope with hills; other cut-outs lie flat in
it, as if they were painted on; the object stands out of it and is nearly flat in itself. So of several things that look
like objects the depth tells which one is. It is a stand-in for what a depth network says, for training without one
and for tests; it is never used on pictures of a user.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, zoom

from ...core.data.composites import Compositor, blend, degrade

__all__ = ["DepthScene", "draw_scene", "made_depth"]

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class DepthScene:
    """A picture with its mask and depth.

    Attributes:
        image: (H, W, 3) uint8.
        mask: (H, W) in [0, 1].
        depth: (H, W) in [0, 1], as blurred and wrong as an estimate.
        true_depth: (H, W) in [0, 1].
        others: (H, W) in [0, 1], the mask of what looks like an object and is none.
    """

    image: NDArray[np.uint8]
    mask: Floats
    depth: Floats
    true_depth: Floats
    others: Floats


def draw_scene(
    compositor: Compositor, rng: np.random.Generator, others: tuple[int, int] = (0, 2)
) -> DepthScene:
    """Draw a scene.

    Args:
        compositor: of whose photographs and cut-outs it is made.
        rng: source of every draw.
        others: least and most cut-outs that lie flat in the background.
    """
    photo = compositor.photos[rng.integers(len(compositor.photos))]
    background = compositor.background(photo, rng)
    hidden = np.zeros(compositor.size, np.float32)
    for _ in range(int(rng.integers(others[0], others[1] + 1))):
        layer, _ = compositor.layer(rng, background)
        background = np.rint(blend(background, [layer])).astype(np.uint8)
        hidden = np.maximum(hidden, layer[..., 3].astype(np.float32) / 255)
    layer, _ = compositor.layer(rng, background)
    mask = layer[..., 3].astype(np.float32) / 255
    image = degrade(np.rint(blend(background, [layer])).astype(np.uint8), rng, compositor.options)
    depth = made_depth(mask, rng)
    return DepthScene(image, mask, estimated(depth, rng), depth, hidden * (1 - mask))


def made_depth(mask: Floats, rng: np.random.Generator) -> Floats:
    """A depth (H, W) in [0, 1] for an object's mask."""
    height, width = mask.shape
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    turn = rng.normal(0, 0.6)
    ground = 0.45 * (y * np.cos(turn) + x * np.sin(turn)) + 0.15 * _hills(mask.shape, 4, rng)
    ground = (ground - ground.min()) / max(np.ptp(ground), 1e-6) * rng.uniform(0.3, 0.6)
    here = ground[mask > 0.5].mean() if (mask > 0.5).any() else 0.3
    near = here + rng.uniform(0.2, 0.4)
    thing = near + 0.03 * _hills(mask.shape, 5, rng)
    return np.clip(ground * (1 - mask) + thing * mask, 0, 1).astype(np.float32)


def estimated(depth: Floats, rng: np.random.Generator) -> Floats:
    """What a network may say of a depth: softer, bent, uneven, and in 8 bits."""
    soft = gaussian_filter(depth, rng.uniform(0, 0.012) * max(depth.shape))
    soft = soft + rng.uniform(0, 0.03) * _hills(depth.shape, 8, rng)
    bent = np.clip(soft, 0, 1) ** np.exp(rng.normal(0, 0.25))
    return (np.rint(bent * 255) / 255).astype(np.float32)


def _hills(size: tuple[int, ...], cells: int, rng: np.random.Generator) -> Floats:
    """Smooth noise of about unit strength."""
    coarse = rng.standard_normal((cells, cells))
    return zoom(coarse, [side / cells for side in size], order=3, mode="nearest").astype(np.float32)
