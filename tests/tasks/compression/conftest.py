"""A tiny codec, and pictures for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from polydit.tasks.compression.picture_codec import PictureCodec
from polydit.tasks.compression.weights import CodecWeights


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth shapes with an edge and some grain, (H, W, 3) uint8."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / (9 + 4 * c) + c) + np.cos(y / (7 + 3 * c)) for c in range(3)]
    pixels = 110 + 40 * np.stack(waves, -1) + 60 * (x + 2 * y > (width + height) * 0.8)[..., None]
    return (pixels + rng.normal(0, 3, pixels.shape)).clip(0, 255).astype(np.uint8)


def tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 127.5 - 1


@pytest.fixture(scope="package")
def trainable() -> PictureCodec:
    """Untrained but for statistics, and with noise where training would write: every part does something."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        codec = PictureCodec(width=8, coarse_width=8, latent_width=8, pixel_width=8, pixel_depth=1)
    codec.start_from(torch.stack([tensor(picture(128, 128, seed)) for seed in range(4)]))
    with torch.no_grad():
        for net in (codec.refine_latents, codec.refine_pixels):
            net.last.weight.copy_(0.02 * torch.randn(net.last.weight.shape, generator=generator))
    return codec.eval()


@pytest.fixture(scope="package")
def codec(trainable: PictureCodec) -> PictureCodec:
    return trainable.frozen_copy()


@pytest.fixture(scope="package")
def weights(codec: PictureCodec) -> CodecWeights:
    return CodecWeights(codec, "the tiny weights")


@pytest.fixture(scope="package")
def folder(codec: PictureCodec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny codec as a saved pipeline."""
    from polydit.tasks.compression.pipeline import CompressionPipeline

    path = tmp_path_factory.mktemp("codec") / "pipeline"
    CompressionPipeline(codec).save_pretrained(path)
    return path


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(picture(70, 50)).save(path)
    return path
