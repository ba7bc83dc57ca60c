"""The degradations: published recipe, statistics of its draws, identities, and records that replay."""

from __future__ import annotations

import io
import json
import math
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from polydit.core.data.degradation import PRESETS, Degradation, bicubic, jpeg, quantize, replay, usm_sharpen
from polydit.core.data.degradation import kernels as K
from polydit.core.data.degradation.operations import add_noise, apply_step
from polydit.core.data.degradation.recipes import REAL_ESRGAN
from polydit.core.errors import PolyditError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return -10 * math.log10(((a - b).double() ** 2).mean().item() + 1e-20)


@pytest.fixture(scope="module")
def picture() -> torch.Tensor:
    """A smooth picture with edges, (3, 96, 128)."""
    y, x = torch.meshgrid(torch.linspace(0, 1, 96), torch.linspace(0, 1, 128), indexing="ij")
    smooth = torch.stack(
        [0.5 + 0.4 * torch.sin(6 * x + 2 * y), 0.2 + 0.6 * y, 0.5 + 0.3 * torch.cos(5 * y * x)]
    )
    smooth[:, 30:60, 40:90] *= 0.6
    return quantize(smooth)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("scale", [2, 4])
def test_low_quality_has_the_targets_size_divided_by_the_scale(preset, scale, picture):
    degradation = Degradation(preset, scale, sharpen=preset == "real_esrgan")
    draws = generator(1)
    for _ in range(12):
        pair = degradation(picture, draws)
        assert pair.lq.shape == (3, 96 // scale, 128 // scale)
        assert pair.gt.shape == picture.shape
        assert pair.lq.min() >= 0
        assert pair.lq.max() <= 1
        levels = pair.lq * 255
        assert (levels - levels.round()).abs().max() < 1e-4


@pytest.mark.parametrize("preset", PRESETS)
def test_a_record_replays_bit_identically_after_json(preset, picture):
    degradation = Degradation(preset, 4, sharpen=True)
    for seed in range(8):
        pair = degradation(picture, generator(seed))
        lq, gt = replay(picture, json.loads(json.dumps(pair.record)))
        assert torch.equal(lq, pair.lq)
        assert torch.equal(gt, pair.gt)
        again = degradation(picture, generator(seed))
        assert again.record == pair.record


def test_draws_differ_between_samples(picture):
    degradation, draws = Degradation("real_esrgan", 4), generator()
    first, second = degradation(picture, draws), degradation(picture, draws)
    assert first.record != second.record
    assert not torch.equal(first.lq, second.lq)


def test_only_the_given_generator_is_used(picture):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    for preset in PRESETS:
        Degradation(preset, 4)(picture, generator())
    assert torch.equal(before, torch.get_rng_state())


def test_identity_numbers_change_almost_nothing(picture):
    delta = {"shape": "delta", "size": 1}
    steps = [
        {"op": "blur", "kernel": delta},
        {"op": "resize", "factor": 1.0, "mode": "bicubic"},
        {"op": "noise", "kind": "gaussian", "strength": 0.0, "gray": False, "seed": 0},
        {"op": "jpeg", "quality": 100},
        {"op": "blur", "kernel": delta},
        {"op": "resize", "size": [96, 128], "mode": "bilinear"},
        {"op": "noise", "kind": "poisson", "strength": 0.0, "gray": True, "seed": 0},
        {"op": "jpeg", "quality": 100},
        {"op": "quantize"},
    ]
    lq, _ = replay(picture, {"size": [96, 128], "sharpen": False, "steps": steps})
    assert psnr(lq, picture) > 40


def test_bicubic_is_pillows(picture):
    for size in ((24, 32), (48, 64), (50, 61), (192, 256)):
        pixels = (picture * 255).round().byte().permute(1, 2, 0).numpy()
        theirs = np.asarray(Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BICUBIC)).astype(int)
        ours = (quantize(bicubic(picture, size)) * 255).round().int().permute(1, 2, 0).numpy()
        assert np.abs(ours - theirs).max() <= 1
        assert (ours != theirs).mean() < 0.25
    lq = Degradation("bicubic", 4)(picture, generator()).lq
    theirs = np.asarray(Image.fromarray(pixels).resize((32, 24), Image.Resampling.BICUBIC))
    assert np.array_equal((lq * 255).round().byte().permute(1, 2, 0).numpy(), theirs)


def test_jpeg_is_pillows_own(picture):
    pixels = (picture * 255).round().byte().permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=50, subsampling=2)
    theirs = torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1) / 255
    assert torch.equal(jpeg(picture, 50), theirs)


def test_differentiable_jpeg_is_near_and_passes_gradients(picture):
    image = picture.clone().requires_grad_(True)
    ours = jpeg(image, 80, differentiable=True)
    ours.sum().backward()
    assert ours.shape == picture.shape
    assert image.grad.abs().sum() > 0
    assert psnr(ours.detach(), jpeg(picture, 80)) > 36


# --- kernels -------------------------------------------------------------------------------------------------------


def test_kernels_sum_to_one_and_are_padded_with_zeros():
    dice = K.Dice(generator(5))
    for _ in range(200):
        kernel = K.make_kernel(K.draw_blur_kernel(dice, (0.2, 3.0)), 21)
        assert kernel.shape == (21, 21)
        assert kernel.sum().item() == pytest.approx(1, abs=1e-5)
        # Point symmetry holds for every shape of the mixture.
        assert torch.allclose(kernel, kernel.flip(0, 1), atol=1e-6)
        sinc = K.make_kernel(K.draw_sinc_kernel(dice), 21)
        assert sinc.sum().item() == pytest.approx(1, abs=1e-5)


def test_kernel_shapes_follow_their_formulas():
    base = {"size": 9, "sigma": [2.0, 1.0], "theta": 0.0, "beta": 1.5}
    # d^2 at the pixel two to the right of the centre is (2/2)^2 = 1, one below it is (1/1)^2 = 1.
    for shape, ratio in (
        ("gaussian", math.exp(-0.5)),
        ("generalized", math.exp(-0.5)),
        ("plateau", 0.5),
    ):
        kernel = K.make_kernel({**base, "shape": shape})
        assert (kernel[4, 6] / kernel[4, 4]).item() == pytest.approx(ratio, rel=1e-5)
        assert (kernel[5, 4] / kernel[4, 4]).item() == pytest.approx(ratio, rel=1e-5)
    turned = K.make_kernel({**base, "shape": "gaussian", "theta": math.pi / 2})
    assert torch.allclose(turned, K.make_kernel({**base, "shape": "gaussian"}).T, atol=1e-6)
    cutoff = math.pi / 2
    sinc = K.make_kernel({"shape": "sinc", "size": 21, "cutoff": cutoff})
    centre = cutoff**2 / (4 * math.pi)
    beside = cutoff * torch.special.bessel_j1(torch.tensor(cutoff)).item() / (2 * math.pi)
    assert (sinc[10, 11] / sinc[10, 10]).item() == pytest.approx(beside / centre, rel=1e-4)


@pytest.mark.parametrize("size", [7, 21])
def test_each_sample_is_blurred_by_its_own_kernel(size):
    images = torch.rand(2, 3, 40, 52, generator=generator())
    kernels = torch.rand(2, size, size, generator=generator(1))
    kernels /= kernels.sum((1, 2), keepdim=True)
    margin = size // 2
    padded = torch.nn.functional.pad(images, (margin,) * 4, mode="reflect")
    for index in range(2):
        plain = torch.nn.functional.conv2d(padded[index][:, None], kernels[index][None, None])[:, 0]
        assert (K.blur(images, kernels)[index] - plain).abs().max() < 1e-5


@pytest.mark.parametrize("shape", [(40, 52), (400, 30), (5, 5)])
def test_separable_blur_equals_the_full_kernel(shape):
    images = torch.rand(1, 3, *shape, generator=generator())
    profile = K.gaussian_1d(13, 2.0)
    if min(shape) > 6:
        assert (
            K.separable_blur(images, profile) - K.blur(images, torch.outer(profile, profile))
        ).abs().max() < 1e-5
    assert K.separable_blur(torch.ones(1, 3, *shape), profile).sub(1).abs().max() < 1e-5


def test_usm_leaves_flat_parts_and_sharpens_edges(picture):
    flat = torch.full((3, 80, 80), 0.4)
    assert (usm_sharpen(flat) - flat).abs().max() < 1e-6
    edge = torch.full((3, 80, 80), 0.3)
    edge[..., 40:] = 0.7
    sharp = usm_sharpen(edge)
    assert (sharp[1, 40, 41] - sharp[1, 40, 38]).item() > 0.45
    assert usm_sharpen(torch.rand(3, 8, 8)).shape == (3, 8, 8)


# --- noise ---------------------------------------------------------------------------------------------------------


def test_gaussian_noise_has_its_strength_and_gray_noise_is_gray():
    image = torch.full((3, 128, 128), 0.5)
    colour = add_noise(image, kind="gaussian", strength=10, gray=False, seed=1) - image
    gray = add_noise(image, kind="gaussian", strength=10, gray=True, seed=1) - image
    assert colour.std().item() * 255 == pytest.approx(10, rel=0.03)
    assert not torch.equal(colour[0], colour[1])
    assert torch.equal(gray[0], gray[1])


def test_poisson_noise_follows_the_number_of_levels():
    # Two levels give a peak of 2 events: variance of Poisson(p * 2) / 2 is p / 2.
    image = torch.zeros(3, 128, 128)
    image[:, :64] = 100 / 255
    noisy = image + 0
    noise = torch.poisson(quantize(image) * 2, generator=generator(4)) / 2 - image
    ours = add_noise(noisy, kind="poisson", strength=0.2, gray=False, seed=4)
    assert (ours - (image + noise * 0.2).clamp(0, 1)).abs().max() < 1e-6
    assert ours[:, 64:].abs().max() == 0  # black has no shot noise
    assert (noise[:, :64].var() / (100 / 255 / 2)).item() == pytest.approx(1, rel=0.1)


# --- statistics of the draws ---------------------------------------------------------------------------------------


def test_real_esrgan_draws_with_the_published_frequencies():
    count, tally, values = (
        3000,
        Counter(),
        {"factor": [], "gaussian": [], "poisson": [], "q": [], "sigma": []},
    )
    dice = K.Dice(generator(7))
    for _ in range(count):
        steps = REAL_ESRGAN(dice, (192, 192), 4)
        assert [s["op"] for s in steps[:4]] == ["blur", "resize", "noise", "jpeg"]
        first = steps[0]["kernel"]
        tally["sinc"] += first["shape"] == "sinc"
        tally["plateau"] += first["shape"] == "plateau"
        tally["aniso"] += first["shape"] != "sinc" and first["sigma"][0] != first["sigma"][1]
        if first["shape"] != "sinc":
            values["sigma"] += first["sigma"]
        assert first["size"] in range(7, 22, 2)
        factor = steps[1]["factor"]
        tally["up"] += factor > 1
        tally["down"] += factor < 1
        values["factor"].append(factor)
        tally["area"] += steps[1]["mode"] == "area"
        tally["gaussian"] += steps[2]["kind"] == "gaussian"
        values[steps[2]["kind"]].append(steps[2]["strength"])
        tally["gray"] += steps[2]["gray"]
        values["q"].append(steps[3]["quality"])
        tally["second blur"] += steps[4]["op"] == "blur"
        rest = steps[4 + (steps[4]["op"] == "blur") :]
        assert [s["op"] for s in rest[:2]] == ["resize", "noise"]
        order = [s["op"] for s in rest[2:]]
        assert order in (["resize", "blur", "jpeg", "quantize"], ["jpeg", "resize", "blur", "quantize"])
        tally["jpeg last"] += order[2] == "jpeg"
        last = next(s for s in rest[2:] if s["op"] == "blur")["kernel"]
        tally["final sinc"] += last["shape"] == "sinc"
        assert next(s for s in rest[2:] if s["op"] == "resize")["size"] == [48, 48]
    expected = {
        "sinc": 0.1, "plateau": 0.9 * 0.15, "aniso": 0.9 * 0.31, "up": 0.2, "down": 0.7, "area": 1 / 3,
        "gaussian": 0.5, "gray": 0.4, "second blur": 0.8, "jpeg last": 0.5, "final sinc": 0.8,
    }  # fmt: skip
    for name, probability in expected.items():
        sigma = math.sqrt(probability * (1 - probability) / count)
        assert abs(tally[name] / count - probability) < 4 * sigma, name
    for name, (low, high) in {
        "factor": (0.15, 1.5), "gaussian": (1, 30), "poisson": (0.05, 3), "q": (30, 95), "sigma": (0.2, 3),
    }.items():  # fmt: skip
        assert low <= min(values[name]) < low + 0.05 * (high - low), name
        assert high - 0.05 * (high - low) < max(values[name]) <= high, name


def test_bsrgan_light_ends_with_jpeg_and_sometimes_halves_first(picture):
    degradation, draws = Degradation("bsrgan_light", 4), generator(2)
    halved = subsampled = 0
    for _ in range(400):
        steps = degradation.draw((96, 128), draws)["steps"]
        assert steps[-2]["op"] == "jpeg"
        sizes = [s["size"] for s in steps if s["op"] == "resize"]
        assert sizes.count([24, 32]) >= 1
        halved += sizes[0] == [48, 64]
        subsampled += any(s["op"] == "subsample" for s in steps)
    assert 0.15 < halved / 400 < 0.35
    assert 0.12 < subsampled / 400 < 0.28


def test_the_shifted_subsample_keeps_the_centre():
    # A ramp subsampled by 4 must take the value in the middle of each 4x4 block, not of its first pixel.
    ramp = torch.linspace(0, 1, 64).expand(3, 64, 64).contiguous()
    kernel = {**K.gaussian(25, 0.8), "offset": 1.5}
    out = apply_step(ramp, {"op": "subsample", "kernel": kernel, "factor": 4})
    middle = torch.nn.functional.avg_pool2d(ramp[None], 4)[0]
    assert (out - middle)[:, 4:-4, 4:-4].abs().max() < 1e-3


# --- errors --------------------------------------------------------------------------------------------------------


def test_what_is_wrong_is_said(picture):
    with pytest.raises(PolyditError, match=r"degradation 'blurry': unknown; choose from bicubic, mild"):
        Degradation("blurry")
    with pytest.raises(PolyditError, match="scale 0: must be a whole number"):
        Degradation(scale=0)
    with pytest.raises(PolyditError, match="10x9 is not a multiple of scale 4; crop it first"):
        Degradation("bicubic", 4)(torch.rand(3, 9, 10), generator())
    record = Degradation("bicubic", 4)(picture, generator()).record
    with pytest.raises(PolyditError, match="drawn for 128x96, but the picture is 64x96"):
        replay(picture[..., :64], record)


def test_the_smallest_pictures_pass_every_preset():
    for preset in PRESETS:
        draws = generator(3)
        for _ in range(20):
            assert Degradation(preset, 4)(torch.rand(3, 4, 4), draws).lq.shape == (3, 1, 1)
