"""PSNR against its closed form, scikit-image, kornia and recorded figures of classical codecs."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio

from polydit.core.metrics import levels, luma, psnr


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def as_floats(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array).permute(2, 0, 1).float() / 127.5 - 1


@pytest.mark.parametrize("error", [1, 5, 255])
def test_constant_error_is_closed_form(error):
    black = np.zeros((8, 9, 3), np.uint8)
    assert psnr(black + np.uint8(error), black).item() == pytest.approx(
        20 * math.log10(255 / error), abs=1e-12
    )


def test_equal_pictures_are_infinite():
    assert psnr(noise(5, 5, 3), noise(5, 5, 3)).item() == math.inf


def test_equals_scikit_image_on_rgb_and_on_studio_luma():
    a, b = noise(30, 40, 3), noise(30, 40, 3, seed=1)
    assert psnr(a, b).item() == pytest.approx(peak_signal_noise_ratio(b, a), abs=1e-10)
    y_a, y_b = (rgb2ycbcr(x)[4:-4, 4:-4, 0] for x in (a, b))
    expected = 10 * math.log10(255**2 / ((y_a - y_b) ** 2).mean())
    assert psnr(a, b, channels="y", crop=4).item() == pytest.approx(expected, abs=1e-10)


def test_studio_luma_is_1_322_db_above_full_range():
    from kornia.color import rgb_to_y

    photo = data.astronaut()[:128, :128]
    noisy = np.clip(photo + np.random.default_rng(0).normal(0, 12, photo.shape), 0, 255).astype(np.uint8)
    full = [rgb_to_y(levels(x).float() / 255).double() for x in (photo, noisy)]
    full_range = 10 * torch.log10(1 / (full[0] - full[1]).square().mean())
    # kornia's weights are rounded to three digits, hence not to more
    assert psnr(noisy, photo, channels="y").item() - full_range.item() == pytest.approx(1.322, abs=2e-3)


def test_luma_of_black_white_and_grey():
    extremes = torch.tensor([0.0, 255.0], dtype=torch.float64).expand(1, 3, 1, 2)
    assert luma(extremes).ravel().tolist() == pytest.approx([16, 235])
    assert torch.allclose(luma(extremes[:, :1]), luma(extremes))
    with pytest.raises(ValueError, match="1 or 3 channels"):
        luma(torch.zeros(1, 4, 2, 2))


def test_every_kind_of_picture_gives_the_same_figure():
    a, b = noise(12, 14, 3), noise(12, 14, 3, seed=1)
    expected = psnr(a, b)
    assert torch.equal(psnr(as_floats(a), as_floats(b)), expected)
    assert torch.equal(psnr(as_floats(a).double()[None], b), expected)
    assert torch.equal(psnr(torch.from_numpy(a).permute(2, 0, 1), as_floats(b)), expected)
    stacked = psnr(np.stack([a, b]), np.stack([b, b]))
    assert stacked[0] == expected[0]
    assert stacked[1] == math.inf
    assert psnr(a[..., 0], b[..., 0]).shape == (1,)


def test_floats_are_rounded_and_clipped_as_they_would_be_saved():
    target = torch.zeros(1, 3, 4, 4) - 1
    assert psnr(target - 0.5, target).item() == math.inf
    assert psnr(target + 0.9 / 255, target).item() == math.inf  # 0.45 of a level
    assert psnr(target + 1.1 / 255, target).item() == pytest.approx(20 * math.log10(255))


def test_crop_leaves_the_border_out():
    a = np.zeros((20, 20, 3), np.uint8)
    b = a.copy()
    b[:4], b[:, -4:] = 255, 255
    assert psnr(a, b, crop=4).item() == math.inf
    assert psnr(a, b, crop=3).item() < 20


def test_wrong_pictures_are_refused():
    a = noise(8, 8, 3)
    with pytest.raises(ValueError, match="shapes differ"):
        psnr(a, a[1:])
    with pytest.raises(ValueError, match="leaves nothing of 8x8"):
        psnr(a, a, crop=4)
    with pytest.raises(ValueError, match="'rgb' or 'y'"):
        psnr(a, a, channels="Y")
    with pytest.raises(ValueError, match="arrays must be 8-bit"):
        psnr(a / 255, a)
    with pytest.raises(ValueError, match="tensors must be"):
        psnr(torch.zeros(8, 8, dtype=torch.int64), a)


CODECS = [
    ("JPEG", {"quality": 5, "progressive": True, "optimize": True, "subsampling": 2}, 0.199, 24.11),
    ("JPEG", {"quality": 10, "progressive": True, "optimize": True, "subsampling": 2}, 0.316, 26.84),
    ("JPEG", {"quality": 30, "progressive": True, "optimize": True, "subsampling": 2}, 0.623, 30.54),
    ("JPEG", {"quality": 75, "progressive": True, "optimize": True, "subsampling": 2}, 1.194, 34.00),
    ("WEBP", {"quality": 1, "method": 6}, 0.184, 27.04),
    ("WEBP", {"quality": 10, "method": 6}, 0.279, 29.20),
    ("WEBP", {"quality": 50, "method": 6}, 0.562, 33.00),
    ("AVIF", {"quality": 10, "speed": 6, "subsampling": "4:2:0"}, 0.133, 26.86),
]


@pytest.mark.parametrize(("kind", "settings", "bpp", "expected"), CODECS)
def test_codecs_on_a_known_photograph(kind, settings, bpp, expected):
    """Recorded with Pillow 13; other versions of the codecs may move in the second digit."""
    if kind == "AVIF" and ".avif" not in Image.registered_extensions():
        pytest.skip("this Pillow has no AVIF")
    photo = data.astronaut()
    file = io.BytesIO()
    Image.fromarray(photo).save(file, kind, **settings)
    decoded = np.asarray(Image.open(file).convert("RGB"))
    assert psnr(decoded, photo).item() == pytest.approx(expected, abs=0.1)
    assert 8 * len(file.getvalue()) / (512 * 512) == pytest.approx(bpp, rel=0.03)
