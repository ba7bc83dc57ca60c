"""Roles beside a pretrained layered model."""

from __future__ import annotations

import pytest
import torch
from diffusers import QwenImageTransformer2DModel

from polydit.core.backbones.pretrained import adapt_transformer
from polydit.core.conditioning.pretrained_layers import PretrainedLayerStack
from polydit.core.errors import PolyditError


def tiny(**options) -> QwenImageTransformer2DModel:
    torch.manual_seed(0)
    settings = {
        "patch_size": 2, "in_channels": 16, "out_channels": 4, "num_layers": 2, "attention_head_dim": 16,
        "num_attention_heads": 2, "joint_attention_dim": 8, "axes_dims_rope": (8, 4, 4),
        "use_layer3d_rope": True, "use_additional_t_cond": True, **options,
    }  # fmt: skip
    return QwenImageTransformer2DModel(**settings).eval()


def inputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "hidden_states": torch.randn(1, 4, 3, 8, 4, generator=generator),
        "timestep": torch.tensor([600.0]),
        "condition": torch.randn(1, 4, 8, 4, generator=generator),
        "encoder_hidden_states": torch.randn(1, 5, 8, generator=generator),
    }


def pack(latents: torch.Tensor) -> torch.Tensor:
    """Pictures (B, C, T, H, W) to tokens as diffusers' pipeline packs them."""
    batch, channels, count, height, width = latents.shape
    x = latents.transpose(1, 2).reshape(batch, count, channels, height // 2, 2, width // 2, 2)
    return x.permute(0, 1, 3, 5, 2, 4, 6).reshape(batch, -1, channels * 4)


@torch.no_grad()
def test_without_learned_roles_it_is_diffusers_model():
    net, given = tiny(), inputs()
    pictures = torch.cat([given["hidden_states"], given["condition"][:, :, None]], dim=2)
    direct = net(
        hidden_states=pack(pictures),
        timestep=given["timestep"] / 1000,
        encoder_hidden_states=given["encoder_hidden_states"],
        encoder_hidden_states_mask=None,
        img_shapes=[[(1, 4, 2)] * 4],
        additional_t_cond=torch.zeros(1, dtype=torch.long),
    ).sample
    for roles in (None, ["flat", "line"]):
        model = PretrainedLayerStack(adapt_transformer(net), roles)
        sample = model(**given).sample
        assert sample.shape == given["hidden_states"].shape
        torch.testing.assert_close(pack(sample), direct[:, : 3 * 8], atol=1e-6, rtol=1e-5)


def test_roles_are_added_to_their_own_slot():
    model = PretrainedLayerStack(adapt_transformer(tiny()), ["flat", "line"])
    given, seen = inputs(), {}
    model.network.transformer.transformer_blocks[0].register_forward_pre_hook(
        lambda module, args, kwargs: seen.update(x=kwargs["hidden_states"] if kwargs else args[0]),
        with_kwargs=True,
    )
    with torch.no_grad():
        base = model(**given).sample
        before = seen["x"].clone()
        model.roles.weight[1] = torch.tensor([1.0, -1.0]).repeat(16)  # a norm would take a constant out
        moved = model(**given).sample
    difference = (seen["x"] - before).unflatten(1, (4, 8)).abs().amax((0, 2, 3))
    assert difference.tolist() == pytest.approx([0, 1, 0, 0], abs=1e-5)
    assert (moved - base).abs().max() > 1e-4
    with torch.no_grad():
        other = model(**given, slots=[0, 2, 1]).sample  # the second picture has another role now
    assert (other - moved).abs().max() > 1e-4
    model(**given).sample.square().mean().backward()
    assert model.roles.weight.grad.abs().sum() > 0
    assert not model.network.transformer.img_in._forward_hooks  # nothing stays behind


def test_refusals():
    with pytest.raises(PolyditError, match="use_layer3d_rope"):
        PretrainedLayerStack(adapt_transformer(tiny(use_layer3d_rope=False)))
    model = PretrainedLayerStack(adapt_transformer(tiny()), ["flat"])
    with pytest.raises(ValueError, match="2 roles"):
        model(**inputs())
    with pytest.raises(PolyditError, match="name the folder"):
        PretrainedLayerStack.from_folder(None)


def test_the_released_sizes():
    with torch.device("meta"):
        model = PretrainedLayerStack.from_folder(None, ["flat", "shadow", "highlight", "line"])
    count = sum(p.numel() for p in model.network.parameters())
    assert count == pytest.approx(20.43e9, rel=1e-3)
    assert model.roles.weight.numel() == 5 * 3072
