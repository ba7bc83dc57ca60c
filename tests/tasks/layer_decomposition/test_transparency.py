"""Training of latent transparency, its data and its pipeline."""

from __future__ import annotations

from argparse import Namespace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import save_file

from polydit.core.alpha import pad_rgb
from polydit.core.autoencoders.official_transparency import TransparencyNets
from polydit.core.backbones.official import save_official
from polydit.core.errors import PolyditError
from polydit.core.load import load
from polydit.core.media import OutputWriter
from polydit.tasks.layer_decomposition.transparency_data import (
    TransparencyData,
    TransparentPictures,
    draw_transparent,
)
from polydit.tasks.layer_decomposition.transparency_model import (
    LatentTransparency,
    identity_loss,
    reconstruction_loss,
)
from polydit.tasks.layer_decomposition.transparency_pipeline import TransparencyPipeline
from polydit.tasks.layer_decomposition.transparency_predict import predict_transparency


def vae() -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(4, 4, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=2,
        layers_per_block=1,
    )


def module(**options) -> LatentTransparency:
    settings = {"encoder_widths": [4, 4, 4, 8], "decoder_channels": [8, 8, 8, 8], "decoder_layers": 1}
    return LatentTransparency(vae(), **settings, attention_levels=1, discriminator_width=4, **options)


def pictures(count: int = 2, side: int = 32) -> torch.Tensor:
    rng = np.random.default_rng(0)
    drawn = np.stack([draw_transparent(rng, side) for _ in range(count)])
    return torch.from_numpy(drawn).permute(0, 3, 1, 2)


def test_drawn_pictures():
    one = draw_transparent(np.random.default_rng(3), 32)
    assert np.array_equal(one, draw_transparent(np.random.default_rng(3), 32))
    alphas = [draw_transparent(np.random.default_rng(seed), 32)[..., 3] for seed in range(10)]
    assert all(a.min() >= 0 and a.max() <= 1 + 1e-6 for a in alphas)
    assert any(((a > 0.05) & (a < 0.95)).mean() > 0.1 for a in alphas)  # glass


def test_crops_of_pictures_with_alpha(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 4), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    data = TransparentPictures([tmp_path / "a.png"], 16, 4, drawn=0.0)
    sample = data[1]["rgba"]
    assert sample.shape == (4, 16, 16)
    assert torch.equal(sample, TransparentPictures([tmp_path / "a.png"], 16, 4, drawn=0.0)[1]["rgba"])
    with pytest.raises(PolyditError, match="multiple of 8"):
        TransparencyData(side=20)


def test_the_autoencoder_is_frozen_and_not_in_a_checkpoint():
    net = module(adversarial_weight=0.01)
    assert {name.split(".")[1] for name, _ in net.named_parameters()} == {"encoder", "decoder", "judge"}
    assert not any(p.requires_grad for p in net.model.space.parameters())


def test_losses_in_closed_form():
    rgba = pictures()
    padded = torch.cat([pad_rgb(rgba[:, :3], rgba[:, 3:], exact=False), rgba[:, 3:]], 1)
    assert reconstruction_loss(padded, rgba).item() == 0
    assert reconstruction_loss(padded + 0.1, rgba).item() == pytest.approx(0.1, abs=1e-6)
    assert identity_loss(rgba + 0.1, rgba).item() == pytest.approx(0.01, abs=1e-6)


def test_a_fresh_model_harms_nothing_and_each_side_of_the_game_moves_its_own_weights():
    net = module(adversarial_weight=0.01)
    terms, _ = net.losses({"rgba": pictures()})
    assert terms["identity"].item() == pytest.approx(0, abs=1e-10)  # no offset yet
    assert set(terms) == {"objective", "identity", "adversarial", "judge"}
    judge, decoder = net.backbone["judge"], net.backbone["decoder"]
    terms["adversarial"].backward(retain_graph=True)
    assert all(p.grad is None for p in judge.parameters())
    assert decoder.conv_out.weight.grad.abs().sum() > 0
    net.zero_grad()
    terms["judge"].backward()
    # (What the last bias gets from real and from decoded pictures cancels.)
    assert all(p.grad.abs().sum() > 0 for p in judge.parameters() if p.ndim > 1)
    assert decoder.conv_out.weight.grad is None


def test_it_learns_alpha():
    torch.manual_seed(0)
    net = module(adversarial_weight=0.0, gain=10.0)
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], 5e-3)
    batch, losses = {"rgba": pictures(2, 16)}, []
    for _ in range(12):
        terms, _ = net.losses(batch)
        optimizer.zero_grad()
        sum(terms.values()).backward()
        optimizer.step()
        losses.append(terms["objective"].item())
    assert losses[-1] < 0.8 * losses[0]


def test_pipeline_is_saved_loaded_and_predicts(tmp_path):
    pipe = module(adversarial_weight=0.0).build_pipeline()
    rgba = (draw_transparent(np.random.default_rng(0), 36) * 255).astype(np.uint8)
    out = pipe(rgba, augment=False)
    assert out.shape == (36, 36, 4)
    pipe.save_pretrained(tmp_path / "pipe")
    again = load(tmp_path / "pipe", task="layer-decomposition")
    assert np.abs(again(rgba, augment=False).astype(int) - out).max() <= 1
    Image.fromarray(rgba).save(tmp_path / "glass.png")
    writer = OutputWriter(tmp_path / "out")
    record = predict_transparency(
        pipe, tmp_path / "glass.png", writer, Namespace(export="ora"), torch.Generator()
    )
    assert {p.name for p in (tmp_path / "out").iterdir()} == set(record["files"])
    assert {"glass_foreground.png", "glass_layers.json", "glass.ora"} == set(record["files"])
    assert record["alpha_mae"] > 0
    Image.fromarray(rgba[..., :3]).save(tmp_path / "opaque.png")
    with pytest.raises(PolyditError, match="no transparency"):
        predict_transparency(pipe, tmp_path / "opaque.png", writer, Namespace(), torch.Generator())
    with pytest.raises(PolyditError, match="uint8"):
        pipe.encode(rgba[..., :3])


def test_released_files_become_a_pipeline(tmp_path):
    net = module(adversarial_weight=0.0)
    for name in ("encoder", "decoder"):
        parts = {"encoder": None, "decoder": None, name: net.backbone[name]}
        save_file(save_official("layerdiffuse", TransparencyNets(**parts)), tmp_path / f"{name}.safetensors")
    net.model.space.vae.save_pretrained(tmp_path / "vae")
    files = [tmp_path / f"{name}.safetensors" for name in ("encoder", "decoder")]
    pipe = TransparencyPipeline.from_official(tmp_path / "vae", *files, channel_order="alpha_last")
    assert pipe.autoencoder.channel_order == "alpha_last"
    found = TransparencyPipeline.from_official(tmp_path / "vae", *files)
    assert found.config.channel_order == found.autoencoder.channel_order
    with pytest.raises(PolyditError, match="no transparent decoder"):
        TransparencyPipeline.from_official(tmp_path / "vae", files[0])


def test_without_an_autoencoder_the_option_is_named():
    with pytest.raises(PolyditError, match=r"--model\.vae: name the folder"):
        LatentTransparency()


def test_shapes_that_stand_in_for_an_autoencoder_are_counted_and_not_trained_on():
    with torch.device("meta"):
        module = LatentTransparency()
    assert sum(p.numel() for p in module.model.encoder.parameters()) == 1_181_764
    with pytest.raises(PolyditError, match=r"--model\.vae: name the folder"):
        module.setup("fit")
