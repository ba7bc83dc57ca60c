"""SSIM, MS-SSIM and GMSD against other implementations, formulas and what they must feel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.signal import convolve2d
from skimage import data
from skimage.color import rgb2ycbcr
from skimage.metrics import structural_similarity

from polydit.core.metrics import gmsd, ms_ssim, ssim

MS_SSIM_OF_ODD_SIDES = 0.810439533011151
MATLAB = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}


def photo(size: int = 96) -> np.ndarray:
    return np.ascontiguousarray(data.astronaut()[40 : 40 + size, 180 : 180 + size])


def noisy(picture: np.ndarray, sigma: float) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, sigma, picture.shape)
    return np.clip(picture + noise, 0, 255).round().astype(np.uint8)


@pytest.mark.parametrize("size", [11, 42, 96])
def test_ssim_equals_scikit_image_with_the_matlab_settings(size):
    a = photo(size)
    b = noisy(a, 15)
    expected = structural_similarity(b, a, channel_axis=2, **MATLAB)
    assert ssim(b, a).item() == pytest.approx(expected, abs=1e-12)


def test_ssim_on_luma_with_crop_equals_scikit_image():
    a = photo()
    b = noisy(a, 15)
    y_a, y_b = (rgb2ycbcr(x)[4:-4, 4:-4, 0] for x in (a, b))
    expected = structural_similarity(y_b, y_a, **MATLAB)
    assert ssim(b, a, channels="y", crop=4).item() == pytest.approx(expected, abs=1e-12)
    assert abs(structural_similarity(y_b, y_a, data_range=255) - expected) > 1e-4, (
        "its defaults are another metric"
    )


def test_ssim_equals_kornia():
    from kornia.metrics import ssim as kornia_ssim

    a = photo()
    b = noisy(a, 15)
    tensors = [torch.from_numpy(x).permute(2, 0, 1)[None].double() for x in (a, b)]
    expected = kornia_ssim(*tensors, window_size=11, max_val=255.0, padding="valid").mean()
    assert ssim(b, a).item() == pytest.approx(expected.item(), abs=1e-9)


def test_ssim_of_two_flat_pictures_is_closed_form():
    a, b = np.full((20, 20), 100, np.uint8), np.full((20, 20), 120, np.uint8)
    c1 = (0.01 * 255) ** 2
    assert ssim(a, b).item() == pytest.approx((2 * 100 * 120 + c1) / (100**2 + 120**2 + c1), abs=1e-12)


def test_batches_are_separate():
    a, b = photo(), noisy(photo(), 20)
    both = ssim(np.stack([a, b]), np.stack([a, a]))
    assert both[0].item() == pytest.approx(1, abs=1e-12)
    assert both[1].item() == pytest.approx(ssim(b, a).item(), abs=1e-12)


def test_ms_ssim_formula_by_hand():
    """Five scales from scikit-image's maps: contrast at each, similarity at the last."""
    a = photo(192)
    b = noisy(a, 30)
    x, y = a[..., 1].astype(float), b[..., 1].astype(float)
    expected = 1.0
    for scale, weight in enumerate([0.0448, 0.2856, 0.3001, 0.2363, 0.1333]):
        if scale:
            x, y = (z.reshape(z.shape[0] // 2, 2, z.shape[1] // 2, 2).mean((1, 3)) for z in (x, y))
        if scale < 4:
            # without the luminance term: the similarity with K1 so large that it becomes 1
            value = structural_similarity(y, x, K1=1e6, **MATLAB)
        else:
            value = structural_similarity(y, x, **MATLAB)
        expected *= value**weight
    assert ms_ssim(b[..., 1], a[..., 1]).item() == pytest.approx(expected, abs=1e-6)


def test_ms_ssim_recorded_figure_and_limits():
    """The recorded value is pytorch-msssim 1.0.0's (window in float32, hence 1e-6), with odd sides."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randint(0, 256, (1, 3, 200, 177), dtype=torch.uint8, generator=generator)
    b = (a.float() + torch.randn(a.shape, generator=generator) * 60).round().clamp(0, 255).to(torch.uint8)
    assert ms_ssim(b, a).item() == pytest.approx(MS_SSIM_OF_ODD_SIDES, abs=1e-6)
    assert ms_ssim(a, a).item() == pytest.approx(1, abs=1e-12)
    with pytest.raises(ValueError, match="above 160 pixels"):
        ms_ssim(a[..., :160], a[..., :160])
    with pytest.raises(ValueError, match="11 pixels or more"):
        ssim(a[..., :10], a[..., :10])


def test_gmsd_equals_the_matlab_formula():
    def gradient(grey: np.ndarray) -> np.ndarray:
        full = convolve2d(
            grey, np.full((2, 2), 0.25)
        )  # MATLAB's 'same' keeps the second half of an even kernel
        small = full[1:, 1:][::2, ::2]
        prewitt = np.array([[1, 0, -1]] * 3) / 3
        return np.hypot(convolve2d(small, prewitt, "same"), convolve2d(small, prewitt.T, "same"))

    a = photo(97)
    b = noisy(a, 20)
    g, h = (gradient(x @ np.array([0.299, 0.587, 0.114])) for x in (a, b))
    expected = ((2 * g * h + 170) / (g**2 + h**2 + 170)).std(ddof=1)
    assert gmsd(b, a).item() == pytest.approx(expected, abs=1e-12)


def test_gmsd_of_equal_pictures_is_zero_and_small_pictures_are_refused():
    assert gmsd(photo(), photo()).item() == 0
    with pytest.raises(ValueError, match="4 pixels"):
        gmsd(photo(3), photo(3))


@pytest.mark.parametrize(("metric", "sign"), [(ssim, -1), (ms_ssim, -1), (gmsd, 1)])
def test_more_noise_is_worse_and_order_is_irrelevant(metric, sign):
    a = photo(176)
    values = [metric(noisy(a, sigma), a).item() * sign for sigma in (2, 8, 30)]
    assert values == sorted(values)
    assert metric(a, noisy(a, 8)).item() == pytest.approx(metric(noisy(a, 8), a).item(), abs=1e-12)
