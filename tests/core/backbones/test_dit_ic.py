"""DiT-IC: reference vectors of every part, sizes of the published model, and the official names there and back."""

import json
import re
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderDC, SanaTransformer2DModel
from safetensors.torch import load_file

from polydit.core.backbones import load_official, save_official
from polydit.core.backbones.dit_ic import (
    DC_AE,
    FLOW_SIGMA,
    SANA_600M,
    DiTICLatentCodec,
    LatentPrompter,
    one_step,
    strength,
)
from polydit.core.backbones.elic import ElicAnalysis
from polydit.core.entropy import UNIT, gaussian_bits, make_exact, pass_masks, scale_boundaries, squeeze
from polydit.core.entropy.gaussian import scale_ladder
from polydit.core.errors import PolyditError

GOLDEN = Path(__file__).parents[2] / "data" / "golden" / "dit_ic"
META = json.loads((GOLDEN / "meta.json").read_text())
NEAR = {"atol": META["recommended_atol"], "rtol": META["recommended_rtol"]}


@pytest.fixture(scope="module")
def weights():
    return load_file(GOLDEN / "weights.safetensors")


@pytest.fixture(scope="module")
def inputs():
    return load_file(GOLDEN / "inputs.safetensors")


@pytest.fixture(scope="module")
def expected():
    return load_file(GOLDEN / "outputs.safetensors")


@pytest.fixture(scope="module")
def model(weights):
    return load_official("dit_ic", weights, **META["config"])


@torch.no_grad()
def test_reference_vectors(model, inputs, expected):
    passes = []
    hooks = [
        out.register_forward_hook(lambda module, args, result: passes.append(result))
        for out in model.codec.context.adapter_out
    ]
    out = model(inputs["latent"], inputs["latent2"])
    for hook in hooks:
        hook.remove()

    assert not model.training
    found = {
        "y": out.y, "z": out.z, "z_hat": out.z_hat, "codec.mean": out.mean, "codec.scale": out.scale,
        "codec.res": out.res, "codec.prompt": out.prompt, "likelihood.y": out.likelihoods["y"],
        "likelihood.z": out.likelihoods["z"], "sigma": out.sigma, "caption_tokens": out.caption_tokens,
        "dit.velocity": out.velocity, "x_denoised": out.sample,
    }  # fmt: skip
    masks = pass_masks(*out.y.shape[1:])
    for number, (result, mask) in enumerate(zip(passes, masks, strict=True)):
        mean, scale = result.chunk(2, dim=1)
        found |= {f"pass{number}.means_masked": mean * mask, f"pass{number}.scales_masked": scale * mask}
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], **NEAR, msg=lambda m, name=name: f"{name}: {m}")
    for name in ("y", "z"):
        bits = -out.likelihoods[name].log2().sum((1, 2, 3))
        torch.testing.assert_close(
            bits, expected[f"bits.{name}"], atol=META["recommended_atol_bits"], rtol=1e-4
        )


def test_symbols_and_their_order(model, inputs, expected):
    """As the released ``compress`` writes them: squeezed, pass by pass."""
    symbols, indices = [], []
    latents = None

    def quantizer(mean, scale, mask):
        residual = torch.round(latents - mean)
        symbols.append(squeeze(residual, mask).flatten(1))
        units = torch.floor(squeeze(scale, mask) * 2**20).long()
        indices.append(torch.bucketize(units, scale_boundaries(2**20)).flatten(1))
        return residual + mean

    with torch.no_grad():
        latents = model.codec.g_a(inputs["latent"], inputs["latent2"])
        z_hat, _ = model.codec.entropy_bottleneck(model.codec.h_a(latents))
        model.codec.context(model.codec.h_s(z_hat), quantizer)
    flat = torch.stack(symbols).flatten()
    assert torch.equal(flat.int(), expected["coded.y_symbols"])
    assert torch.equal(torch.stack(indices).flatten().int(), expected["coded.y_scale_indexes"])


def test_side_information_has_the_published_probabilities(model, expected):
    offset, counts = expected["entropy_bottleneck.offset"], expected["entropy_bottleneck.quantized_cdf"]
    radius = -int(offset[0])
    assert (offset == -radius).all()
    published = counts.diff(dim=1).double() / 2**16  # the last one is what lies beyond
    masses = model.codec.entropy_bottleneck.masses(radius)
    torch.testing.assert_close(masses, published, atol=3e-5, rtol=1e-3)


@pytest.mark.parametrize("mode", ["scale", "value", "flow_prediction"])
def test_steps_of_the_flow(model, inputs, expected, mode):
    step = one_step(inputs["latent"], inputs["model_output"], inputs["scale_for_step"], model.start, mode)
    torch.testing.assert_close(step, expected[f"step.{mode}"], **NEAR)
    assert model.start == pytest.approx(float(expected["scheduler.sigmas"][0]), abs=1e-7)
    assert pytest.approx(model.start, abs=1e-6) == FLOW_SIGMA


def test_strength_of_the_flow():
    values = strength(torch.tensor([0.0, 1.0, 2.0, -2.0, 4.0, 10.0]))
    torch.testing.assert_close(values, torch.tensor([0.4, 0.55, 0.7, 0.7, 1.0, 1.0]))
    with pytest.raises(ValueError, match="mode is 'sigma'"):
        one_step(torch.zeros(1), torch.zeros(1), None, mode="sigma")


def test_official_names_come_back(model, weights):
    back = save_official("dit_ic", model)
    assert back.keys() == weights.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(back[name], tensor.float(), rtol=0, atol=1e-6 if "target" in name else 0)
    older = {
        name.replace("bottleneck.matrices.", "bottleneck._matrix").replace("bottleneck.biases.", "bottleneck._bias")
        .replace("bottleneck.factors.", "bottleneck._factor"): tensor
        for name, tensor in weights.items()
    }  # fmt: skip
    older["codec.g_a.pre2.0.branch1.weight"] = older[
        "codec.g_a.pre2.0.down.weight"
    ]  # an alias in released files
    again = load_official("dit_ic", older, **META["config"])
    assert torch.equal(again.codec.entropy_bottleneck.matrices[1], model.codec.entropy_bottleneck.matrices[1])


def test_a_checkpoint_may_hold_autoencoder_and_features(weights):
    small = {
        **DC_AE, "latent_channels": 6, "attention_head_dim": 4, "encoder_block_types": ["ResBlock"] * 2,
        "decoder_block_types": ["ResBlock"] * 2, "encoder_block_out_channels": [8, 8],
        "decoder_block_out_channels": [8, 8], "encoder_layers_per_block": [1, 1],
        "decoder_layers_per_block": [1, 1], "encoder_qkv_multiscales": [[], []], "decoder_qkv_multiscales": [[], []],
    }  # fmt: skip
    torch.manual_seed(0)
    parts = {"vae": AutoencoderDC(**small), "aux_codec": ElicAnalysis(12, 16)}
    extra = {f"{prefix}.{k}": v for prefix, part in parts.items() for k, v in part.state_dict().items()}
    model = load_official("dit_ic", weights | extra, **META["config"], vae=small)
    assert torch.equal(model.vae.decoder.conv_in.weight, extra["vae.decoder.conv_in.weight"])
    picture = torch.rand(1, 3, 32, 32) * 2 - 1
    assert torch.equal(model.features(picture), parts["aux_codec"](picture))
    assert save_official("dit_ic", model).keys() == (weights | extra).keys()
    whole = {k.replace("aux_codec.", "aux_codec.g_a."): v for k, v in extra.items()}
    whole["aux_codec.h_a.reduction.0.weight"] = torch.zeros(1)  # the rest of that codec
    again = load_official("dit_ic", weights | whole, **META["config"], vae=small)
    assert torch.equal(again.features(picture), model.features(picture))


def test_wrong_checkpoints_are_named(weights):
    with pytest.raises(
        PolyditError, match=r"dit_ic checkpoint does not fit .*missing \['prompter\.pattern'\]"
    ):
        load_official(
            "dit_ic", {k: v for k, v in weights.items() if k != "prompter.pattern"}, **META["config"]
        )


def test_a_whole_training_module_is_read(weights, model):
    """Everything that the released code's module registers: aliases of its resampling, losses, the teacher's layers."""
    twice, first = {}, set()
    for name, tensor in weights.items():
        alias = re.sub(
            r"(pre2\.0|g_a\.analysis_transform\.2|synthesis_transform\.3|aux\.block\.2)\.(down|up)\.",
            r"\1.branch1.",
            name,
        )
        if alias != name:
            twice[alias] = tensor
            first.add(name)
    assert len(twice) == 2 + 2 + 4 * 4
    unused = dict.fromkeys(
        ["loss.logvar", "linear_proj.weight", "foundation_model.x", "prompter.logit_scale"]
    )
    unused = {name: torch.zeros(1) for name in unused}
    for state in (weights | twice | unused, {k: v for k, v in weights.items() if k not in first} | twice):
        again = load_official("dit_ic", state, **META["config"])
        for (name, ours), theirs in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
            assert torch.equal(ours, theirs), name


def test_what_is_coded_may_be_wider_than_the_transforms():
    codec = DiTICLatentCodec(6, 24, 10, 8, 4, 12, width=16)
    assert codec.g_a.pre2[0].down.in_channels == codec.prompt.synthesis_transform[-1].out_channels == 16
    assert (
        codec.g_s.synthesis_transform[-1].out_channels
        == codec.scale.synthesis_transform[-1].out_channels
        == 10
    )
    assert codec.aux.synthesis_transform[-1].out_channels == 6
    out = codec.eval()(torch.randn(1, 6, 8, 8), torch.randn(1, 16, 16, 16))
    assert out.y.shape == (1, 24, 4, 4)
    assert (out.mean.shape, out.res.shape, out.prompt.shape) == ((1, 10, 8, 8), (1, 6, 8, 8), (1, 16, 8, 8))


def test_the_timestep_is_the_solvers(weights):
    scheduler = {**META["config"]["scheduler"], "num_train_timesteps": 500}
    model = load_official("dit_ic", weights, **{**META["config"], "scheduler": scheduler, "time": 3})
    assert model.timestep == 499


def test_attention_of_the_features_is_compressais():
    """Units end with a ReLU, as compressai's ``AttentionBlock`` has them, those outside of it do not."""
    torch.manual_seed(0)
    block = ElicAnalysis(8, 8).analysis_transform[8]
    x = torch.randn(2, 8, 5, 7)
    a, b = x, x
    for unit in block.conv_a:
        a = torch.relu(unit.conv(a) + a)
    for unit in block.conv_b[:-1]:
        b = torch.relu(unit.conv(b) + b)
    torch.testing.assert_close(block(x), x + a * torch.sigmoid(block.conv_b[-1](b)))
    names = block.state_dict().keys()
    assert {"conv_a.0.conv.0.weight", "conv_b.2.conv.4.bias", "conv_b.3.weight"} <= names


def test_published_sizes():
    def size(*models):
        return sum(p.numel() for model in models for p in model.parameters())

    with torch.device("meta"):
        codec, prompter, features = DiTICLatentCodec(), LatentPrompter(), ElicAnalysis()
        transformer, vae = SanaTransformer2DModel(**SANA_600M), AutoencoderDC(**DC_AE)
    assert size(codec) == 126_750_848
    assert size(codec.h_s, codec.context) == 106_617_600  # what a decoder must compute exactly
    assert size(prompter) == 11_370_304
    assert size(transformer) == 591_747_872
    assert (size(vae.encoder), size(vae.decoder)) == (153_027_104, 159_223_171)
    assert size(features) == 7_337_792
    assert size(codec, prompter, transformer, vae, features) == 1_049_457_091


@torch.no_grad()
def test_exact_networks_follow_the_trained_ones(model, inputs):
    """Fixed-point means and scales are within 1/250, so that an estimate of the bits holds for the file."""
    torch.manual_seed(0)
    codec = model.codec
    z_hat = torch.round(torch.randn(1, 8, 2, 3) * 3)
    floating, exact = [], []
    for found, h_s, context, unit in (
        (floating, codec.h_s, codec.context, 1),
        (exact, make_exact(codec.h_s), make_exact(codec.context), UNIT),
    ):

        def quantizer(mean, scale, mask, found=found, unit=unit):
            found.append(torch.where(mask, mean, 0) / unit)
            found.append(torch.where(mask, scale, 0) / unit)
            return 3 * unit + mean  # three steps above the mean

        base = h_s(z_hat.double() * UNIT if unit > 1 else z_hat)
        found.append(context(base, quantizer)[0] / unit)
    for a, b in zip(floating, exact, strict=True):
        torch.testing.assert_close(a, b.float(), atol=4e-3, rtol=0)


def test_half_precision_leaves_exact_networks_alone(model):
    exact = make_exact(model.codec.h_s)
    before = exact(torch.full((1, 8, 1, 1), 5.0 * UNIT, dtype=torch.float64))
    exact.to(torch.bfloat16)
    assert torch.equal(exact(torch.full((1, 8, 1, 1), 5.0 * UNIT, dtype=torch.float64)), before)


def test_bits_of_the_tables_are_those_of_the_likelihood():
    distance, scale = torch.arange(4.0), scale_ladder()[[0, 20, 40]].float()
    bits = gaussian_bits(distance[:, None], scale)
    by_hand = torch.distributions.Normal(0, scale)
    mass = by_hand.cdf(distance[:, None] + 0.5) - by_hand.cdf(distance[:, None] - 0.5)
    assert torch.allclose(bits[mass > 1e-5], -mass.log2()[mass > 1e-5], atol=1e-2)


def test_the_field_helps_where_the_codec_is_not_equally_sure():
    """Errors of different size, and a transformer that sees each with the same uncertainty."""
    generator = torch.Generator().manual_seed(0)
    sigma = torch.linspace(0.05, 4, 200).repeat(200, 1)
    clean = torch.zeros(200, 200)
    error = sigma * torch.randn(sigma.shape, generator=generator)
    velocity = error + torch.randn(sigma.shape, generator=generator)
    left = {
        name: one_step(clean + error, factor * velocity, sigma, mode=mode).square().mean()
        for name, mode, factor in (
            ("guided", "scale", 1.0),
            ("all the way", "flow_prediction", 1.0),
            ("a little", "flow_prediction", 0.4),
        )
    }
    assert left["guided"] < 0.9 * min(left["all the way"], left["a little"])
