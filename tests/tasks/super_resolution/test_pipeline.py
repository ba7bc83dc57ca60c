"""The pipeline on tiny random networks: sizes, tiles, seeds, steps, colours, latents, saved folders."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from PIL import Image

import polydit
from polydit.core.adapters import LoraOptions, inject, save_lora
from polydit.core.errors import PolyditError
from polydit.core.metrics import psnr
from polydit.core.tiling import Tile
from polydit.tasks.super_resolution.formulation import upsample
from polydit.tasks.super_resolution.noise_field import NoiseField


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def picture(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(width * 1000 + height).integers(0, 255, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("conditioning", ["stream", "channels"])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 5), (13, 8)])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_any_size_comes_out_exactly_scale_times_as_large(tiny, conditioning, size, scale):
    result = tiny(conditioning)(picture(*size), scale=scale, tile=24, overlap=6, generator=generator())
    assert result.images[0].size == (size[0] * scale, size[1] * scale)
    assert np.asarray(result.images[0]).std() > 0 or size == (1, 1)


def test_tiles_make_no_difference_away_from_their_borders_and_little_there(tiny):
    # One block of 8 x 8 token windows and a 17-pixel mean: what lies 32 pixels from a tile's border is the same.
    pipe = tiny(backbone_options={"depth": 1, "window_size": 8})
    low = torch.from_numpy(picture(32, 24)).permute(2, 0, 1)[None]
    whole, tiled = (
        pipe(
            low.float() / 127.5 - 1, scale=4, tile=tile, overlap=64, generator=generator(), output_type="pt"
        ).images
        for tile in (0, 96)
    )
    assert whole.shape == tiled.shape == (1, 3, 96, 128)
    # Tiles are 24 low-resolution pixels wide, from 0 and from 8: their middles are far from any cut.
    assert tiled[..., :16].allclose(whole[..., :16], atol=1e-5)
    assert tiled[..., 112:].allclose(whole[..., 112:], atol=1e-5)
    assert not whole.equal(tiled)
    bicubic = upsample(low.float() / 127.5 - 1, 4)
    assert (tiled - whole).abs().mean() < 0.2 * (whole - bicubic).abs().mean()


def test_noise_belongs_to_places_not_to_tiles():
    field = NoiseField(generator(5), channels=3, cell=8)
    whole = field.crop(Tile(0, 0, 30, 41))
    assert whole.shape == (1, 3, 30, 41)
    for tile in (Tile(0, 0, 8, 8), Tile(7, 13, 10, 20), Tile(29, 40, 1, 1)):
        assert field.crop(tile).equal(tile.crop(whole))
    assert NoiseField(generator(5), 3, 8).crop(Tile(7, 13, 10, 20)).equal(field.crop(Tile(7, 13, 10, 20)))
    assert not NoiseField(generator(6), 3, 8).crop(Tile(0, 0, 8, 8)).equal(field.crop(Tile(0, 0, 8, 8)))
    large = NoiseField(generator(0), 3, 32).crop(Tile(0, 0, 256, 256))
    assert abs(large.mean()) < 0.01
    assert abs(large.std() - 1) < 0.01
    neighbours = (large[..., :, :-32] * large[..., :, 32:]).mean()
    assert abs(neighbours) < 0.01  # cells are not copies of one another


def test_a_seed_is_a_picture(tiny):
    pipe, low = tiny(), picture(9, 8)
    bytes_of = lambda seed: np.asarray(pipe(low, generator=generator(seed)).images[0]).tobytes()  # noqa: E731
    assert bytes_of(1) == bytes_of(1)
    assert bytes_of(1) != bytes_of(2)


def test_with_signal_gain_one_step_does_not_depend_on_the_seed(tiny):
    pipe, low = tiny(signal_gain=True), picture(9, 8)
    one, other = (pipe(low, generator=generator(s), output_type="pt").images for s in (1, 2))
    assert one.allclose(other, atol=1e-5)
    one, other = (
        pipe(low, num_inference_steps=2, generator=generator(s), output_type="pt").images for s in (1, 2)
    )
    assert not one.allclose(other, atol=1e-3)


@pytest.mark.parametrize("prediction", ["x0", "velocity", "epsilon"])
def test_one_to_four_steps_call_the_network_that_often(tiny, prediction):
    pipe = tiny(prediction=prediction)
    times = []
    pipe.transformer.register_forward_pre_hook(lambda module, arguments: times.append(float(arguments[1][0])))
    for steps in (1, 2, 3, 4):
        times.clear()
        result = pipe(
            picture(6, 5), num_inference_steps=steps, tile=0, generator=generator(), output_type="pt"
        )
        # The noise levels are even and begin at pure noise; LDM-SR's indices begin at 999.
        assert times == pytest.approx([1000 * (1 - i / steps) for i in range(steps)], abs=2)
        assert torch.isfinite(result.images).all()


def test_a_perfect_network_is_reproduced_in_any_number_of_steps(tiny):
    pipe, low, high = tiny(), torch.rand(1, 3, 6, 6) * 2 - 1, torch.rand(1, 3, 24, 24) * 2 - 1
    target = pipe.formulation.target(high, upsample(low, 4), pipe.space)
    pipe.transformer.forward = lambda *_, **__: type("Output", (), {"sample": target})
    for steps in (1, 2, 4):
        restored = pipe(
            low, num_inference_steps=steps, tile=0, generator=generator(), output_type="pt"
        ).images
        assert restored.allclose(high, atol=1e-5)


def test_color_fixes_take_the_colours_of_the_input(tiny):
    pipe, low = tiny(), torch.from_numpy(picture(40, 40)).permute(2, 0, 1)[None].float() / 127.5 - 1
    enlarged = upsample(low, 4)

    def run(kind: str) -> torch.Tensor:
        return pipe(low, color_fix=kind, generator=generator(), output_type="pt").images

    plain, adain, wavelet = run("none"), run("adain"), run("wavelet")
    assert (plain.mean((2, 3)) - enlarged.mean((2, 3))).abs().max() > 1e-3
    assert adain.mean((2, 3)).allclose(enlarged.mean((2, 3)), atol=1e-4)
    assert adain.std((2, 3)).allclose(enlarged.std((2, 3)), atol=1e-3)
    coarse = lambda image: torch.nn.functional.avg_pool2d(image, 80)  # noqa: E731
    assert (coarse(wavelet) - coarse(enlarged)).abs().max() < 0.3 * (
        coarse(plain) - coarse(enlarged)
    ).abs().max()
    with pytest.raises(PolyditError, match="choose one of none, adain, wavelet"):
        run("sepia")


@pytest.mark.parametrize("conditioning", ["stream", "channels"])
@pytest.mark.parametrize("tile", [0, 32])
def test_latent_models(tiny, kl, conditioning, tile):
    pipe = tiny(conditioning, vae=kl)
    for size in ((9, 7), (1, 1), (16, 12)):
        result = pipe(picture(*size), num_inference_steps=2, tile=tile, overlap=8, generator=generator())
        assert result.images[0].size == (size[0] * 4, size[1] * 4)
    if tile == 0:
        tiled = pipe(picture(8, 8), tile=64, overlap=8, generator=generator(), output_type="pt").images
        assert tiled.equal(pipe(picture(8, 8), tile=0, generator=generator(), output_type="pt").images)


def test_ldm_sr_is_conditioned_on_the_low_picture(tiny, vq):
    pipe = tiny("channels", vae=vq, low_condition=True, prediction="epsilon")
    seen = []
    pipe.transformer.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    low = picture(9, 7)
    result = pipe(low, num_inference_steps=2, tile=0, generator=generator())
    assert result.images[0].size == (36, 28)
    condition = seen[0][:, 3:]  # padded to the patch of 2
    assert condition.shape == (1, 3, 8, 10)
    expected = torch.from_numpy(low).permute(2, 0, 1).float() / 127.5 - 1
    assert condition[0, :, :7, :9].allclose(expected)


@pytest.mark.parametrize("latent", [False, True])
def test_a_saved_folder_is_the_same_pipeline(tiny, kl, tmp_path, latent):
    pipe = tiny(vae=kl) if latent else tiny(signal_gain=True)
    pipe.save_pretrained(tmp_path / "saved")
    loaded = polydit.load(tmp_path / "saved", task="super-resolution")
    assert loaded.formulation == pipe.formulation
    assert loaded.parameterization.config() == pipe.parameterization.config()
    results = [
        np.asarray(p(picture(9, 8), num_inference_steps=2, generator=generator(3)).images[0])
        for p in (pipe, loaded)
    ]
    assert results[0].tobytes() == results[1].tobytes()


def test_kinds_of_input_and_output(tiny):
    pipe, array = tiny(), picture(6, 5)
    tensor = torch.from_numpy(array).permute(2, 0, 1)[None].float() / 127.5 - 1
    expected = np.asarray(pipe(array, scale=2, generator=generator()).images[0])
    for image in (Image.fromarray(array), tensor, tensor[0], Image.fromarray(array).convert("RGBA")):
        assert np.array_equal(np.asarray(pipe(image, scale=2, generator=generator()).images[0]), expected)
    several = pipe([array, picture(4, 4)], scale=2, generator=generator()).images
    assert [one.size for one in several] == [(12, 10), (8, 8)]
    batch = pipe(torch.cat([tensor, tensor]), scale=2, generator=generator(), output_type="pt").images
    assert batch.shape == (2, 3, 10, 12)
    as_array = pipe(array, scale=2, generator=generator(), output_type="np").images[0]
    assert as_array.dtype == np.float32
    assert np.array_equal((as_array * 255).round().astype(np.uint8), expected)
    with pytest.raises(PolyditError, match=r"give \(H, W, 3\) uint8"):
        pipe(np.zeros((4, 4), np.uint8))


def test_factors_and_steps_are_checked(tiny):
    pipe = tiny(scales=(2, 4))
    with pytest.raises(PolyditError, match="--scale 3: these weights know the factors 2, 4"):
        pipe(picture(4, 4), scale=3)
    with pytest.raises(PolyditError, match="--tile -1, --overlap 64: a size cannot be below zero"):
        pipe(picture(4, 4), tile=-1)
    with pytest.raises(PolyditError, match="output_type 'pill': choose one of pil, np, pt"):
        pipe(picture(4, 4), output_type="pill")
    with pytest.raises(PolyditError, match="--steps 0: at least 1 step"):
        pipe(picture(4, 4), num_inference_steps=0)


def test_the_factor_reaches_the_network(tiny):
    pipe = tiny()
    seen = []
    pipe.transformer.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[2].tolist()))
    for scale in (2, 3, 4):
        pipe(picture(4, 4), scale=scale, generator=generator())
    assert seen == [[0], [1], [2]]


def test_strips_are_the_picture_and_count_their_tiles(tiny):
    pipe, low = tiny(), torch.from_numpy(picture(20, 30)).permute(2, 0, 1)[None]
    told = []
    arguments = {"scale": 2, "tile": 16, "overlap": 4}
    strips = list(
        pipe.strips(low, generator=generator(), progress=lambda *done: told.append(done), **arguments)
    )
    assert len(strips) > 2
    assert told == [(i + 1, len(told)) for i in range(len(told))]
    assert len(told) > len(strips)
    whole = pipe(low.float() / 127.5 - 1, generator=generator(), output_type="pt", **arguments).images
    assert torch.cat(strips, dim=-2).equal(whole)


def test_a_call_has_a_bar_over_tiles_or_steps_which_can_be_switched_off(tiny, kl, capsys):
    pipe, latent = tiny(), tiny(vae=kl)
    pipe(picture(20, 30), scale=2, tile=16, overlap=4)
    assert "100%" in capsys.readouterr().err
    told = []
    low = torch.from_numpy(picture(8, 8)).permute(2, 0, 1)[None]
    list(latent.strips(low, num_inference_steps=3, progress=lambda *done: told.append(done)))
    assert told == [(1, 3), (2, 3), (3, 3)]
    latent(picture(8, 8), num_inference_steps=3)
    assert "3/3" in capsys.readouterr().err
    for one in (pipe, latent):
        one.set_progress_bar_config(disable=True)
        one(picture(8, 8), scale=4)
    assert capsys.readouterr().err == ""


def test_a_lora_file_is_attached_and_reported(tiny, tmp_path):
    trained, pipe = tiny(), tiny()
    inject(trained.transformer, LoraOptions(rank=2))
    with torch.no_grad():
        for name, parameter in trained.transformer.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=generator(3))
    file = save_lora(trained.transformer, tmp_path / "lora.safetensors")
    call = lambda: pipe(picture(8, 8), generator=generator(), output_type="pt").images  # noqa: E731
    plain = call()
    report = pipe.load_lora_weights(file, scale=0.5)
    assert str(report).startswith(f"{len(report.matched)} of {len(report.matched)} keys matched, scale 0.5")
    assert not call().equal(plain)
    stranger = tiny(backbone_options={"depth": 1})
    with pytest.raises(PolyditError, match=r"modules are not in StreamDiT .*: blocks\.1\."):
        stranger.load_lora_weights(file)


def test_the_shipped_weights_beat_bicubic(root, make_texture):
    folder = root / "demos/weights/super_resolution"
    if not (folder / "model_index.json").is_file():
        pytest.skip("no weights in this checkout")
    from polydit.core.data.samples import sample_path

    pipe = polydit.load(folder)
    high = Image.open(sample_path("coffee")).convert("RGB").crop((100, 60, 292, 252))
    low = high.resize((48, 48), Image.Resampling.BICUBIC)
    result = np.asarray(pipe(low, scale=4, generator=generator()).images[0])
    bicubic = np.asarray(low.resize((192, 192), Image.Resampling.BICUBIC))
    gain = psnr(result, np.asarray(high), crop=4) - psnr(bicubic, np.asarray(high), crop=4)
    assert gain > 0.5
    files = sum(f.stat().st_size for f in folder.rglob("*.safetensors"))
    assert files <= 12 * 2**20
    assert (
        hashlib.sha256(result.tobytes()).hexdigest()
        == hashlib.sha256(
            np.asarray(pipe(low, scale=4, generator=generator()).images[0]).tobytes()
        ).hexdigest()
    )
