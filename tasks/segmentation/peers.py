"""Classical segmenters that need no weights, to compare with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["PEERS", "colour_models", "otsu"]

Pixels = NDArray[np.uint8]
Soft = NDArray[np.float32]
SIDE = 256
"""Both look at the picture reduced to this longer side: they get no better by more pixels."""


def otsu(picture: Pixels) -> Soft:
    """Otsu's threshold on the distance to the colours of the picture's rim, and the largest piece.

    Args:
        picture: (H, W, 3).

    Returns:
        (H, W) of 0 and 1.
    """
    from skimage.filters import threshold_otsu

    small = _small(picture)
    distance = np.linalg.norm(small - np.median(_rim(small), axis=0), axis=-1)
    mask = distance > threshold_otsu(distance) if np.ptp(distance) > 0 else np.zeros(distance.shape, bool)
    return _large(_largest(mask).astype(np.float32), picture.shape[:2])


def colour_models(picture: Pixels, rounds: int = 4, colours: int = 5) -> Soft:
    """GrabCut's two mixtures of colours with a random-walk-like smoothing in place of its graph cut.

    After "GrabCut" (Rother, Kolmogorov, Blake 2004): object and background are mixtures of Gaussians of colours and
    places, the rim is background, and the two are fitted to their pixels in turn.

    Args:
        picture: (H, W, 3).
        rounds: of fitting.
        colours: Gaussians of each mixture.

    Returns:
        (H, W) in [0, 1].
    """
    from skimage.filters import gaussian

    small = _small(picture)
    height, width = small.shape[:2]
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    features = np.concatenate([small / 255, 0.35 * np.stack([y, x], -1)], axis=-1).reshape(-1, 5)
    belief = np.exp(-2 * (x**2 + y**2)).reshape(-1)  # objects stand in the middle
    rim = np.zeros((height, width), bool)
    rim[[0, -1]] = rim[:, [0, -1]] = True
    rng = np.random.default_rng(0)
    for _ in range(rounds):
        inside = _likelihood(features, belief, colours, rng)
        outside = _likelihood(features, 1 - belief, colours, rng)
        score = np.clip(inside - outside, -20, 20).reshape(height, width)
        score[rim] -= 3
        belief = (1 / (1 + np.exp(-gaussian(score, sigma=2)))).reshape(-1)
    return _large(belief.reshape(height, width).astype(np.float32), picture.shape[:2])


PEERS = {"Otsu on the distance to the rim": otsu, "colour models (GrabCut-like)": colour_models}
"""Name in the table -> function."""


def _likelihood(
    features: NDArray[np.float64], weights: NDArray[np.float64], count: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Log density of a mixture that was fitted to weighted pixels by k-means with covariances."""
    weights = np.maximum(weights, 1e-6)
    chosen = rng.choice(len(features), min(2000, len(features)), p=weights / weights.sum())
    sample = features[chosen]
    centers = sample[:count]
    for _ in range(8):
        nearest = ((sample[:, None] - centers) ** 2).sum(-1).argmin(1)
        centers = np.stack(
            [
                sample[nearest == k].mean(0) if (nearest == k).any() else centers[k]
                for k in range(len(centers))
            ]
        )
    densities = []
    for k in range(len(centers)):
        own = sample[nearest == k]
        if len(own) < 8:
            continue
        spread = np.cov(own.T) + 1e-3 * np.eye(5)
        shifted = features - own.mean(0)
        distance = np.einsum("ni,ni->n", shifted @ np.linalg.inv(spread), shifted)
        densities.append(np.log(len(own) / len(sample)) - 0.5 * (distance + np.linalg.slogdet(spread)[1]))
    return np.logaddexp.reduce(densities, axis=0) if densities else np.zeros(len(features))


def _small(picture: Pixels) -> NDArray[np.float64]:
    from PIL import Image

    ratio = min(1.0, SIDE / max(picture.shape[:2]))
    size = tuple(max(2, round(side * ratio)) for side in picture.shape[1::-1])
    return np.asarray(Image.fromarray(picture).resize((size[0], size[1]), Image.Resampling.BOX)).astype(float)


def _large(mask: Soft, size: tuple[int, ...]) -> Soft:
    from PIL import Image

    resized = Image.fromarray(mask).resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.asarray(resized).clip(0, 1)


def _rim(picture: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])


def _largest(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    from skimage.measure import label

    pieces = label(mask)
    if not pieces.max():
        return mask
    return pieces == 1 + np.bincount(pieces.ravel())[1:].argmax()
