"""The identities that define the two colour fixes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from polydit.core.colour import adain, colour_fix, wavelet, wavelet_low
from polydit.core.errors import PolyditError


def picture(seed: int, height: int = 72, width: int = 96) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(2, 3, height, width, generator=generator) * 2 - 1


def test_adain_of_itself_is_itself():
    x = picture(0)
    assert (adain(x, x) - x).abs().max() < 5e-7


def test_adain_takes_mean_and_deviation_of_the_style():
    content, style = picture(0), picture(1) * 0.3 + 0.2
    out = adain(content, style)
    assert torch.allclose(out.mean((2, 3)), style.mean((2, 3)), atol=1e-6)
    # eps sits under both roots, hence not exactly equal
    assert torch.allclose(out.std((2, 3)), style.std((2, 3)), rtol=2e-4)


def test_adain_formula_with_unbiased_variance():
    content, style = picture(2).double(), picture(3, 20, 30).double()
    c_mean, c_std = content.mean((2, 3), keepdim=True), (content.var((2, 3), keepdim=True) + 1e-5).sqrt()
    s_mean, s_std = style.mean((2, 3), keepdim=True), (style.var((2, 3), keepdim=True) + 1e-5).sqrt()
    expected = (content - c_mean) / c_std * s_std + s_mean
    assert torch.allclose(adain(content.float(), style.float()).double(), expected, atol=2e-6)


def test_adain_of_one_pixel_is_the_style():
    assert torch.allclose(adain(picture(0, 1, 1), picture(1, 1, 1)), picture(1, 1, 1), atol=1e-6)


def test_wavelet_of_itself_is_exactly_itself():
    x = picture(0)
    assert torch.equal(wavelet(x, x), x)


def test_wavelet_ignores_a_constant_added_to_the_content():
    content, style = picture(0), picture(1)
    assert (wavelet(content + 0.37, style) - wavelet(content, style)).abs().max() < 5e-7


def test_wavelet_equals_the_sum_of_differences_with_the_dense_kernel():
    """The textbook form: 2-D dilated convolutions, high = sum over levels of (low_i - low_(i+1))."""
    one = torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64)
    kernel = (one[:, None] * one[None] / 16).expand(3, 1, 3, 3)

    def split(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        high = torch.zeros_like(x)
        for level in range(5):
            radius = 2**level
            low = F.conv2d(F.pad(x, [radius] * 4, mode="replicate"), kernel, dilation=radius, groups=3)
            high, x = high + (x - low), low
        return high, x

    content, style = picture(4), picture(5)
    expected = split(content.double())[0] + split(style.double())[1]
    assert (wavelet(content, style).double() - expected).abs().max() < 1e-6


def test_wavelet_low_keeps_constants_and_small_pictures_work():
    flat = torch.full((1, 3, 40, 50), 0.25)
    assert torch.allclose(wavelet_low(flat), flat, atol=1e-7)
    for height, width in [(1, 1), (3, 40), (33, 2)]:
        assert wavelet(picture(0, height, width), picture(1, height, width)).shape == (2, 3, height, width)


def test_half_precision_keeps_its_dtype():
    x = picture(0).bfloat16()
    assert adain(x, x).dtype == wavelet(x, x).dtype == torch.bfloat16


def test_shape_mismatch_and_unknown_kind_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        wavelet(picture(0), picture(0, 20, 20))
    with pytest.raises(ValueError, match="batch or channels"):
        adain(picture(0), picture(0)[:, :1])
    with pytest.raises(PolyditError, match="adain, wavelet"):
        colour_fix(picture(0), picture(0), "sepia")


def test_colour_fix_names():
    content, style = picture(0), picture(1)
    assert colour_fix(content, style, "none") is content
    assert torch.equal(colour_fix(content, style, "adain"), adain(content, style))
    assert torch.equal(colour_fix(content, style, "wavelet"), wavelet(content, style))
