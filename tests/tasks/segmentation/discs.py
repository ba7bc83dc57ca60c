"""A network small enough for a test, and pictures of discs to run it on."""

from __future__ import annotations

import numpy as np
import torch

from polydit.core.diffusion import Objective, Terminal
from polydit.tasks.segmentation.backbone import DichotomousDiT
from polydit.tasks.segmentation.formulation import Formulation

FORM = Formulation("channels", scales=0, noise="none", bounded=True, context=True, side=32, tile=32)


def small_dit(**options) -> DichotomousDiT:
    torch.manual_seed(0)
    config = {
        "input_size": 32,
        "patch_size": 8,
        "in_channels": 6,
        "out_channels": 2,
        "latent_channels": 3,
        "embed": False,
        "interact": False,
        "scales": 0,
        "stem": 8,
        "hidden_size": 32,
        "depth": 2,
        "num_heads": 2,
        "mlp_ratio": 1.0,
        "norm": "none",
        "position": "none",
        "qk_norm": "rms",
        "modulation": "adaln_single",
        "conv_kernel": 3,
        "conv_dense": True,
        "gate_init": 0.5,
    }
    return DichotomousDiT(**{**config, **options})


def one_step() -> Objective:
    return Objective(prediction="x0", loss="l1", timesteps=Terminal(probability=1.0))


def disc(height: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A red disc on blue noise, and its mask, (H, W, 3) and (H, W) uint8."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    radius = 0.3 * min(height, width)
    inside = np.hypot(y - height * rng.uniform(0.4, 0.6), x - width * rng.uniform(0.4, 0.6)) < radius
    picture = rng.integers(0, 90, (height, width, 3), dtype=np.uint8)
    picture[..., 2] += 120
    picture[inside] = (220, 40, 30)
    return picture, np.where(inside, 255, 0).astype(np.uint8)


class Pixels:
    """Pixel space."""

    @staticmethod
    def encode(pixels):
        return pixels
