"""A stack of layers as token groups: numbers, roles, positions."""

from __future__ import annotations

import pytest
import torch

from polydit.core.conditioning import LayerStackDiT, label_collisions


def model(**options) -> LayerStackDiT:
    torch.manual_seed(0)
    settings = {
        "input_size": 8, "patch_size": 2, "in_channels": 4, "hidden_size": 24, "depth": 2, "num_heads": 1,
        "position": "rope", "qk_norm": "rms", **options,
    }  # fmt: skip
    net = LayerStackDiT(**settings).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name != "role_embed":
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return net


def inputs(layers: int, channels: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return (
        torch.randn(2, 4, layers, 8, 8, generator=generator),
        torch.tensor([200.0, 700.0]),
        torch.randn(2, channels, 8, 8, generator=generator),
    )


def test_the_position_scheme_is_composite_zero_layers_from_one_condition_minus_one():
    x, t, condition = inputs(3)
    groups = model().groups(x, t, condition)
    assert [(g.name, g.position.group) for g in groups] == [("0", 0), ("1", 1), ("2", 2), ("condition", -1)]
    assert not label_collisions(model(), groups)
    without = model(composite=False).groups(x, t, condition)
    assert [g.position.group for g in without] == [1, 2, 3, -1]
    assert groups[-1].timestep == 0.0


@torch.no_grad()
def test_any_number_of_layers_has_the_same_parameters():
    net = model()
    for layers in (1, 2, 5):
        x, t, condition = inputs(layers)
        assert net(x, t, condition).sample.shape == x.shape


@torch.no_grad()
def test_permuting_slots_permutes_outputs():
    net = model(roles=["flat", "shadow", "line"], composite=False)
    net.role_embed.normal_()
    x, t, condition = inputs(3)
    order = [2, 0, 1]
    straight = net(x, t, condition).sample
    permuted = net(x[:, :, order], t, condition, slots=[1 + i for i in order]).sample
    torch.testing.assert_close(permuted, straight[:, :, order], atol=2e-5, rtol=0)
    moved = net(x[:, :, order], t, condition).sample  # without their numbers they are other layers
    assert (moved - straight[:, :, order]).abs().max() > 1e-2


@torch.no_grad()
def test_zero_role_embeddings_are_the_model_without_roles():
    base, net = model(composite=False), model(roles=["a", "b"], composite=False)
    assert set(net.state_dict()) - set(base.state_dict()) == {"role_embed"}
    net.load_state_dict({**base.state_dict(), "role_embed": torch.zeros(2, 24)})
    x, t, condition = inputs(2)
    assert torch.equal(net(x, t, condition).sample, base(x, t, condition).sample)
    net.role_embed[1].fill_(0.5)
    assert not torch.equal(net(x, t, condition).sample, base(x, t, condition).sample)


@torch.no_grad()
def test_the_picture_reaches_the_layers_as_group_and_as_channels():
    for options, channels in (
        ({}, 4),
        ({"in_channels": 7, "out_channels": 4, "condition_group": False}, 3),
        ({"in_channels": 7, "out_channels": 4, "local_affine": True}, 3),
    ):
        net = model(**options)
        x, t, condition = inputs(2, channels)
        out = net(x, t, condition).sample
        assert out.shape == x.shape
        assert (net(x, t, condition * 0.5).sample - out).abs().max() > 1e-3


@torch.no_grad()
def test_local_affine_follows_the_picture_pixel_by_pixel():
    net = model(in_channels=7, out_channels=4, local_affine=True, condition_group=False)
    fresh = LayerStackDiT(**{**net.config, "gate_init": 0.0})
    x, t, condition = inputs(2, 3)
    assert not fresh(x, t, condition).sample.any()
    # Coefficients that do not depend on the place: each layer is one linear map of the picture.
    head = fresh.final_layer.linear
    head.bias.copy_(torch.arange(16.0).repeat(4))  # (patch, channels): offset and three factors for each of 4
    out = fresh(x, t, condition).sample
    coefficients = torch.arange(16.0).view(4, 4)
    expected = coefficients[:, 0].view(1, 4, 1, 1) + torch.einsum(
        "cp,bphw->bchw", coefficients[:, 1:], condition
    )
    torch.testing.assert_close(out, expected[:, :, None].expand_as(out))
    fine = torch.randn(2, 3, 24, 24)
    assert fresh(x, t, condition, detail=fine).sample.shape == (2, 4, 2, 24, 24)


def test_it_is_saved_and_loaded(tmp_path):
    net = model(roles=["a", "b"], in_channels=7, out_channels=4, local_affine=True)
    net.save_pretrained(tmp_path)
    again = LayerStackDiT.from_pretrained(tmp_path).eval()
    x, t, condition = inputs(3, 3)
    with torch.no_grad():
        assert torch.equal(again(x, t, condition).sample, net(x, t, condition).sample)


def test_refusals():
    with pytest.raises(ValueError, match="rope"):
        LayerStackDiT(position="sincos", input_size=8, hidden_size=24, num_heads=1)
    with pytest.raises(ValueError, match="condition_group"):
        model(condition_group=False)
    with pytest.raises(ValueError, match="local_affine"):
        model(local_affine=True)
    x, t, condition = inputs(3)
    with pytest.raises(ValueError, match=r"roles for 1\.\.2"):
        model(roles=["a", "b"], composite=False)(x, t, condition)
