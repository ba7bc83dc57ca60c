"""LoRA on the tokens of one group: exact no-op at the start, selective, trainable where promised, filed."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from polydit.core.adapters import (
    LoraOptions,
    adapter_names,
    apply_lora,
    bake,
    count_trainable,
    inject,
    inject_group,
    load_group_lora,
    load_lora,
    merge,
    save_lora,
    set_adapter_weights,
    unload,
)
from polydit.core.adapters.group import GroupLinear
from polydit.core.backbones import DiT
from polydit.core.conditioning import TokenGroup, forward_groups, only_itself
from polydit.core.errors import PolyditError

D, DEPTH = 24, 2
PERSON = LoraOptions(rank=4, alpha=8.0)
GARMENT = LoraOptions(rank=3, targets=["attn.qkv", "mlp.fc1", "modulation"], use_rslora=True, alpha=2.0)


def make_dit(**options) -> DiT:
    torch.manual_seed(0)
    model = DiT(
        **{
            "input_size": 8,
            "patch_size": 2,
            "in_channels": 3,
            "hidden_size": D,
            "depth": DEPTH,
            "num_heads": 2,
            "position": "rope",
            **options,
        }
    )
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.2)
    return model.eval()


def both(**options) -> DiT:
    model = make_dit(**options).requires_grad_(False)
    inject_group(model, PERSON, "person")
    inject_group(model, GARMENT, "garment")
    return model


def shake(model: nn.Module, adapter: str = "") -> nn.Module:
    """Give the adapters deltas that are not zero."""
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if f"lora_B.{adapter}" in name:
            with torch.no_grad():
                parameter.normal_(generator=generator)
    return model


def run(model, looks=None, outputs=("target",), person="person", garment="garment"):
    x, p, g = (torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(s)) for s in range(3))
    groups = [
        TokenGroup("target", x, timestep=torch.tensor([0.2, 0.7])),
        TokenGroup("person", p, adapter=person),
        TokenGroup("garment", g, adapter=garment),
    ]
    return forward_groups(model, groups, looks, outputs)


@pytest.mark.parametrize("modulation", ["adaln_zero", "adaln_single"])
def test_fresh_adapters_change_no_bit(modulation):
    model = make_dit(modulation=modulation)
    before = run(model)["target"]
    inject_group(model, PERSON, "person")
    target = "shared_modulation" if modulation == "adaln_single" else "modulation"
    inject_group(model, LoraOptions(rank=3, targets=["attn.qkv", target]), "garment")
    assert torch.equal(run(model)["target"], before)
    assert (run(shake(model))["target"] - before).abs().max() > 1e-2


def test_trainable_count_is_rank_times_in_plus_out():
    model = both()
    inner = 4 * D
    person = 4 * DEPTH * ((D + 3 * D) + (D + D))
    blocks = DEPTH * ((D + 3 * D) + (D + inner) + (D + 6 * D))
    garment = 3 * (blocks + (D + 2 * D))  # the last modulation is the head's
    assert count_trainable(model) == person + garment
    assert adapter_names(model) == ["person", "garment"]


def test_an_adapter_acts_on_its_own_group_only():
    model, base = shake(both()), run(make_dit(), outputs=("target", "person", "garment"), looks=ALONE)
    out = run(model, looks=ALONE, outputs=("target", "person", "garment"))
    assert torch.equal(out["target"], base["target"]), "nobody looks at the adapted tokens"
    assert (out["person"] - base["person"]).abs().max() > 1e-2
    assert (out["garment"] - base["garment"]).abs().max() > 1e-2
    only = run(model, looks=ALONE, outputs=("person", "garment"), garment=None)
    assert torch.equal(only["person"], out["person"])
    torch.testing.assert_close(only["garment"], base["garment"], atol=1e-6, rtol=1e-5)
    assert torch.equal(run(model, person=None, garment=None)["target"], run(make_dit())["target"])


ALONE = only_itself("target", "person", "garment")


@pytest.mark.parametrize("name", ["person", "garment"])
def test_on_one_group_it_is_an_ordinary_lora(name):
    """A sequence of one group under its adapter equals the model with that LoRA merged into its weights."""
    model = shake(both())
    x, t = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0.2, 0.7])
    out = forward_groups(model, [TokenGroup("target", x, timestep=t, adapter=name)])["target"]
    merged = make_dit()
    for path, layer in list(model.named_modules()):
        if isinstance(layer, GroupLinear) and name in layer.lora_A:
            delta = layer.lora_B[name].weight @ layer.lora_A[name].weight
            merged.get_submodule(path).weight.data += layer.scaling[name] * delta
    torch.testing.assert_close(out, merged(x, t).sample, atol=1e-4, rtol=1e-4)


def test_without_a_layout_the_model_is_the_base():
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([0.2, 0.7])
    assert torch.equal(shake(both())(x, t).sample, make_dit()(x, t).sample)


def test_gradients_only_where_promised():
    model = shake(both())
    run(model, looks=only_itself("person", "garment"))["target"].square().mean().backward()
    for name, parameter in model.named_parameters():
        promised = "lora_" in name and not name.startswith("final_layer")
        got = parameter.grad is not None and bool(parameter.grad.abs().max() > 0)
        if name.startswith(("blocks.1.attn.proj", "blocks.1.mlp", "blocks.1.modulation")) and "lora_" in name:
            continue  # behind the last attention nothing of a condition reaches the target
        if "blocks.0.attn.qkv.lora_" in name or not promised:
            assert got == promised, name
    assert model.blocks[1].attn.proj.lora_B["person"].weight.grad.abs().max() == 0
    model.zero_grad()
    run(model, person=None)["target"].square().mean().backward()
    assert model.blocks[0].attn.qkv.lora_A["person"].weight.grad is None


def test_gradient_checkpointing_sees_the_layout_in_the_backward_pass():
    grads = []
    for checkpointing in (False, True):
        model = shake(both())
        if checkpointing:
            model.enable_gradient_checkpointing()
        model.train()
        run(model, looks=only_itself("person", "garment"))["target"].square().mean().backward()
        grads.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(grads[0]) == len(grads[1]) > 8
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_strength_and_switching_off():
    model, base = shake(both()), run(make_dit())["target"]
    set_adapter_weights(model, {"person": 0.0, "garment": 0.0})
    assert torch.equal(run(model)["target"], base)
    set_adapter_weights(model, {"person": 1.0})
    torch.testing.assert_close(run(model)["target"], run(shake(both()), garment=None)["target"])
    layer = model.blocks[0].attn.qkv
    x = torch.randn(1, 4, D)
    set_adapter_weights(model, {"person": 0.5})
    half = layer.delta("person", x)
    set_adapter_weights(model, {"person": 1.0})
    torch.testing.assert_close(layer.delta("person", x), 2 * half)


def test_saved_file_gives_the_same_output(tmp_path):
    model = shake(both())
    expected = run(model)["target"]
    other = make_dit()
    for name in ("person", "garment"):
        path = save_lora(model, tmp_path / f"{name}.safetensors", name)
        report = load_group_lora(other, path, name)
        assert not report.unexpected
        assert not report.note
    torch.testing.assert_close(run(other)["target"], expected, atol=1e-5, rtol=1e-4)
    keys = load_file(tmp_path / "person.safetensors")
    assert "transformer.blocks.0.attn.qkv.lora_A.weight" in keys
    assert len(keys) == 2 * 2 * DEPTH
    with safe_open(tmp_path / "person.safetensors", "pt") as file:
        assert json.loads(file.metadata()["polydit"])["tokens"] == "group"
    assert not any(p.requires_grad for n, p in other.named_parameters() if "lora_" in n)
    half = make_dit()
    load_group_lora(half, tmp_path / "person.safetensors", "person", scale=0.5)
    layer = half.blocks[0].attn.qkv
    torch.testing.assert_close(layer.scaling["person"], 0.5)


def test_a_plain_lora_file_can_act_on_one_group(tmp_path):
    plain = make_dit().requires_grad_(False)
    inject(plain, LoraOptions(rank=2))
    shake(plain)
    path = save_lora(plain, tmp_path / "plain.safetensors")
    model = make_dit()
    load_group_lora(model, path, "target")
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([0.2, 0.7])
    out = forward_groups(model, [TokenGroup("target", x, timestep=t, adapter="target")])["target"]
    torch.testing.assert_close(out, plain(x, t).sample, atol=1e-5, rtol=1e-4)


def test_the_file_of_a_group_is_refused_where_it_would_change_all_tokens(tmp_path):
    path = save_lora(shake(both()), tmp_path / "person.safetensors", "person")
    for door in (apply_lora, load_lora):
        with pytest.raises(
            PolyditError, match=r"person\.safetensors: was trained for one group.*load_group_lora"
        ):
            door(make_dit(), path)


def test_merging_is_refused_and_unloading_gives_the_base_back():
    model = shake(both())
    for way in (merge, bake):
        with pytest.raises(PolyditError, match=r"'person.*cannot be merged"):
            way(model)
    unload(model)
    base = make_dit().state_dict()
    assert model.state_dict().keys() == base.keys()
    assert all(torch.equal(value, base[key]) for key, value in model.state_dict().items())


def test_factors_of_a_bfloat16_base_learn_in_float32():
    model = make_dit().bfloat16()
    inject_group(model, PERSON, "person")
    assert {p.dtype for n, p in model.named_parameters() if "lora_" in n} == {torch.float32}
    x = torch.randn(2, 3, 8, 8).bfloat16()
    out = forward_groups(shake(model), [TokenGroup("target", x, timestep=0.5, adapter="person")])["target"]
    assert out.dtype == torch.bfloat16


def test_dropout_acts_in_training_only():
    model = make_dit()
    inject_group(model, LoraOptions(rank=4, dropout=0.5), "person")
    shake(model)
    assert torch.equal(run(model)["target"], run(model)["target"])
    model.train()
    assert not torch.equal(run(model)["target"], run(model)["target"])


def test_training_moves_only_the_adapter_and_lowers_the_loss():
    model = both()
    base = {k: v.clone() for k, v in model.state_dict().items() if "lora_" not in k}
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.02)
    losses = []
    for _ in range(15):
        loss = run(model, looks=only_itself("person", "garment"))["target"].square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert all(torch.equal(model.state_dict()[k], v) for k, v in base.items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (LoraOptions(use_dora=True), "DoRA changes the weights"),
        (LoraOptions(init="pissa"), "pissa changes the weights"),
        (LoraOptions(targets=["cross_attn.kv"]), r"cross_attn\.kv is shared"),
        (LoraOptions(targets=["patch_embed.proj"]), r"patch_embed\.proj is shared"),
        (LoraOptions(targets=["mlp.conv"]), "is no linear layer"),
        (LoraOptions(targets=["attn.qvk"]), "did you mean 'attn.qkv'"),
    ],
)
def test_targets_that_cannot_be(options, message):
    model = make_dit(context_dim=5, conv_kernel=3)
    with pytest.raises(PolyditError, match=message):
        inject_group(model, options, "person")
    assert not any(isinstance(m, GroupLinear) for m in model.modules()), "refused before anything is changed"


def test_names_and_other_adapters():
    model = both()
    with pytest.raises(PolyditError, match="'person'"):
        inject_group(model, PERSON, "person")
    plain = make_dit()
    inject(plain, PERSON)
    with pytest.raises(PolyditError, match="bake that one first"):
        inject_group(plain, PERSON, "person")


def test_all_linear_layers_leave_out_what_groups_share():
    model = make_dit(context_dim=5)
    names = inject_group(model, LoraOptions(rank=2, targets="linear"), "person")
    assert "blocks.0.cross_attn.q" in names
    assert "blocks.0.cross_attn.kv" not in names
