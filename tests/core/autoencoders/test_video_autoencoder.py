"""Video autoencoders against diffusers called directly, on tiny checkpoints that are saved and read back."""

from __future__ import annotations

import diffusers
import pytest
import torch
from diffusers import AutoencoderKLCogVideoX, AutoencoderKLLTXVideo, AutoencoderKLWan, LTXPipeline

from polydit.core.autoencoders import Autoencoder, DiffusersAutoencoder, VideoAutoencoder, as_autoencoder
from polydit.core.errors import PolyditError

LTX = {
    "latent_channels": 8,
    "block_out_channels": (8, 8),
    "decoder_block_out_channels": (8, 8),
    "layers_per_block": (1, 1, 1),
    "decoder_layers_per_block": (1, 1, 1),
    "down_block_types": ("LTXVideoDownBlock3D",) * 2,
    "spatio_temporal_scaling": (True, True),
    "decoder_spatio_temporal_scaling": (True, True),
    "decoder_inject_noise": (False,) * 3,
    "downsample_type": ("conv",) * 2,
    "upsample_residual": (False,) * 2,
    "upsample_factor": (1,) * 2,
    "patch_size": 2,
}


def tiny(kind):
    torch.manual_seed(0)
    if kind == "wan":
        return AutoencoderKLWan(
            base_dim=8, z_dim=4, dim_mult=[1, 1, 2], num_res_blocks=1, temperal_downsample=[True, True],
            latents_mean=[-0.7, 0.1, 0.5, 2.0], latents_std=[2.8, 1.5, 0.7, 1.1],
        )  # fmt: skip
    if kind == "wan 2.2":
        return AutoencoderKLWan(
            base_dim=8, z_dim=4, dim_mult=[1, 2, 2], num_res_blocks=1, temperal_downsample=[True, True],
            latents_mean=[-0.7, 0.1, 0.5, 2.0], latents_std=[2.8, 1.5, 0.7, 1.1], is_residual=True, in_channels=12,
            out_channels=12, patch_size=2, scale_factor_spatial=8, decoder_base_dim=8,
        )  # fmt: skip
    if kind == "cogvideox":
        return AutoencoderKLCogVideoX(
            block_out_channels=(8, 8, 8), down_block_types=("CogVideoXDownBlock3D",) * 3,
            up_block_types=("CogVideoXUpBlock3D",) * 3, latent_channels=4, layers_per_block=1, norm_num_groups=2,
            scaling_factor=0.7, sample_height=16, sample_width=16,
        )  # fmt: skip
    changes = {"timestep_conditioning": True} if kind != "ltx" else {}
    if kind == "ltx 0.9.1":
        changes |= {"decoder_inject_noise": (True, True, False)}
    model = AutoencoderKLLTXVideo(**{**LTX, **changes})
    model.latents_mean.copy_(torch.linspace(-1, 1, 8))
    model.latents_std.copy_(torch.linspace(0.5, 2, 8))
    return model


KINDS = {"wan": (4, 4), "wan 2.2": (8, 4), "cogvideox": (4, 4), "ltx": (8, 4), "ltx timed": (8, 4)}


def pixels(*size):
    return torch.rand(size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def direct(vae, x):
    """Latents as the family's pipeline has them, and what it decodes them to."""
    raw = vae.encode(x).latent_dist.mode()
    config = vae.config
    if "CogVideoX" in type(vae).__name__:
        latents = raw * config.scaling_factor
        return latents, vae.decode(latents / config.scaling_factor).sample
    if "Wan" in type(vae).__name__:
        mean = torch.tensor(config.latents_mean).view(1, -1, 1, 1, 1)
        inverse = 1.0 / torch.tensor(config.latents_std).view(1, -1, 1, 1, 1)
        latents = (raw - mean) * inverse
        return latents, vae.decode(latents / inverse + mean).sample
    statistics = (vae.latents_mean, vae.latents_std, config.scaling_factor)
    latents = LTXPipeline._normalize_latents(raw, *statistics)
    raw = LTXPipeline._denormalize_latents(latents, *statistics)
    timestep = torch.full((len(x),), 0.05) if config.timestep_conditioning else None
    return latents, vae.decode(raw, timestep).sample


@pytest.mark.parametrize("frames", [1, 5, 13])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_agrees_with_diffusers(tmp_path, kind, frames):
    tiny(kind).save_pretrained(tmp_path / "vae")
    ours = DiffusersAutoencoder.from_pretrained(tmp_path / "vae")
    assert isinstance(ours, VideoAutoencoder)
    assert isinstance(ours, Autoencoder)
    ours.decode_noise = 0.0
    theirs = type(ours.vae).from_pretrained(tmp_path / "vae").eval()
    factor = ours.spatial_factor
    assert (factor, ours.temporal_factor) == KINDS[kind]
    assert ours.pixel_channels == 3
    x = pixels(2, 3, frames, 16, 24)
    expected, decoded = direct(theirs, x)
    latents = ours.encode(x)
    assert latents.shape == (2, ours.channels, 1 + (frames - 1) // 4, 16 // factor, 24 // factor)
    torch.testing.assert_close(latents, expected, atol=1e-6, rtol=1e-5)
    assert ours.decode(latents).shape == x.shape
    torch.testing.assert_close(ours.decode(latents), decoded[:, :, -frames:], atol=1e-5, rtol=1e-5)
    assert decoded.shape[2] == frames + (
        3 if kind == "cogvideox" and frames > 1 else 0
    )  # even numbers of latents
    if frames == 1:
        torch.testing.assert_close(ours.encode(x[:, :, 0]), latents[:, :, 0])
        torch.testing.assert_close(ours.decode(latents[:, :, 0]), ours.decode(latents)[:, :, 0])


@torch.no_grad()
def test_noise_of_a_timed_decoder_is_the_same_each_time():
    ours = VideoAutoencoder(tiny("ltx 0.9.1"))
    for block in ours.vae.modules():
        if getattr(block, "per_channel_scale1", None) is not None:
            block.per_channel_scale1.normal_()
    latents = torch.randn(1, 8, 2, 2, 3, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = ours.decode(latents)
    torch.manual_seed(6)
    assert torch.equal(ours.decode(latents), first)
    torch.manual_seed(5)
    ours.decode(latents)
    assert torch.equal(torch.get_rng_state(), state)
    ours.decode_noise = 0.0
    assert not torch.equal(ours.decode(latents), first)
    other = VideoAutoencoder(ours.vae, decode_timestep=0.3, decode_noise=0.0)
    assert not torch.equal(other.decode(latents), ours.decode(latents))


@torch.no_grad()
def test_the_posterior_is_drawn_only_on_request():
    ours = VideoAutoencoder(tiny("wan"))
    x = pixels(1, 3, 5, 8, 8)
    drawn = ours.encode(x, sample=True, generator=torch.Generator().manual_seed(3))
    raw = ours.vae.encode(x).latent_dist.sample(torch.Generator().manual_seed(3))
    torch.testing.assert_close(drawn, (raw - ours.shift.view(-1, 1, 1, 1)) * ours.scale.view(-1, 1, 1, 1))
    assert torch.equal(ours.encode(x), ours.encode(x))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_tiles_in_space(kind):
    """One tile is the whole, bit for bit; each of several is coded as a video of its size."""
    ours = VideoAutoencoder(tiny(kind), tile_size=16, tile_overlap=0, decode_noise=0.0)
    small, large = pixels(1, 3, 5, 16, 16), pixels(1, 3, 5, 32, 48)
    sizes = []
    hook = ours.vae.encoder.register_forward_pre_hook(lambda _, args: sizes.append(args[0].shape[-1]))
    tiled = ours.encode(large)
    hook.remove()
    assert max(sizes) <= 16
    n = 16 // ours.spatial_factor
    torch.testing.assert_close(tiled[..., :n, n : 2 * n], ours.encode(large[..., :16, 16:32]))
    decoded = ours.decode(tiled)
    assert decoded.shape == large.shape
    part = ours.decode(tiled[..., :n, :n])
    torch.testing.assert_close(decoded[..., :16, :16], part, atol=1e-5, rtol=1e-5)
    one = ours.encode(small)
    ours.set_tiling(None)
    assert torch.equal(ours.encode(small), one)
    assert not torch.equal(ours.encode(large), tiled)


@torch.no_grad()
def test_windows_in_time():
    ours = VideoAutoencoder(tiny("ltx"), tile_frames=24, frame_overlap=16)
    x = pixels(1, 3, 1 + 4 * 11, 8, 8)
    lengths = []
    hook = ours.vae.encoder.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[2]))
    latents = ours.encode(x)
    hook.remove()
    assert lengths == [21, 25, 25, 25]  # the first begins with the video, the others a latent early
    hook = ours.vae.decoder.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[2]))
    decoded = ours.decode(latents)
    hook.remove()
    assert lengths[4:] == [6, 7, 7, 7]
    ours.set_tiling(None)
    whole = ours.encode(x)
    assert latents.shape == whole.shape
    assert (latents - whole).std() < 0.2 * whole.std()
    whole_decoded = ours.decode(latents)
    assert decoded.shape == whole_decoded.shape == x.shape
    assert (decoded - whole_decoded).std() < 0.2 * whole_decoded.std()


def test_windows_put_every_frame_where_it_came_from():
    class Copy(VideoAutoencoder):
        def __init__(self):
            torch.nn.Module.__init__(self)
            self.temporal_factor, self.tile_frames, self.frame_overlap = 4, 16, 8

    def decode(part):
        return torch.cat([part[:, :, :1], part[:, :, 1:].repeat_interleave(4, dim=2)], dim=2)

    copy = Copy()
    latents = torch.arange(10.0).view(1, 1, 10, 1, 1)
    frames = decode(latents)
    torch.testing.assert_close(copy._windows(decode, latents, encode=False), frames)
    torch.testing.assert_close(copy._windows(lambda part: part[:, :, ::4], frames, encode=True), latents)


def test_what_does_not_fit_is_said():
    ours = VideoAutoencoder(tiny("cogvideox"))
    with pytest.raises(ValueError, match="6 frames, and the autoencoder takes 1 more than a multiple of 4"):
        ours.encode(pixels(1, 3, 6, 16, 16))
    with pytest.raises(ValueError, match="pixels of 18x16 do not divide by 4"):
        ours.encode(pixels(1, 3, 5, 18, 16))
    with pytest.raises(ValueError, match="pixels of 4 channels, and the autoencoder takes 3"):
        ours.encode(pixels(1, 4, 5, 16, 16))
    with pytest.raises(
        PolyditError, match="tile_frames 16: AutoencoderKLCogVideoX runs through time in steps"
    ):
        ours.set_tiling(None, tile_frames=16)
    with pytest.raises(PolyditError, match="give multiples of 4, the overlap smaller than the window"):
        VideoAutoencoder(tiny("ltx"), tile_frames=18)
    with pytest.raises(PolyditError, match="not supported by DiffusersAutoencoder"):
        DiffusersAutoencoder(tiny("wan"))


def test_a_pipelines_component_is_wrapped_by_its_kind():
    wan = tiny("wan")
    ours = as_autoencoder(wan)
    assert isinstance(ours, VideoAutoencoder)
    assert ours.component is wan
    assert as_autoencoder(ours) is ours


@pytest.mark.parametrize(
    ("model", "config", "factors", "channels"),
    [
        ("AutoencoderKLWan", {}, (8, 4), 16),
        (
            "AutoencoderKLWan",
            {"base_dim": 160, "decoder_base_dim": 256, "z_dim": 48, "is_residual": True, "in_channels": 12,
             "out_channels": 12, "patch_size": 2, "latents_mean": [0.0] * 48, "latents_std": [1.0] * 48},
            (16, 4), 48,
        ),
        ("AutoencoderKLLTXVideo", {}, (32, 8), 128),
        ("AutoencoderKLCogVideoX", {}, (8, 4), 16),
        ("AutoencoderKLQwenImage", {"input_channels": 4}, (8, 1), 16),
        ("AutoencoderDC", {"latent_channels": 32}, (32, 1), 32),
    ],
)  # fmt: skip
def test_published_configurations(model, config, factors, channels):
    with torch.device("meta"):
        ours = as_autoencoder(getattr(diffusers, model)(**config))
    assert (ours.spatial_factor, ours.temporal_factor) == factors
    assert ours.channels == channels
    assert ours.pixel_channels == (4 if "Qwen" in model else 3)
