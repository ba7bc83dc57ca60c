"""LoRA on any module: identity at the start, files at equal strength, merging, growth."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import (
    DiTTransformer2DModel,
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    WanTransformer3DModel,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from polydit.core.adapters import (
    LoraOptions,
    adapter_names,
    adapter_weights,
    apply_lora,
    bake,
    continue_from,
    count_trainable,
    grow_rank,
    inject,
    load_lora,
    merge,
    save_lora,
    set_adapter_weights,
    unload,
    unmerge,
)
from polydit.core.adapters.lora import lora_layers
from polydit.core.adapters.targets import resolve_targets
from polydit.core.backbones import DiT
from polydit.core.errors import PolyditError


def make_dit(seed: int = 0, hidden_size: int = 24) -> DiT:
    """A small DiT whose output is not zero and whose every weight matters."""
    torch.manual_seed(seed)
    model = DiT(input_size=4, patch_size=2, in_channels=3, hidden_size=hidden_size, depth=2, num_heads=2)
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.2)
    return model.eval()


def run(model: nn.Module) -> torch.Tensor:
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        return model(x, torch.tensor([0.2, 0.7])).sample


def train_a_little(model: nn.Module, steps: int = 3) -> None:
    """Move every trainable weight by a visible amount."""
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.02)
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(6))
    for _ in range(steps):
        optimizer.zero_grad()
        model(x, torch.tensor([0.2, 0.7])).sample.square().mean().backward()
        optimizer.step()


def trained(options: LoraOptions) -> DiT:
    model = make_dit().requires_grad_(False)
    inject(model, options)
    train_a_little(model)
    return model


VARIANTS = {
    "plain": LoraOptions(rank=4, alpha=8.0),
    "linear": LoraOptions(rank=3, targets="linear"),
    "rslora": LoraOptions(rank=4, alpha=4.0, use_rslora=True),
    "dora": LoraOptions(rank=4, alpha=8.0, use_dora=True),
    "gaussian": LoraOptions(rank=4, init="gaussian"),
    "pissa": LoraOptions(rank=4, alpha=8.0, init="pissa"),
    "olora": LoraOptions(rank=4, alpha=2.0, init="olora"),
    "patterns": LoraOptions(
        rank=4, alpha=4.0, rank_pattern={"qkv": 2}, alpha_pattern={r".*1\.attn\.proj": 12.0}
    ),
}


@pytest.mark.parametrize("name", ["plain", "rslora", "gaussian"])
def test_fresh_adapter_changes_no_bit(name):
    model = make_dit()
    before = run(model)
    inject(model, VARIANTS[name])
    assert torch.equal(run(model), before)


# "linear" reaches the MLP, whose product and GELU are one kernel until an adapter stands between them.
@pytest.mark.parametrize("name", ["linear", "dora", "pissa", "olora"])
def test_fresh_adapter_is_a_no_op_up_to_rounding(name):
    model = make_dit()
    before = run(model)
    inject(model, VARIANTS[name])
    torch.testing.assert_close(run(model), before, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", list(VARIANTS))
def test_saved_file_gives_the_same_output_on_an_untouched_base(name, tmp_path):
    model = trained(VARIANTS[name])
    expected, base = run(model), run(make_dit())
    assert (expected - base).abs().max() > 1e-2, "the adapter must have learned something"
    path = save_lora(model, tmp_path / "lora.safetensors")

    attached = make_dit()
    report = load_lora(attached, path)
    torch.testing.assert_close(run(attached), expected, atol=2e-5, rtol=1e-4)
    assert not report.unexpected
    assert not report.missing
    total = len(load_file(path))
    assert str(report) == f"{total} of {total} keys matched, scale 1"

    fused = make_dit()
    apply_lora(fused, path)
    torch.testing.assert_close(run(fused), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["plain", "rslora", "patterns", "pissa"])
def test_diffusers_own_loader_gives_the_same_output(name, tmp_path):
    model = trained(VARIANTS[name])
    path = save_lora(model, tmp_path / "lora.safetensors")
    other = make_dit()
    other.load_lora_adapter(load_file(path), prefix="transformer")
    torch.testing.assert_close(run(other), run(model), atol=2e-5, rtol=1e-4)


def test_scale_is_baked_and_the_training_alpha_is_in_our_entry_only(tmp_path):
    model = trained(LoraOptions(rank=4, alpha=16.0, targets=["0.attn.qkv"]))
    layer = model.blocks[0].attn.qkv
    path = save_lora(model, tmp_path / "lora.safetensors", metadata={"task": "toy"})
    state = load_file(path)
    assert set(state) == {f"transformer.blocks.0.attn.qkv.lora_{x}.weight" for x in "AB"}
    torch.testing.assert_close(
        state["transformer.blocks.0.attn.qkv.lora_B.weight"], 4.0 * layer.lora_B["default"].weight.detach()
    )
    with safe_open(path, "pt") as file:
        header = file.metadata()
    entry = json.loads(header["polydit"])
    assert set(header) == {"format", "polydit"}
    assert entry["training_alpha"] == [16.0]
    assert entry["training_rank"] == [4]
    assert entry["task"] == "toy"
    assert entry["base"]["class"] == "DiT"
    assert entry["base"]["keys"] == len(make_dit().state_dict())


def test_pissa_file_has_twice_the_rank(tmp_path):
    path = save_lora(trained(LoraOptions(rank=3, init="pissa")), tmp_path / "lora.safetensors")
    assert {v.shape[0] for k, v in load_file(path).items() if "lora_A" in k} == {6}


def test_foreign_files_run_at_their_own_strength(tmp_path):
    """A file with ``.alpha`` tensors, or with diffusers' header, is not at scale 1."""
    model = trained(LoraOptions(rank=4, alpha=4.0, targets=["0.attn.qkv"]))
    plain = load_file(save_lora(model, tmp_path / "plain.safetensors"))
    tensors = {**plain, "transformer.blocks.0.attn.qkv.alpha": torch.tensor(8.0)}
    save_file(tensors, tmp_path / "tensor.safetensors")
    header = {"transformer.lora_alpha": 8, "transformer.r": 4, "transformer.alpha_pattern": {}}
    save_file(plain, tmp_path / "header.safetensors", {"lora_adapter_metadata": json.dumps(header)})
    double = make_dit()
    apply_lora(double, tmp_path / "plain.safetensors", scale=2.0)
    for name in ("tensor", "header"):
        other = make_dit()
        load_lora(other, tmp_path / f"{name}.safetensors")
        torch.testing.assert_close(run(other), run(double), atol=2e-5, rtol=1e-4)


def test_strength_zero_is_off_and_half_is_half_the_delta(tmp_path):
    path = save_lora(trained(VARIANTS["plain"]), tmp_path / "lora.safetensors")
    off, half, full = make_dit(), make_dit(), make_dit()
    assert load_lora(off, path, scale=0.0).scale == 0.0
    assert torch.equal(run(off), run(make_dit()))
    apply_lora(half, path, 0.5)
    apply_lora(full, path, 1.0)
    base = make_dit().blocks[0].attn.qkv.weight
    torch.testing.assert_close(
        half.blocks[0].attn.qkv.weight - base,
        0.5 * (full.blocks[0].attn.qkv.weight - base),
        atol=1e-6,
        rtol=0,
    )


def test_two_adapters_add_up(tmp_path):
    first = save_lora(trained(VARIANTS["plain"]), tmp_path / "first.safetensors")
    second = save_lora(trained(VARIANTS["linear"]), tmp_path / "second.safetensors")
    both = make_dit()
    load_lora(both, first, 0.7, adapter="first")
    load_lora(both, second, -0.3, adapter="second")
    assert adapter_names(both) == ["first", "second"]
    assert adapter_weights(both) == pytest.approx({"first": 0.7, "second": -0.3})
    summed = make_dit()
    apply_lora(summed, first, 0.7)
    apply_lora(summed, second, -0.3)
    torch.testing.assert_close(run(both), run(summed), atol=2e-5, rtol=1e-4)
    set_adapter_weights(both, {"second": 1.0})
    only = make_dit()
    apply_lora(only, second)
    torch.testing.assert_close(run(both), run(only), atol=2e-5, rtol=1e-4)
    with pytest.raises(PolyditError, match=r"'third'.*first, second"):
        set_adapter_weights(both, {"third": 1.0})


@pytest.mark.parametrize("name", ["plain", "linear", "dora"])
def test_merge_then_unmerge_gives_the_weights_back(name):
    model = trained(VARIANTS[name])
    before = {k: v.clone() for k, v in model.state_dict().items()}
    expected = run(model)
    merge(model)
    torch.testing.assert_close(run(model), expected, atol=2e-5, rtol=1e-4)
    assert not torch.equal(
        model.blocks[0].attn.qkv.base_layer.weight, before["blocks.0.attn.qkv.base_layer.weight"]
    )
    unmerge(model)
    for key, value in model.state_dict().items():
        assert (value - before[key]).abs().max() < 1e-6, key


def test_bake_leaves_a_plain_model_of_the_same_output():
    model = trained(VARIANTS["plain"])
    expected = run(model)
    bake(model)
    assert model.state_dict().keys() == make_dit().state_dict().keys()
    torch.testing.assert_close(run(model), expected, atol=2e-5, rtol=1e-4)
    inject(model, VARIANTS["plain"])  # and it can be adapted again


@pytest.mark.parametrize("name", ["plain", "pissa", "olora"])
def test_unload_gives_the_base_back(name):
    model = trained(VARIANTS[name])
    unload(model)
    for key, value in make_dit().state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], value, atol=1e-6, rtol=0)


def test_only_the_adapter_is_trainable_and_the_base_does_not_move():
    model = trained(VARIANTS["plain"])
    assert all(("lora_" in name) == p.requires_grad for name, p in model.named_parameters())
    base = make_dit().state_dict()
    for key, value in model.state_dict().items():
        if "lora_" not in key:
            assert torch.equal(value, base[key.replace(".base_layer", "")])


def test_injection_keeps_what_was_trainable():
    model = make_dit().requires_grad_(False)
    model.final_layer.linear.requires_grad_(True)
    inject(model, VARIANTS["plain"])
    assert model.final_layer.linear.weight.requires_grad
    assert not model.patch_embed.proj.weight.requires_grad


def test_factors_of_a_bfloat16_base_learn_in_float32():
    model = make_dit().bfloat16()
    inject(model, VARIANTS["plain"])
    assert {p.dtype for name, p in model.named_parameters() if "lora_" in name} == {torch.float32}


@pytest.mark.parametrize("name", ["plain", "rslora"])
def test_growing_the_rank_changes_nothing_and_the_new_columns_learn(tmp_path, name):
    model = trained(VARIANTS[name])
    expected = run(model)
    grow_rank(model, 7, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(run(model), expected, atol=1e-6, rtol=1e-6)
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(6))
    model(x, torch.tensor([0.2, 0.7])).sample.square().mean().backward()
    for _, layer in lora_layers(model):
        grad = layer.lora_B["default"].weight.grad
        assert (grad[:, 4:].abs().amax(0) > 0).all()
    with pytest.raises(PolyditError, match="rank 7"):
        grow_rank(model, 2)
    path = save_lora(model, tmp_path / "grown.safetensors")
    other = make_dit()
    load_lora(other, path)
    torch.testing.assert_close(run(other), run(model), atol=2e-5, rtol=1e-4)
    set_adapter_weights(model, {"default": 1.0})
    torch.testing.assert_close(run(model), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", ["pissa", "olora"])
def test_an_adapter_that_holds_a_part_of_its_base_is_not_weighed(name):
    model = trained(VARIANTS[name])
    expected = run(model)
    for weights in ({"default": 0.5}, {}):
        with pytest.raises(PolyditError, match="adapter 'default': a part of the base is in it"):
            set_adapter_weights(model, weights)
    torch.testing.assert_close(run(model), expected, atol=0, rtol=0)


def shapes(model: nn.Module, targets: str) -> int:
    """Trainable values per unit of rank."""
    total = 0
    for name in resolve_targets(model, targets):
        weight = model.get_submodule(name).weight
        total += weight.shape[0] + weight.shape[1]
    return total


# Parameters per rank as counted on the published shapes: attention only, all linear layers in the blocks.
PER_RANK = {
    "dit": (258_048, 910_336),
    "pixart": (516_096, 838_656),
    "sd3": (294_912, 1_818_624),
    "flux": (1_167_360, 5_369_856),
    "wan": (737_280, 1_367_040),
}


def published(name: str) -> nn.Module:
    with torch.device("meta"):
        if name == "dit":
            return DiTTransformer2DModel(num_layers=28, num_attention_heads=16, attention_head_dim=72)
        if name == "pixart":
            return PixArtTransformer2DModel(sample_size=64)
        if name == "sd3":
            return SD3Transformer2DModel(
                sample_size=128,
                num_layers=24,
                num_attention_heads=24,
                pos_embed_max_size=192,
                caption_projection_dim=1536,
            )
        if name == "flux":
            return FluxTransformer2DModel(guidance_embeds=True)
        return WanTransformer3DModel(
            num_layers=30, num_attention_heads=12, attention_head_dim=128, ffn_dim=8960
        )


@pytest.mark.parametrize("name", list(PER_RANK))
def test_trainable_counts_of_published_transformers(name):
    model = published(name)
    assert (shapes(model, "attention"), shapes(model, "linear")) == PER_RANK[name]


def test_count_of_an_injected_adapter():
    model = make_dit().requires_grad_(False)
    names = inject(model, LoraOptions(rank=4))
    assert names == ["blocks.0.attn.qkv", "blocks.0.attn.proj", "blocks.1.attn.qkv", "blocks.1.attn.proj"]
    assert count_trainable(model) == 4 * 2 * ((24 + 72) + (24 + 24))


def test_a_model_without_the_peft_mixin_works_too(tmp_path):
    def make() -> DiTTransformer2DModel:
        torch.manual_seed(0)
        return DiTTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=4,
            in_channels=3,
            out_channels=3,
            num_layers=1,
            sample_size=4,
            num_embeds_ada_norm=5,
            norm_num_groups=1,
        ).eval()

    def call(model: nn.Module) -> torch.Tensor:
        torch.manual_seed(1)
        with torch.no_grad():
            x = torch.randn(2, 3, 4, 4)
            return model(x, timestep=torch.tensor([3, 4]), class_labels=torch.tensor([0, 1])).sample

    model = make()
    inject(model, LoraOptions(rank=2, alpha=6.0))
    for _, layer in lora_layers(model):
        nn.init.normal_(layer.lora_B["default"].weight)
    path = save_lora(model, tmp_path / "lora.safetensors")
    assert "transformer.transformer_blocks.0.attn1.to_q.lora_A.weight" in load_file(path)
    other = make()
    load_lora(other, path)
    torch.testing.assert_close(call(other), call(model), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(call(other), call(make()))


# -- what a user can get wrong -------------------------------------------------------------------------------


def test_lora_of_another_model_lists_the_first_three_modules(tmp_path):
    path = save_lora(trained(VARIANTS["plain"]), tmp_path / "lora.safetensors")
    with torch.device("meta"):
        other = FluxTransformer2DModel(
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=1,
            axes_dims_rope=(2, 2, 4),
        )
    with pytest.raises(PolyditError) as caught:
        load_lora(other, path)
    assert str(caught.value) == (
        f"{path}: 4 of 4 modules are not in FluxTransformer2DModel (it was trained on DiT): blocks.0.attn.proj, "
        "blocks.0.attn.qkv, blocks.1.attn.proj; use the weights it was trained on"
    )


def test_lora_of_another_width_says_both_shapes(tmp_path):
    path = save_lora(trained(VARIANTS["plain"]), tmp_path / "lora.safetensors")
    with pytest.raises(
        PolyditError, match=r"blocks\.0\.attn\.proj is made for a weight of \[24, 24\].*\[32, 32\]"
    ):
        apply_lora(make_dit(hidden_size=32), path)


def test_another_configuration_of_the_same_shape_is_noted(tmp_path):
    path = save_lora(trained(VARIANTS["plain"]), tmp_path / "lora.safetensors")
    torch.manual_seed(0)
    other = DiT(input_size=8, patch_size=2, in_channels=3, hidden_size=24, depth=2, num_heads=2)
    assert "trained on another DiT configuration" in str(load_lora(other, path))


def test_unexpected_and_half_pairs_are_reported(tmp_path):
    state = load_file(save_lora(trained(VARIANTS["plain"]), tmp_path / "lora.safetensors"))
    state.pop("transformer.blocks.0.attn.qkv.lora_B.weight")
    state["transformer.something"] = torch.zeros(1)
    save_file(state, tmp_path / "half.safetensors")
    report = load_lora(make_dit(), tmp_path / "half.safetensors")
    assert report.missing == ["blocks.0.attn.qkv"]
    assert set(report.unexpected) == {"transformer.something", "transformer.blocks.0.attn.qkv.lora_A.weight"}
    assert str(report) == "6 of 8 keys matched, scale 1"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such LoRA file"),
        (b"", "cannot be read as safetensors"),
        (b"PK\x03\x04pickle", "is pickled, which could run code; refused"),
    ],
)
def test_broken_files(content, message, tmp_path):
    path = tmp_path / "lora.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PolyditError, match=message):
        load_lora(make_dit(), path)


def test_file_without_lora(tmp_path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "x.safetensors")
    with pytest.raises(PolyditError, match="holds no LoRA"):
        load_lora(make_dit(), tmp_path / "x.safetensors")


def test_existing_file_is_kept_and_nan_is_not_written(tmp_path):
    model = trained(VARIANTS["plain"])
    path = save_lora(model, tmp_path / "lora.safetensors")
    with pytest.raises(PolyditError, match="--overwrite"):
        save_lora(model, path)
    model.blocks[0].attn.qkv.lora_A["default"].weight.data[0, 0] = float("nan")
    with pytest.raises(PolyditError, match="NaN"):
        save_lora(model, path, overwrite=True)
    assert torch.isfinite(load_file(path)["transformer.blocks.0.attn.qkv.lora_A.weight"]).all()
    assert [p.name for p in tmp_path.iterdir()] == ["lora.safetensors"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"targets": ["attn.qvk"]},
            "model.adapter.targets: no module matches 'attn.qvk'; did you mean 'attn.qkv'?",
        ),
        ({"exclude": ["to_q"]}, "model.adapter.exclude: no module matches 'to_q'"),
        ({"rank_pattern": {"fc9": 2}}, "model.adapter.rank_pattern: no module matches 'fc9'"),
        ({"targets": "("}, "not a regular expression"),
    ],
)
def test_targets_that_match_nothing(options, message):
    with pytest.raises(PolyditError) as caught:
        inject(make_dit(), LoraOptions(**options))
    assert message in str(caught.value)


@pytest.mark.parametrize("options", [{"init": "pisa"}, {"rank": 0}, {"use_dora": True, "init": "pissa"}])
def test_options_are_checked(options):
    with pytest.raises(PolyditError, match=r"model\.adapter"):
        LoraOptions(**options)


def test_same_adapter_name_twice():
    model = make_dit()
    inject(model, VARIANTS["plain"])
    with pytest.raises(PolyditError, match="'default'"):
        inject(model, VARIANTS["plain"])


# -- going on from a file ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["plain", "rslora", "dora"])
def test_going_on_from_a_file_of_lower_rank_starts_where_it_ended(name, tmp_path):
    source = trained(VARIANTS[name])
    path = save_lora(source, tmp_path / "lora.safetensors")
    model = make_dit().requires_grad_(False)
    inject(model, LoraOptions(rank=6, alpha=24.0, use_dora=name == "dora"))
    continue_from(model, path)
    torch.testing.assert_close(run(model), run(source), atol=2e-5, rtol=1e-4)
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(6))
    model(x, torch.tensor([0.2, 0.7])).sample.square().mean().backward()
    for _, layer in lora_layers(model):
        assert (layer.lora_B["default"].weight.grad.abs().amax(0) > 0).all(), "every column learns"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 2}, "has rank 4; set --model.adapter.rank 4 or more"),
        ({"rank": 4, "targets": ["0.attn.qkv"]}, "adapts 3 modules that this run does not"),
        ({"rank": 4, "use_dora": True}, "use_dora must be false"),
    ],
)
def test_files_that_an_adapter_cannot_go_on_from(options, message, tmp_path):
    path = save_lora(trained(VARIANTS["plain"]), tmp_path / "lora.safetensors")
    model = make_dit()
    inject(model, LoraOptions(**options))
    with pytest.raises(PolyditError, match=message):
        continue_from(model, path)
