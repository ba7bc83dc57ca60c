"""Condition by channels: no bit changes until it is trained, and the model that is saved is the one that loads."""

from __future__ import annotations

import pytest
import torch
from diffusers import (
    DiTTransformer2DModel,
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    WanTransformer3DModel,
)
from torch import nn

from polydit.core.backbones import DiT
from polydit.core.conditioning import widen_input
from polydit.core.conditioning.channels import duplicate_input, find_input_layer

T = torch.tensor([0.2, 0.7])


def dit(**options):
    return DiT(
        **{
            "input_size": 4,
            "patch_size": 2,
            "in_channels": 3,
            "hidden_size": 24,
            "depth": 1,
            "num_heads": 2,
            **options,
        }
    )


def flux():
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        axes_dims_rope=(2, 2, 4),
    )


def call_flux(model, x):
    ids = torch.zeros(4, 3)
    return model(
        x.flatten(2).transpose(1, 2),
        torch.ones(2, 3, 8),
        torch.ones(2, 8),
        T,
        img_ids=ids,
        txt_ids=torch.zeros(3, 3),
    ).sample


def with_labels(model, x):
    return model(x, timestep=T, class_labels=torch.tensor([0, 1])).sample


def with_text(model, x):
    more = (
        {"added_cond_kwargs": {"resolution": None, "aspect_ratio": None}}
        if "PixArt" in type(model).__name__
        else {}
    )
    return model(x, encoder_hidden_states=torch.ones(2, 3, 8), timestep=T, **more).sample


# name: (build, call, input without batch, output channels)
MODELS = {
    "native": (dit, lambda m, x: m(x, T).sample, (3, 4, 4), 3),
    "native, variance": (lambda: dit(learn_sigma=True), lambda m, x: m(x, T).sample, (3, 4, 4), 6),
    "native, halved": (
        lambda: dit(learn_sigma=True, keep_sigma=False, out_channels=2),
        lambda m, x: m(x, T).sample,
        (3, 4, 4),
        2,
    ),
    "native, video": (
        lambda: dit(input_size=[2, 4, 4], patch_size=[1, 2, 2]),
        lambda m, x: m(x, T).sample,
        (3, 2, 4, 4),
        3,
    ),
    "dit": (
        lambda: DiTTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=4,
            in_channels=3,
            num_layers=1,
            sample_size=4,
            num_embeds_ada_norm=5,
            norm_num_groups=1,
        ),
        with_labels,
        (3, 4, 4),
        3,
    ),
    "pixart": (
        lambda: PixArtTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=4,
            in_channels=3,
            out_channels=6,
            num_layers=1,
            sample_size=4,
            cross_attention_dim=8,
            caption_channels=8,
            norm_num_groups=1,
        ),
        with_text,
        (3, 4, 4),
        6,
    ),
    "sd3": (
        lambda: SD3Transformer2DModel(
            sample_size=4,
            in_channels=3,
            out_channels=3,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=8,
            caption_projection_dim=16,
            pooled_projection_dim=8,
            pos_embed_max_size=4,
        ),
        lambda m, x: m(x, torch.ones(2, 3, 8), torch.ones(2, 8), T).sample,
        (3, 4, 4),
        3,
    ),
    "flux": (flux, call_flux, (4, 2, 2), 4),
    "sana": (
        lambda: SanaTransformer2DModel(
            in_channels=3,
            out_channels=3,
            num_attention_heads=2,
            attention_head_dim=4,
            num_layers=1,
            num_cross_attention_heads=2,
            cross_attention_head_dim=4,
            cross_attention_dim=8,
            caption_channels=8,
            sample_size=4,
        ),
        with_text,
        (3, 4, 4),
        3,
    ),
    "wan": (
        lambda: WanTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=3,
            out_channels=3,
            text_dim=8,
            freq_dim=8,
            ffn_dim=16,
            num_layers=1,
            rope_max_seq_len=8,
        ),
        with_text,
        (3, 1, 4, 4),
        3,
    ),
}


def build(name):
    torch.manual_seed(0)
    model = MODELS[name][0]().eval()
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.ndim:
            nn.init.normal_(parameter, std=0.2)
    return model


@pytest.mark.parametrize("name", list(MODELS))
@torch.no_grad()
def test_widening_changes_no_bit_and_survives_saving(name, tmp_path, noise):
    _, call, shape, out_channels = MODELS[name]
    model = build(name)
    x, condition = noise(2, *shape), noise(2, 2, *shape[1:], seed=1)
    plain = call(model, x)
    out_config = model.config.get("out_channels")
    assert widen_input(model, 2) is model
    assert model.config.in_channels == shape[0] + 2
    both = torch.cat([x, condition], dim=1)
    torch.testing.assert_close(call(model, both), plain, atol=2e-6, rtol=2e-6)
    assert torch.equal(call(model, both), call(model, torch.cat([x, 10 * condition], dim=1))), "zero columns"
    if out_config is not None:
        assert model.config.out_channels == out_config
    layer = model.get_submodule(find_input_layer(model))
    nn.init.normal_(layer.weight[:, shape[0] :])
    trained = call(model, both)
    assert (trained - plain).abs().max() > 1e-4
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    assert torch.equal(call(loaded, both), trained)
    channels = trained.shape[-1] if name == "flux" else trained.shape[1]
    assert channels == out_channels, "the output keeps its width"


def test_the_native_output_does_not_move_by_a_bit(noise):
    """The sum over the new columns is a sum of zeros in our own convolution too."""
    model, x = build("native"), noise(2, 3, 4, 4)
    plain = model(x, T).sample
    widen_input(model, 5)
    assert torch.equal(model(torch.cat([x, noise(2, 5, 4, 4, seed=1)], 1), T).sample, plain)


def test_new_columns_learn_and_a_frozen_layer_stays_frozen(noise):
    model = widen_input(build("native"), 2)
    x = noise(2, 5, 4, 4)
    model(x, T).sample.square().mean().backward()
    assert (model.patch_embed.proj.weight.grad[:, 3:].abs().amax((0, 2, 3)) > 0).all()
    frozen = build("native").requires_grad_(False)
    assert not widen_input(frozen, 2).patch_embed.proj.weight.requires_grad


def test_widening_twice_and_in_bfloat16(noise):
    model = widen_input(widen_input(build("native").bfloat16(), 1), 2)
    assert model.config.in_channels == 6
    assert model.config.out_channels == 3
    assert model.patch_embed.proj.weight.dtype == torch.bfloat16


def test_the_layer_can_be_named_and_a_model_without_one_is_told():
    model = nn.Sequential(nn.Linear(3, 4))
    with pytest.raises(ValueError, match="none of the known input layers"):
        widen_input(model, 1)
    assert widen_input(model, 1, layer="0")[0].in_features == 4


@pytest.mark.parametrize("name", ["native", "pixart", "sd3", "flux"])
def test_equal_copies_of_the_input_give_the_original_output(name, noise):
    _, call, shape, _ = MODELS[name]
    model, x = build(name), noise(2, *shape)
    with torch.no_grad():
        before = call(model, x)
        duplicate_input(model)
        both = call(model, torch.cat([x, x], dim=1))
        other = call(model, torch.cat([x, 0 * x], dim=1))
    torch.testing.assert_close(both, before, atol=1e-5, rtol=1e-5)
    assert (other - before).abs().max() > 1e-3
