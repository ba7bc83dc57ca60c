"""Latent transparency against the published networks' numbers, and what holds without weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file

from polydit.core.alpha import pad_rgb, recompose
from polydit.core.autoencoders.transparency_nets import OffsetEncoder, TransparencyDecoder, unview, views
from polydit.core.autoencoders.transparent import TransparentAutoencoder, guess_channel_order
from polydit.core.backbones.official import load_official, save_official
from polydit.core.errors import PolyditError

GOLDEN = Path(__file__).parents[2] / "data" / "golden" / "layerdiffuse"


@pytest.fixture(scope="module")
def golden() -> tuple[dict, dict, dict, dict]:
    parts = [load_file(GOLDEN / f"{name}.safetensors") for name in ("weights", "inputs", "outputs")]
    return *parts, json.loads((GOLDEN / "meta.json").read_text())


def tiny_vae(latent_channels: int = 4) -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(4, 4, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=latent_channels,
        norm_num_groups=2,
        layers_per_block=1,
        scaling_factor=0.5,
        shift_factor=0.1,
    )


def tiny(order: str = "alpha_first", **options) -> TransparentAutoencoder:
    vae = tiny_vae()
    widths = (4, 4, 4, 8)
    decoder = TransparencyDecoder(
        block_out_channels=(4, 4, 4, 4), attention_levels=1, layers_per_block=1, attention_head_dim=4
    )
    return TransparentAutoencoder(vae, OffsetEncoder(4, widths), decoder, order, **options).eval()


def discs(count: int = 2, side: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    pictures = []
    for _ in range(count):
        cx, cy, r = (torch.rand(3, generator=generator) * torch.tensor([16, 16, 6]) + 8).tolist()
        alpha = (r - ((x - cx) ** 2 + (y - cy) ** 2).sqrt()).clamp(0, 1)
        colour = torch.rand(3, 1, 1, generator=generator).expand(3, side, side)
        pictures.append(torch.cat([colour, alpha[None]]))
    return torch.stack(pictures)


# -- the published numbers -----------------------------------------------------------------------------------


def close(actual: torch.Tensor, expected: torch.Tensor, meta: dict) -> None:
    tolerances = {"atol": meta["recommended_atol"], "rtol": meta["recommended_rtol"]}
    torch.testing.assert_close(actual, expected, **tolerances)


@torch.no_grad()
def test_golden_encoder(golden):
    weights, inputs, outputs, meta = golden
    nets = load_official("layerdiffuse", weights, **meta["config"])
    model = TransparentAutoencoder(tiny_vae(), nets.encoder, nets.decoder)
    rgba = inputs["rgba"].float().permute(0, 3, 1, 2) / 255
    close(model.picture_feed(rgba), outputs["encoder.vae_feed"], meta)
    atol = meta["recommended_atol_pad_rgb"]
    torch.testing.assert_close(model.offset_feed(rgba), outputs["encoder.offset_feed"], atol=atol, rtol=0)
    offset = model.encoder(outputs["encoder.offset_feed"])
    torch.testing.assert_close(offset, outputs["encoder.offset_unscaled"], atol=1e-7, rtol=1e-4)
    posterior = inputs["latent_mean"].float(), inputs["latent_std"].float()
    model.posterior = lambda _: posterior
    assert model.gain == meta["config"]["alpha_scale"]
    close(model.encode_rgba(rgba), outputs["encoder.latent"], {**meta, "recommended_atol": 2e-4})


@torch.no_grad()
def test_golden_padding(golden):
    _, inputs, outputs, meta = golden
    rgba = inputs["rgba"][:1].float().permute(0, 3, 1, 2) / 255
    padded = pad_rgb(rgba[:, :3], rgba[:, 3:], exact=False)[0].permute(1, 2, 0)
    torch.testing.assert_close(padded, outputs["pad_rgb.0"], atol=meta["recommended_atol_pad_rgb"], rtol=0)


@torch.no_grad()
def test_golden_decoder(golden):
    weights, inputs, outputs, meta = golden
    nets = load_official("layerdiffuse", weights, **meta["config"])
    picture = (inputs["vae_decoded_pixels"].float() + 1) / 2
    latent = inputs["latent"].float()
    close(nets.decoder(picture, latent), outputs["decoder.single_pass"], meta)

    model = TransparentAutoencoder(tiny_vae(), nets.encoder, nets.decoder)
    model.decode_picture = lambda latents: picture[: len(latents)]
    decoded = model.decode_rgba(latent[:1], augment=True)
    close(decoded.roll(1, dims=1), outputs["decoder.augmented_median_first"], meta)
    # The file: RGBA, truncated.
    both = torch.cat([decoded, _second(model, picture, latent)])
    png = (both * 255).clamp(0, 255).byte().permute(0, 2, 3, 1)
    difference = (png.int() - outputs["decoder.png_rgba_uint8"].int()).abs()
    assert difference.max() <= meta["recommended_atol_uint8"]


def _second(model: TransparentAutoencoder, picture: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
    model.decode_picture = lambda latents: picture[1:]
    return model.decode_rgba(latent[1:], augment=True)


def test_the_golden_file_goes_back_to_its_names(golden):
    weights, _, _, meta = golden
    nets = load_official("layerdiffuse", weights, **meta["config"])
    saved = save_official("layerdiffuse", nets)
    assert set(saved) == set(weights)
    assert all(torch.equal(saved[k], weights[k].float()) for k in weights)


def test_each_file_of_the_release_loads_by_itself(golden):
    weights, _, _, meta = golden
    for part in ("encoder", "decoder"):
        alone = {k.removeprefix(f"{part}."): v for k, v in weights.items() if k.startswith(part)}
        nets = load_official("layerdiffuse", alone, **meta["config"])
        assert (nets.encoder is not None, nets.decoder is not None) == (part == "encoder", part == "decoder")
        assert set(save_official("layerdiffuse", nets)) == set(alone)
    ported = {**weights, "sd_vae.conv.weight": torch.zeros(1)}
    assert load_official("layerdiffuse", ported, **meta["config"]).decoder is not None


def test_foreign_files_are_refused(golden):
    weights, _, _, meta = golden
    with pytest.raises(PolyditError, match="neither an offset encoder"):
        load_official("layerdiffuse", {"x": torch.zeros(1)})
    damaged = {k: v for k, v in weights.items() if "mid_block" not in k}
    with pytest.raises(PolyditError, match="does not fit"):
        load_official("layerdiffuse", damaged, **meta["config"])
    with pytest.raises(PolyditError, match="unknown setting heads"):
        load_official("layerdiffuse", weights, heads=4)


# -- without weights -----------------------------------------------------------------------------------------


def test_published_sizes():
    with torch.device("meta"):
        assert sum(p.numel() for p in OffsetEncoder().parameters()) == 1_181_764
        assert sum(p.numel() for p in TransparencyDecoder().parameters()) == 104_104_804


@torch.no_grad()
def test_a_fresh_encoder_moves_nothing_and_a_fresh_decoder_sees_the_picture_alone():
    model, rgba = tiny(), discs()
    latents = model.encode_rgba(rgba)
    assert torch.equal(latents, model.posterior(rgba)[0])
    picture = torch.rand(2, 3, 32, 32)
    moved = latents + torch.randn_like(latents)
    assert torch.equal(model.decoder(picture, latents), model.decoder(picture, moved))


@torch.no_grad()
def test_the_offset_takes_the_place_of_the_noise():
    model, rgba = tiny(gain=7.0), discs()
    mean, std = model.posterior(rgba)
    model.encoder.blocks[-1].weight.normal_()
    offset = model.encoder(model.offset_feed(rgba))
    torch.testing.assert_close(model.encode_rgba(rgba), mean + std * 7.0 * offset)
    noise = torch.randn_like(mean)
    torch.testing.assert_close(model.encode_rgba(rgba, noise), mean + std * noise)
    # Normalised as the autoencoder's latents are
    torch.testing.assert_close(model.encode(2 * rgba - 1), (mean + std * 7.0 * offset - 0.1) * 0.5)
    drawn = model.encode(2 * rgba - 1, sample=True, generator=torch.Generator().manual_seed(0))
    again = model.encode(2 * rgba - 1, sample=True, generator=torch.Generator().manual_seed(0))
    assert torch.equal(drawn, again)


@torch.no_grad()
def test_decode_undoes_the_normalisation():
    model, rgba = tiny(), discs()
    raw = model.encode_rgba(rgba)
    straight = model.decode_rgba(raw, augment=False)
    torch.testing.assert_close(
        model.decode(model.encode(2 * rgba - 1), augment=False), 2 * straight - 1, atol=1e-3, rtol=0
    )


@torch.no_grad()
def test_the_two_orders_are_told_apart():
    rgba = discs()
    first, last = tiny("alpha_first"), tiny("alpha_last")
    feed = first.offset_feed(rgba)
    assert torch.equal(feed[:, :1], rgba[:, 3:])
    assert torch.equal(last.offset_feed(rgba), feed.roll(-1, dims=1))
    fixed = torch.arange(4.0).view(1, 4, 1, 1).expand(2, 4, 32, 32)
    for model, expected in ((first, [1, 2, 3, 0]), (last, [0, 1, 2, 3])):
        model.decoder.forward = lambda picture, latent: fixed
        assert model.decode_rgba(torch.zeros(2, 4, 4, 4))[0, :, 0, 0].tolist() == expected


@torch.no_grad()
@pytest.mark.parametrize("order", ["alpha_first", "alpha_last"])
def test_the_order_of_trained_weights_can_be_found(order):
    model = tiny()
    true = {}
    encode = model.encode_rgba
    model.encode_rgba = lambda rgba: (true.update(rgba=rgba), encode(rgba))[1]

    def trained(picture, latent):  # what weights of this order give back
        rgba = true["rgba"]
        return rgba.roll(1, dims=1) if order == "alpha_first" else rgba

    model.decoder.forward = trained
    assert guess_channel_order(model) == order
    assert model.channel_order == "alpha_first"


@torch.no_grad()
def test_eight_views_come_back_and_their_median_is_the_lower_one():
    picture = torch.rand(1, 3, 8, 8)
    seen = views(picture)
    assert len({tuple(v.flatten().tolist()) for v in seen}) == 8
    for index, view in enumerate(seen):
        assert torch.equal(unview(view, index), picture)
    # A network that commutes with flips and turns: eight passes are one.
    model = tiny()
    model.decoder.forward = lambda picture, latent: torch.cat([picture[:, :1], 1 - picture], dim=1)
    latents = torch.randn(1, 4, 4, 4)
    picture = torch.rand(1, 3, 32, 32)
    model.decode_picture = lambda _: picture
    torch.testing.assert_close(model.decode_rgba(latents, True), model.decode_rgba(latents, False))
    calls = iter(range(8))
    model.decoder.forward = lambda picture, latent: torch.full((1, 4, 32, 32), next(calls) / 8)
    assert torch.equal(model.decode_rgba(latents, True), torch.full((1, 4, 32, 32), 3 / 8))


@torch.no_grad()
def test_sides_that_the_decoder_does_not_divide_are_padded():
    model = tiny()
    model.decoder = TransparencyDecoder(
        block_out_channels=(4,) * 6, attention_levels=1, layers_per_block=1, attention_head_dim=4
    )
    assert model.decode_rgba(torch.randn(1, 4, 3, 5)).shape == (1, 4, 24, 40)


def test_padding_keeps_what_is_seen():
    rgba = discs()
    colour, alpha = rgba[:, :3], rgba[:, 3:]
    for exact in (True, False):
        padded = pad_rgb(colour, alpha, exact=exact)
        assert torch.isfinite(padded).all()
        whole = (alpha == 1).expand_as(colour)
        torch.testing.assert_close(padded[whole], colour[whole])
    padded = pad_rgb(colour, alpha)
    ground = torch.rand(2, 3, 32, 32)
    same = recompose(ground, torch.cat([padded, alpha], 1)) - recompose(ground, rgba)
    assert same.abs().max() == 0


def test_only_the_two_networks_are_trained():
    model = tiny().train()
    assert not model.space.vae.training
    assert {n.split(".")[0] for n, p in model.named_parameters() if p.requires_grad} == {"encoder", "decoder"}
    with torch.no_grad():
        model.encoder.blocks[-1].weight.normal_()
        model.decoder.latent_conv_in.weight.normal_()
    model.decode_rgba(model.encode_rgba(discs())).square().mean().backward()
    assert model.encoder.blocks[0].weight.grad.abs().sum() > 0  # through the frozen decoder
    assert all(p.grad is None for p in model.space.parameters())


def test_parts_that_do_not_fit_are_refused():
    decoder = TransparencyDecoder(block_out_channels=(4,) * 4, attention_levels=1, attention_head_dim=4)
    with pytest.raises(ValueError, match=r"channels"):
        TransparentAutoencoder(tiny_vae(16), OffsetEncoder(4), decoder)
    with pytest.raises(ValueError, match="channel_order"):
        tiny("rgba")


def test_both_networks_are_saved_and_loaded(tmp_path):
    model = tiny()
    for name, kind in (("encoder", OffsetEncoder), ("decoder", TransparencyDecoder)):
        getattr(model, name).save_pretrained(tmp_path / name)
        again = kind.from_pretrained(tmp_path / name)
        state = again.state_dict()
        assert all(torch.equal(v, state[k]) for k, v in getattr(model, name).state_dict().items())
