"""The wrapper against diffusers called directly, on tiny checkpoints that are saved and read back."""

import json
from typing import ClassVar

import diffusers
import pytest
import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLQwenImage,
    AutoencoderTiny,
    DiffusionPipeline,
    VQModel,
)

from polydit.core.autoencoders import Autoencoder, DiffusersAutoencoder, PixelSpace, as_autoencoder
from polydit.core.errors import PolyditError

KL = {
    "block_out_channels": (8, 8, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "norm_num_groups": 4,
}


def tiny(kind):
    torch.manual_seed(0)
    if kind == "sd":
        return AutoencoderKL(**KL, scaling_factor=0.18215)
    if kind == "sd3":
        no_quant = {"use_quant_conv": False, "use_post_quant_conv": False}
        return AutoencoderKL(**KL, **no_quant, latent_channels=16, scaling_factor=1.5305, shift_factor=0.0609)
    if kind == "per_channel":
        statistics = {"latents_mean": (-1.6, 0.2, 0.5, 2.1), "latents_std": (8.4, 5.9, 3.3, 0.8)}
        return AutoencoderKL(**KL, **statistics, scaling_factor=0.5)
    if kind == "vq":
        return VQModel(**KL, num_vq_embeddings=16, scaling_factor=1.0)
    if kind == "dc":
        side = {
            "block_types": ("ResBlock", "ResBlock", "EfficientViTBlock"),
            "block_out_channels": (8, 8, 16),
            "layers_per_block": (1, 1, 1),
            "qkv_multiscales": ((), (), (5,)),
        }
        both = {f"{name}_{key}": value for name in ("encoder", "decoder") for key, value in side.items()}
        return AutoencoderDC(latent_channels=4, attention_head_dim=8, scaling_factor=0.41407, **both)
    if kind in ("qwen", "qwen_rgba"):
        return AutoencoderKLQwenImage(
            base_dim=8, z_dim=4, dim_mult=[1, 1, 2], num_res_blocks=1, temperal_downsample=[False, True],
            input_channels=4 if kind == "qwen_rgba" else 3, latents_mean=[-0.7, 0.1, 0.5, 2.0],
            latents_std=[2.8, 1.5, 0.7, 1.1],
        )  # fmt: skip
    return AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(1, 1, 1),
    )


def pixels(*size):
    return torch.rand(size, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize(
    ("kind", "channels"), [("sd", 4), ("sd3", 16), ("per_channel", 4), ("vq", 3), ("dc", 4), ("taesd", 4)]
)
@torch.no_grad()
def test_agrees_with_diffusers(tmp_path, kind, channels):
    tiny(kind).save_pretrained(tmp_path)
    ours = DiffusersAutoencoder.from_pretrained(tmp_path)
    theirs = type(ours.vae).from_pretrained(tmp_path).eval()
    assert isinstance(ours, Autoencoder)
    assert (ours.spatial_factor, ours.temporal_factor, ours.channels) == (4, 1, channels)

    x = pixels(2, 3, 24, 32)
    latents = ours.encode(x)
    assert latents.shape == (2, channels, 6, 8)
    out = theirs.encode(x)
    raw = out.latent_dist.mode() if "latent_dist" in out else out[0]
    if kind == "sd3":
        expected = (raw - theirs.config.shift_factor) * theirs.config.scaling_factor
        decoded = theirs.decode(latents / theirs.config.scaling_factor + theirs.config.shift_factor).sample
    elif kind == "per_channel":
        mean, std = (torch.tensor(theirs.config[f"latents_{n}"])[:, None, None] for n in ("mean", "std"))
        expected = (raw - mean) * theirs.config.scaling_factor / std
        decoded = theirs.decode(latents * std / theirs.config.scaling_factor + mean).sample
    else:
        expected = raw * theirs.config.scaling_factor
        decoded = theirs.decode(latents / theirs.config.scaling_factor).sample
    torch.testing.assert_close(latents, expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(ours.decode(latents), decoded, atol=1e-5, rtol=1e-5)
    assert ours.decode(latents).shape == x.shape


@pytest.mark.parametrize(("kind", "channels"), [("qwen", 3), ("qwen_rgba", 4)])
@torch.no_grad()
def test_qwen_image_as_its_pipelines_use_it(tmp_path, kind, channels):
    tiny(kind).save_pretrained(tmp_path)
    ours = DiffusersAutoencoder.from_pretrained(tmp_path)
    theirs = type(ours.vae).from_pretrained(tmp_path).eval()
    assert (ours.spatial_factor, ours.temporal_factor, ours.channels, ours.pixel_channels) == (
        4,
        1,
        4,
        channels,
    )
    mean, std = (torch.tensor(theirs.config[f"latents_{n}"])[:, None, None, None] for n in ("mean", "std"))
    x = pixels(2, channels, 16, 24)
    latents = ours.encode(x)
    expected = (theirs.encode(x[:, :, None]).latent_dist.mode() - mean) / std
    torch.testing.assert_close(latents, expected[:, :, 0], atol=1e-6, rtol=1e-6)
    decoded = theirs.decode(latents[:, :, None] * std + mean).sample[:, :, 0]
    torch.testing.assert_close(ours.decode(latents), decoded, atol=1e-6, rtol=1e-5)

    layers = pixels(1, channels, 3, 16, 24)  # a stack of layers is no video: each is coded by itself
    torch.testing.assert_close(ours.encode(layers)[:, :, 2], ours.encode(layers[:, :, 2]))
    decoded = ours.decode(ours.encode(layers))
    torch.testing.assert_close(decoded[:, :, 1], ours.decode(ours.encode(layers[:, :, 1])))
    with pytest.raises(ValueError, match=f"pixels of 2 channels, and the autoencoder takes {channels}"):
        ours.encode(x[:, :2])


@torch.no_grad()
def test_posterior_is_drawn_only_on_request():
    ours = DiffusersAutoencoder(tiny("sd3"))
    x = pixels(1, 3, 16, 16)
    drawn = ours.encode(x, sample=True, generator=torch.Generator().manual_seed(3))
    raw = ours.vae.encode(x).latent_dist.sample(torch.Generator().manual_seed(3))
    torch.testing.assert_close(drawn, (raw - 0.0609) * 1.5305)
    assert torch.equal(ours.encode(x), ours.encode(x))
    assert not torch.equal(drawn, ours.encode(x))


@torch.no_grad()
def test_half_precision_weights_take_and_give_float32(tmp_path):
    tiny("sd").save_pretrained(tmp_path)
    ours = DiffusersAutoencoder.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert ours.vae.dtype == torch.bfloat16
    latents = ours.encode(pixels(1, 3, 16, 16))
    assert latents.dtype == ours.decode(latents).dtype == torch.float32


@torch.no_grad()
def test_video_frames_are_encoded_one_by_one():
    ours = DiffusersAutoencoder(tiny("sd"))
    video = pixels(2, 3, 3, 16, 24)
    latents = ours.encode(video)
    assert latents.shape == (2, 4, 3, 4, 6)
    torch.testing.assert_close(latents[:, :, 1], ours.encode(video[:, :, 1]))
    torch.testing.assert_close(ours.decode(latents)[:, :, 2], ours.decode(latents[:, :, 2]))


@torch.no_grad()
def test_tiled_is_close_to_untiled():
    # Without norms and attention only the borders of a tile are wrong, and those have little weight.
    ours = DiffusersAutoencoder(tiny("taesd"))
    x = pixels(1, 3, 96, 160)
    whole, latents = ours.encode(x), ours.encode(x)
    decoded = ours.decode(latents)
    ours.set_tiling(64, 32)
    seen = []
    hook = ours.vae.encoder.register_forward_pre_hook(lambda m, args: seen.append(args[0].shape[-2:]))
    tiled = ours.encode(x)
    hook.remove()
    assert seen == [(64, 64)] * 8
    assert tiled.shape == whole.shape
    assert not torch.equal(tiled, whole)
    assert (tiled - whole).abs().max() < 0.02 * whole.std()
    assert (ours.decode(latents) - decoded).abs().max() < 0.02 * decoded.std()

    # A model with norms and attention sees another picture in every tile: near, not equal.
    ours = DiffusersAutoencoder(tiny("sd3"), tile_size=64)
    assert ours.tile_overlap == 16
    tiled = ours.encode(x)
    ours.set_tiling(None)
    assert (tiled - ours.encode(x)).std() < 0.3 * tiled.std()


@pytest.mark.parametrize("kind", ["sd3", "vq", "dc", "qwen"])
@torch.no_grad()
def test_one_tile_over_everything_is_the_untiled_result_bit_for_bit(kind):
    ours = DiffusersAutoencoder(tiny(kind))
    x = pixels(1, 3, 32, 24)
    latents = ours.encode(x)
    decoded = ours.decode(latents)
    ours.set_tiling(32)
    assert torch.equal(ours.encode(x), latents)
    assert torch.equal(ours.decode(latents), decoded)


def test_pixels_that_do_not_divide_and_tiles_that_do_not_fit():
    ours = DiffusersAutoencoder(tiny("sd"))
    with pytest.raises(ValueError, match="16x18 do not divide"):
        ours.encode(pixels(1, 3, 16, 18))
    with pytest.raises(PolyditError, match="tile_size 30"):
        ours.set_tiling(30)
    with pytest.raises(PolyditError, match="tile_overlap 32"):
        ours.set_tiling(32, 32)


def test_pixel_space_is_the_identity():
    space = PixelSpace(channels=4)
    x = pixels(1, 4, 5, 7)
    assert isinstance(space, Autoencoder)
    assert space.encode(x) is x
    assert space.decode(x) is x
    assert (space.spatial_factor, space.temporal_factor, space.channels) == (1, 1, 4)


class Pipeline(DiffusionPipeline):
    _optional_components: ClassVar = ["vae"]

    def __init__(self, vae):
        super().__init__()
        self.register_modules(vae=vae)


@torch.no_grad()
def test_a_pipeline_folder_keeps_the_plain_model(tmp_path):
    ours = DiffusersAutoencoder(tiny("sd3"))
    Pipeline(ours.component).save_pretrained(tmp_path / "latent")
    index = json.loads((tmp_path / "latent" / "model_index.json").read_text())
    assert index["vae"] == ["diffusers", "AutoencoderKL"]
    x = pixels(1, 3, 16, 16)
    again = as_autoencoder(Pipeline.from_pretrained(tmp_path / "latent").vae)
    assert torch.equal(again.encode(x), ours.encode(x))
    assert torch.equal(DiffusersAutoencoder.from_pretrained(tmp_path / "latent").encode(x), ours.encode(x))
    assert as_autoencoder(again) is again

    Pipeline(PixelSpace().component).save_pretrained(tmp_path / "pixels")
    assert isinstance(as_autoencoder(Pipeline.from_pretrained(tmp_path / "pixels").vae), PixelSpace)
    with pytest.raises(PolyditError, match="has no autoencoder"):
        DiffusersAutoencoder.from_pretrained(tmp_path / "pixels")


def test_save_pretrained_writes_what_diffusers_reads(tmp_path):
    DiffusersAutoencoder(tiny("dc")).save_pretrained(tmp_path)
    assert isinstance(diffusers.AutoModel.from_pretrained(str(tmp_path)), AutoencoderDC)


def test_failures_say_which_folder_and_why(tmp_path):
    with pytest.raises(PolyditError, match=r"nowhere: no autoencoder in diffusers format"):
        DiffusersAutoencoder.from_pretrained(tmp_path / "nowhere")

    folder = tmp_path / "vae"
    tiny("sd").save_pretrained(folder)
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace("AutoencoderKL", "UNet2DModel"))
    with pytest.raises(PolyditError, match="UNet2DModel is not a supported autoencoder"):
        DiffusersAutoencoder.from_pretrained(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(PolyditError, match="no autoencoder in diffusers format"):
        DiffusersAutoencoder.from_pretrained(folder)
    (folder / "config.json").write_text(config)

    weights = folder / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(PolyditError, match="weights cannot be loaded"):
        DiffusersAutoencoder.from_pretrained(folder)
    from safetensors.torch import load, save

    tensors = load(whole)
    del tensors["decoder.conv_in.bias"]
    weights.write_bytes(save(tensors, {"format": "pt"}))
    with pytest.raises(PolyditError, match=r"1 weights are missing, decoder\.conv_in\.bias"):
        DiffusersAutoencoder.from_pretrained(folder)
    weights.unlink()
    with pytest.raises(PolyditError, match="weights cannot be loaded"):
        DiffusersAutoencoder.from_pretrained(folder)

    with pytest.raises(PolyditError, match="UNet2DModel is not"):
        DiffusersAutoencoder(diffusers.UNet2DModel(block_out_channels=(32, 32, 32, 32)))
