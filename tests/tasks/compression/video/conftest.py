"""A tiny video codec and clips for it."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from polydit.core.media.video import VideoWriter
from polydit.tasks.compression.video.model import VideoCompression
from polydit.tasks.compression.video.video_codec import VideoCodec


def drift(
    count: int, height: int = 64, width: int = 80, step: float = 1.5, objects: bool = True
) -> np.ndarray:
    """Waves, and with ``objects`` an edge and a square at another speed, (T, H, W, 3) uint8."""
    y, x = np.mgrid[:height, :width].astype(float)
    frames = []
    for number in range(count):
        moved = x + step * number
        waves = [np.sin(moved / (5 + c) + c) * np.cos(y / (6 + c)) for c in range(3)]
        pixels = 120 + 45 * np.stack(waves, -1)
        if objects:
            pixels += 50 * (moved + 2 * y > 150)[..., None]
            left = 10 + 2 * number
            pixels[20:36, left : left + 16] = (200, 60, 40)
        frames.append(pixels.clip(0, 255))
    return np.stack(frames).astype(np.uint8)


def write_clip(path: Path, frames: np.ndarray, times: list[float] | None = None, rate: int = 10) -> Path:
    height, width = frames.shape[1:3]
    with path.open("wb") as file, VideoWriter(file, width, height, Fraction(rate), quality=0) as video:
        for number, pixels in enumerate(frames):
            time = (
                Fraction(number, rate) if times is None else Fraction(times[number]).limit_denominator(1000)
            )
            video.write(pixels, time)
    return path


@pytest.fixture(scope="package")
def trainable() -> VideoCodec:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        codec = VideoCodec(width=8, coarse_width=8, inter_width=8, inter_coarse_width=8)
    clip = (
        torch.from_numpy(np.stack([drift(3, 64, 64), drift(3, 64, 64, 0.5)])).permute(0, 1, 4, 2, 3).float()
    )
    VideoCompression(codec).start_from(clip)
    return codec.eval()


@pytest.fixture(scope="package")
def codec(trainable: VideoCodec) -> VideoCodec:
    return trainable.frozen_copy()


@pytest.fixture(scope="package")
def folder(codec: VideoCodec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from polydit.tasks.compression.video.pipeline import VideoCompressionPipeline

    path = tmp_path_factory.mktemp("video") / "pipeline"
    VideoCompressionPipeline(codec).save_pretrained(path)
    return path
