"""What tiling must not change, and what it must hold in memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from polydit.core import tiling
from polydit.core.errors import PolyditError
from polydit.core.tiling import (
    Tile,
    blend_weights,
    crop_tiles,
    multidiffusion,
    normalised_profiles,
    plan_tiles,
    tile_starts,
    tiled_apply,
    tiled_strips,
)

BLENDS = ["gaussian", "cosine", "dit4sr"]


def picture(height: int = 37, width: int = 53, batch: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def nearest_and_square(x: torch.Tensor) -> torch.Tensor:
    """A pointwise function with upscaling: a tile's output depends on nothing around it."""
    return F.interpolate(x**2 - 0.3 * x, scale_factor=4, mode="nearest")


@pytest.mark.parametrize(
    ("length", "tile", "overlap", "expected"),
    [
        (10, 10, 3, [0]),
        (7, 10, 3, [0]),
        (11, 10, 3, [0, 1]),
        (17, 10, 3, [0, 7]),
        (18, 10, 3, [0, 7, 8]),
        (30, 10, 0, [0, 10, 20]),
        (1, 4, 3, [0]),
    ],
)
def test_last_tile_is_shifted_back_to_the_border(length, tile, overlap, expected):
    assert tile_starts(length, tile, overlap) == expected


def test_plans_cover_everything_inside_the_picture_with_one_tile_size():
    for height in range(1, 40, 3):
        for width in (1, 16, 17, 41):
            covered = torch.zeros(height, width)
            tiles = plan_tiles(height, width, (16, 12), (5, 4))
            for tile in tiles:
                assert 0 <= tile.top <= height - tile.height
                assert 0 <= tile.left <= width - tile.width
                tile.crop(covered).add_(1)
            assert covered.min() >= 1
            assert len({(tile.height, tile.width) for tile in tiles}) == 1


def test_dit4sr_weights_equal_the_released_pipeline():
    recorded = load_file(Path(__file__).parents[1] / "data/golden/dit4sr/outputs.safetensors")
    for size in (8, 64):
        expected = recorded[f"tile_weights.{size}"]
        torch.testing.assert_close(blend_weights(size, size, "dit4sr").float(), expected, rtol=2e-6, atol=0)
    assert not torch.allclose(blend_weights(8, 8, "dit4sr"), blend_weights(8, 8, "dit4sr").T)


def test_gaussian_formula_and_symmetry():
    weights = blend_weights(9, 16, "gaussian")
    assert weights[2, 3].item() == pytest.approx(
        torch.exp(torch.tensor(-(((2 - 4) / 9) ** 2) / 0.02 - ((3 - 7.5) / 16) ** 2 / 0.02)).item(), rel=1e-6
    )
    assert torch.allclose(weights, weights.flip(0, 1))


@pytest.mark.parametrize("kind", BLENDS)
@pytest.mark.parametrize(
    ("length", "tile", "overlap"), [(100, 32, 8), (100, 32, 31), (65, 64, 0), (512, 128, 16)]
)
def test_normalised_weights_sum_to_one(kind, length, tile, overlap):
    starts = tile_starts(length, tile, overlap)
    for axis in (-2, -1):
        total = torch.zeros(length)
        for start, weight in zip(starts, normalised_profiles(length, starts, tile, kind, axis), strict=True):
            assert (weight > 0).all()
            total[start : start + tile] += weight
        assert (total - 1).abs().max() < 1e-6


@pytest.mark.parametrize("kind", BLENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_tile_is_bitwise_the_untiled_result(kind, dtype):
    conv = torch.nn.Conv2d(3, 4, 3, padding=1).to(dtype)
    x = picture().to(dtype)
    with torch.no_grad():
        out = tiled_apply(conv, x, tile=64, overlap=16, blend=kind)
        assert out.dtype == dtype
        assert torch.equal(out, conv(x))


@pytest.mark.parametrize("kind", BLENDS)
@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("overlap", [0, 5, 13])
def test_pointwise_function_tiled_equals_untiled(kind, batch_size, overlap):
    x = picture()
    out = tiled_apply(nearest_and_square, x, 16, overlap, scale=4, blend=kind, batch_size=batch_size)
    assert (out - nearest_and_square(x)).abs().max() < 1e-6


def test_constant_in_constant_out():
    out = tiled_apply(lambda x: x, torch.full((1, 3, 70, 45), 0.7), 16, 6)
    assert (out - 0.7).abs().max() < 1e-6


def test_convolution_is_right_away_from_seams_and_blending_pulls_seams_down():
    """Border effects of a 3x3 convolution reach one pixel into a tile, where the weight is small."""
    conv = torch.nn.Conv2d(3, 3, 3, padding=1)
    x = picture(96, 96, batch=1)
    with torch.no_grad():
        whole = conv(x)
        cut = (tiled_apply(conv, x, 32, 0) - whole).abs().max()
        blended = (tiled_apply(conv, x, 32, 16) - whole).abs().max()
    assert blended < cut / 20


def test_tile_order_is_irrelevant():
    """Mirrored input, mirrored tiles: the sum is taken in the opposite order."""
    x = picture(48, 48)
    flipped = tiled_apply(nearest_and_square, x.flip(-1, -2), 16, 8, scale=4).flip(-1, -2)
    assert (tiled_apply(nearest_and_square, x, 16, 8, scale=4) - flipped).abs().max() < 1e-6
    calls = []
    tiled_apply(lambda t: calls.append(1) or t, x, 16, 8)
    assert len(calls) == 25


@pytest.mark.parametrize("overlap", [0, 4, 13])
def test_strips_are_bitwise_the_whole(overlap):
    conv = torch.nn.Conv2d(3, 3, 3, padding=1)

    def enlarge(x: torch.Tensor) -> torch.Tensor:
        return F.interpolate(conv(x), scale_factor=2)

    x = picture(75, 40)
    with torch.no_grad():
        whole = tiled_apply(enlarge, x, 16, overlap, scale=2, batch_size=2)
        strips = list(tiled_strips(enlarge, lambda t: t.crop(x), 75, 40, 16, overlap, scale=2, batch_size=2))
    assert torch.equal(torch.cat(strips, dim=-2), whole)
    assert max(strip.shape[-2] for strip in strips) <= 32
    assert len(strips) > 3


def test_strips_are_lazy():
    """A strip is handed over before the next row of tiles is computed, so a writer can drop it."""
    cropped: list[Tile] = []

    def crop(tile: Tile) -> torch.Tensor:
        cropped.append(tile)
        return torch.zeros(1, 3, tile.height, tile.width)

    strips = tiled_strips(lambda x: x, crop, 10**6, 64, 16, 4)
    assert next(strips).shape == (1, 3, 12, 64)
    assert len(cropped) == 5
    assert next(strips).shape == (1, 3, 12, 64)
    assert {tile.top for tile in cropped} == {0, 12}


def test_multidiffusion_hands_over_tiles_to_cut_conditions_alike():
    latents, condition = picture(24, 40), picture(24, 40, seed=1)

    def predict(crops: torch.Tensor, tiles: list[Tile]) -> torch.Tensor:
        assert len(crops) == 2 * len(tiles)
        return crops * 2 + crop_tiles(condition, tiles)

    out = multidiffusion(predict, latents, 16, 8, batch_size=3)
    assert (out - (2 * latents + condition)).abs().max() < 1e-6


def test_multidiffusion_average_is_the_weighted_mean_by_hand():
    """Two tiles that predict 0 and 1: the result is the second's share of the weight, column by column."""
    out = multidiffusion(
        lambda x, tiles: torch.full_like(x, float(tiles[0].left > 0)), torch.zeros(1, 1, 8, 12), 8, 4
    )
    weights = blend_weights(8, 8)[0]
    share = weights[:4] / (weights[:4] + weights[4:])
    expected = torch.cat([torch.zeros(4), share.float(), torch.ones(4)])
    assert torch.allclose(out[0, 0], expected.expand(8, 12), atol=1e-6)


def test_video_latents_pass_their_time_axis_through():
    x = torch.randn(1, 4, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(tiled_apply(lambda t: t + 1, x, 8, 3), x + 1, atol=1e-6)


def test_progress_counts_tiles():
    seen = []
    tiled_apply(lambda x: x, picture(32, 32), 16, 0, batch_size=2, progress=lambda *args: seen.append(args))
    assert seen == [(2, 4), (4, 4)]


def test_bad_settings_are_refused():
    with pytest.raises(PolyditError, match="overlap 16 must be"):
        tiled_apply(lambda x: x, picture(), 16, 16)
    with pytest.raises(PolyditError, match="tile size 0"):
        tiled_apply(lambda x: x, picture(), 0, 0)
    with pytest.raises(PolyditError, match="gaussian, cosine, dit4sr"):
        tiled_apply(lambda x: x, picture(), 16, 4, blend="box")
    with pytest.raises(ValueError, match="must come back as 64x64"):
        tiled_apply(lambda x: x, picture(), 16, 4, scale=4)
    with pytest.raises(ValueError, match="batch_size"):
        tiled_apply(lambda x: x, picture(), 16, 4, batch_size=0)


def test_module_is_light():
    """`predict` imports it: nothing beyond torch."""
    assert {"torch", "math"} & set(vars(tiling))
    assert not {"numpy", "PIL", "kornia"} & set(vars(tiling))
