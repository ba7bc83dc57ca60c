"""A tiny network, a moving scene with known truth, and a way to write it."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import torch

from polydit.core.backbones import DiT
from polydit.core.diffusion import Objective
from polydit.core.media import OutputWriter
from polydit.core.media.video import video_output
from polydit.tasks.video_inpainting.formulation import Formulation
from polydit.tasks.video_inpainting.pipeline import VideoInpaintingPipeline


def tiny_dit(channels: int = 8, **options) -> DiT:
    return DiT(
        **{
            "input_size": [4, 16, 16], "patch_size": [1, 4, 4], "in_channels": channels, "out_channels": 3,
            "hidden_size": 24, "depth": 2, "num_heads": 2, "mlp_ratio": 1.0, "norm": "none", "position": "none",
            "qk_norm": "rms", "modulation": "adaln_single", "gate_init": 0.5, **options,
        }
    )  # fmt: skip


def pipeline_of(model: torch.nn.Module, **form) -> VideoInpaintingPipeline:
    formulation = Formulation(
        **{"fill": "propagated", "residual_scale": 0.2, "signal_gain": True, "frames": 8, "known": 2,
           "schedule": "even", "strength": 1.0, **form}
    )  # fmt: skip
    made = VideoInpaintingPipeline(
        model.eval(), formulation=formulation.config(), parameterization=Objective(prediction="x0").config()
    )
    made.set_progress_bar_config(disable=True)
    return made


def scene(frames: int = 12, height: int = 40, width: int = 56, pan: float = 1.5) -> tuple[np.ndarray, ...]:
    """A camera that pans over a smooth texture, and a wandering square over it: (frames, masks, truth)."""
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    truth, given, masks = [], [], []
    for t in range(frames):
        x, y = columns + pan * t, rows + 0.5 * t
        grey = [
            127 + 60 * np.sin(x / a + c) + 50 * np.cos(y / b + 2 * c)
            for a, b, c in ((5, 6, 0), (7, 4, 1), (9, 8, 2))
        ]
        picture = np.stack(grey, -1).clip(0, 255).astype(np.uint8)
        mask = np.zeros((height, width), bool)
        left = 8 + 2 * t
        mask[12:24, left : left + 10] = True
        truth.append(picture)
        masks.append(mask)
        given.append(np.where(mask[..., None], np.uint8([250, 20, 20]), picture))
    return tuple(np.stack(part) for part in (given, masks, truth))


def write_video(
    folder: Path, name: str, frames: np.ndarray, rate: int = 10, times: list | None = None
) -> Path:
    writer = OutputWriter(folder, overwrite=True)
    if frames.ndim == 3:
        frames = np.repeat(frames[..., None] * np.uint8(255), 3, -1)
    with video_output(writer, name, frames.shape[2], frames.shape[1], Fraction(rate), quality=1) as video:
        for number, frame in enumerate(frames):
            video.write(frame, times[number] if times else Fraction(number, rate))
    return folder / name
