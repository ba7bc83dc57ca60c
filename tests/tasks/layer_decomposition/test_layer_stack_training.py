"""Training of stacks in a latent space: what is a target, what a condition, and what learns."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel

import polydit
from polydit.core.adapters import LoraOptions
from polydit.core.autoencoders import DiffusersAutoencoder
from polydit.core.conditioning import LayerStackDiT
from polydit.core.conditioning.pretrained_layers import PretrainedLayerStack
from polydit.core.diffusion import Objective
from polydit.core.errors import PolyditError
from polydit.tasks.layer_decomposition.illustration import ROLES
from polydit.tasks.layer_decomposition.layer_stack_model import LayerStackTraining


def autoencoder() -> DiffusersAutoencoder:
    torch.manual_seed(0)
    vae = AutoencoderKLQwenImage(
        base_dim=4, z_dim=4, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[False], input_channels=4,
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    )  # fmt: skip
    return DiffusersAutoencoder(vae)


def pretrained(roles: list[str] | None) -> PretrainedLayerStack:
    torch.manual_seed(0)
    net = QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=1, attention_head_dim=16, num_attention_heads=1,
        joint_attention_dim=8, axes_dims_rope=(8, 4, 4), use_layer3d_rope=True, use_additional_t_cond=True,
    )  # fmt: skip
    net.register_to_config(_name_or_path="a folder")
    return PretrainedLayerStack(net, roles)


def batch(layers: int = 4) -> dict[str, torch.Tensor]:
    return {"layers": torch.rand(2, 4, layers, 16, 16, generator=torch.Generator().manual_seed(1))}


def module(backbone: torch.nn.Module, **options) -> LayerStackTraining:
    return LayerStackTraining(backbone, Objective(), autoencoder(), decode_side=4, **options)


def test_targets_are_composite_and_layers_each_encoded_by_itself():
    net = module(pretrained(list(ROLES)))
    data = batch()
    latents = net.target(data)
    assert latents.shape == (2, 4, 5, 8, 8)
    pictures = net.pictures_of(data["layers"])
    assert torch.equal(pictures[:, :, 1:], 2 * data["layers"] - 1)
    assert (pictures[:, 3, 0] == 1).all()  # the composite is opaque
    alone = net.autoencoder.encode(pictures[:, :, 3])
    torch.testing.assert_close(latents[:, :, 3], alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(net.condition(data)["condition"], latents[:, :, 0], atol=1e-5, rtol=0)


def test_an_adapter_and_the_roles_learn_and_nothing_else():
    net = module(pretrained(list(ROLES)), adapter=LoraOptions(rank=2, alpha=2, targets=["to_q", "to_v"]))
    net.prepare()
    trained = {name for name, p in net.named_parameters() if p.requires_grad}
    assert "backbone.roles.weight" in trained
    assert all("lora" in name or "roles" in name for name in trained)
    assert net.saved_names() == trained
    terms, _ = net.losses(batch())
    assert set(terms) == {"objective", *ROLES, "recomposition"}
    sum(terms.values()).backward()
    assert net.backbone.roles.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in net.autoencoder.parameters())


def test_the_published_adapter_has_attention_and_mlp_of_the_picture():
    file = Path(polydit.__file__).parent / "configs/layer_decomposition/illustration.yaml"
    options = yaml.safe_load(file.read_text())["model"]["init_args"]["adapter"]
    net = module(pretrained(list(ROLES)), adapter=LoraOptions(**options))
    net.prepare()
    adapted = {name.partition(".lora_A")[0] for name in net.saved_names() if ".lora_A" in name}
    block = "backbone.network.transformer.transformer_blocks.0."
    assert {name.removeprefix(block) for name in adapted} == {
        *(f"attn.{part}" for part in ("to_q", "to_k", "to_v", "to_out.0")), "img_mlp.net.0.proj", "img_mlp.net.2"
    }  # fmt: skip
    wide, blocks, rank = 3072, 60, options["rank"]
    assert blocks * rank * (4 * 2 * wide + 2 * (wide + 4 * wide)) == 106_168_320


def test_stacks_of_any_number_have_the_objective_alone():
    backbone = LayerStackDiT(
        input_size=8, patch_size=2, in_channels=4, hidden_size=24, depth=1, num_heads=1, position="rope"
    )
    net = module(backbone)
    for layers in (1, 3):
        terms, output = net.losses(batch(layers))
        assert set(terms) == {"objective"}
        assert output.x0.shape == (2, 4, 1 + layers, 8, 8)
    with pytest.raises(PolyditError, match="text encoder"):
        net.build_pipeline()


def test_an_autoencoder_of_other_latents_is_refused():
    other = LayerStackDiT(
        input_size=8, patch_size=2, in_channels=8, hidden_size=24, depth=1, num_heads=1, position="rope"
    )
    with pytest.raises(PolyditError, match="8"):
        module(other)
    with pytest.raises(PolyditError, match=r"model\.autoencoder"):
        LayerStackTraining(other)
