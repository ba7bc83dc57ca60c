"""DiT4SR on SD3: reference vectors of both variants, parameter identities, and what the LR stream must do."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import FirstBlockCacheConfig, PyramidAttentionBroadcastConfig, SD3Transformer2DModel
from safetensors.torch import load_file

from polydit.core.backbones.dit4sr_block import DiT4SRBlock, LRInjectionFeedForward
from polydit.core.backbones.dit4sr_sd3 import DiT4SR, dit4sr_from_official, dit4sr_to_official
from polydit.core.errors import PolyditError

GOLDEN = Path(__file__).parents[2] / "data" / "golden" / "dit4sr"
META = json.loads((GOLDEN / "meta.json").read_text())
TOLERANCE = {"atol": META["recommended_atol"], "rtol": META["recommended_rtol"]}


@pytest.fixture(scope="module")
def weights():
    return load_file(GOLDEN / "weights.safetensors")


@pytest.fixture(scope="module")
def call():
    x = load_file(GOLDEN / "inputs.safetensors")
    return {
        "hidden_states": x["x"],
        "controlnet_image": x["lr"],
        "encoder_hidden_states": x["text"],
        "pooled_projections": x["pooled"],
        "timestep": x["timestep"],
    }


def base_model(seed=0, **changes):
    torch.manual_seed(seed)
    return SD3Transformer2DModel(**{**META["config"], **changes}).eval()


@pytest.mark.parametrize("compat", ["published", "intended"])
@torch.no_grad()
def test_reference_vectors(weights, call, compat):
    expected = load_file(GOLDEN / "outputs.safetensors")
    model = dit4sr_from_official(weights, **META["config"], compat=compat)
    assert not model.training

    seen = {}
    block = model.transformer_blocks[0]
    block.register_forward_hook(
        lambda m, i, out: seen.update({"text_tokens": out[0], "image_and_lr_tokens": out[1]})
    )
    block.attn.register_forward_hook(
        lambda m, i, out: seen.update({"attn.image_and_lr": out[0], "attn.text": out[1]})
    )
    block.ff.register_forward_hook(lambda m, i, out: seen.update({"ff": out}))
    sample = model(**call).sample

    torch.testing.assert_close(sample, expected[f"{compat}.sample"], **TOLERANCE)
    assert len(seen) == 5
    for name, value in seen.items():
        torch.testing.assert_close(value, expected[f"{compat}.block0.{name}"], **TOLERANCE)


def test_released_behaviour_is_the_default_of_official_weights(weights, call):
    model = dit4sr_from_official(weights, **META["config"])
    assert (model.config.compat, model.config.control_conv_factor) == ("published", 1.2)
    with torch.no_grad():
        positional = model(
            call["hidden_states"],
            call["controlnet_image"],
            call["encoder_hidden_states"],
            call["pooled_projections"],
            call["timestep"],
            return_dict=False,
        )[0]
    torch.testing.assert_close(
        positional, load_file(GOLDEN / "outputs.safetensors")["published.sample"], **TOLERANCE
    )


def test_official_round_trip_is_bit_exact(weights):
    back = dit4sr_to_official(dit4sr_from_official(weights, **META["config"]))
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name].half(), weights[name]) for name in weights)


def test_official_weights_are_copied(weights):
    state = {name: tensor.float() for name, tensor in weights.items()}
    model = dit4sr_from_official(state, **META["config"])
    with torch.no_grad():
        model.proj_out.weight.add_(1)
    assert torch.equal(state["proj_out.weight"], weights["proj_out.weight"].float())


def test_wrong_checkpoint_is_named(weights):
    with pytest.raises(PolyditError, match=r"tensors are missing.*proj_out\.bias"):
        dit4sr_from_official({k: v for k, v in weights.items() if k != "proj_out.bias"}, **META["config"])
    with pytest.raises(PolyditError, match="another shape"):
        dit4sr_from_official(weights, **{**META["config"], "joint_attention_dim": 41})
    with pytest.raises(PolyditError, match="'depth' is unknown"):
        dit4sr_from_official(weights, **META["config"], depth=3)
    with pytest.raises(PolyditError, match="compat: 'fixed'"):
        dit4sr_from_official(weights, **META["config"], compat="fixed")


@pytest.mark.parametrize("compat", ["published", "intended"])
def test_save_and_load(tmp_path, weights, call, compat):
    model = dit4sr_from_official(weights, **META["config"], compat=compat, control_conv_factor=0.7)
    model.save_pretrained(tmp_path)
    again = DiT4SR.from_pretrained(tmp_path)
    assert (again.config.compat, again.config.control_conv_factor) == (compat, 0.7)
    with torch.no_grad():
        assert torch.equal(again(**call).sample, model(**call).sample)


def test_a_released_folder_loads(tmp_path, weights, call):
    model = dit4sr_from_official(weights, **META["config"])
    model.save_pretrained(tmp_path)
    config = {**META["config"], "_class_name": "SD3Transformer2DModel", "_diffusers_version": "0.30.3"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with torch.no_grad():
        assert torch.equal(DiT4SR.from_pretrained(tmp_path)(**call).sample, model(**call).sample)


def test_a_plain_sd3_folder_is_refused_with_the_way_out(tmp_path):
    base_model().save_pretrained(tmp_path)
    with pytest.raises(PolyditError, match="from_sd3"):
        DiT4SR.from_pretrained(tmp_path)


def test_published_parameter_counts():
    config = {
        "sample_size": 128,
        "patch_size": 2,
        "in_channels": 16,
        "num_layers": 24,
        "attention_head_dim": 64,
        "num_attention_heads": 24,
        "joint_attention_dim": 4096,
        "caption_projection_dim": 1536,
        "pooled_projection_dim": 2048,
        "out_channels": 16,
        "pos_embed_max_size": 384,
        "dual_attention_layers": tuple(range(13)),
        "qk_norm": "rms_norm",
    }
    with torch.device("meta"):
        base = SD3Transformer2DModel(**config)
        model = DiT4SR(**config)
    assert sum(p.numel() for p in base.parameters()) == 2_243_171_520
    assert sum(p.numel() for p in model.freeze_base().values()) == 350_877_696
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 350_877_696
    assert sum(p.numel() for p in model.parameters()) == 2_716_814_144


def test_start_from_sd3(tmp_path, call):
    base = base_model()
    base.save_pretrained(tmp_path / "pipeline" / "transformer")
    (tmp_path / "pipeline" / "model_index.json").write_text("{}")
    model = DiT4SR.from_sd3(tmp_path / "pipeline")

    assert (model.config.compat, model.config.control_conv_factor) == ("intended", 1.0)
    state = model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in base.state_dict().items())
    assert not any(parameter.is_meta for parameter in model.parameters())
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == ("control" in name)
        if "to_out_control" in name:
            frozen = name.replace("to_out_control", "to_out.0")
            assert torch.equal(parameter, state[frozen])
            assert parameter.any()
        elif "control" in name:
            assert not parameter.any()
    assert model(**call).sample.isfinite().all()

    model.save_pretrained(tmp_path / "trained")
    with torch.no_grad():
        assert torch.equal(DiT4SR.from_pretrained(tmp_path / "trained")(**call).sample, model(**call).sample)
    half = DiT4SR.from_sd3(tmp_path / "pipeline" / "transformer", torch_dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    with pytest.raises(PolyditError, match="nowhere: no SD3 transformer"):
        DiT4SR.from_sd3(tmp_path / "nowhere")


@pytest.mark.parametrize("compat", ["published", "intended"])
@torch.no_grad()
def test_without_the_lr_latents_it_is_sd3_bit_for_bit(call, compat):
    base = base_model()
    model = DiT4SR.from_sd3(base, compat=compat).eval()
    plain = {name: value for name, value in call.items() if name != "controlnet_image"}
    assert torch.equal(model(**plain).sample, base(**plain).sample)
    assert not torch.equal(model(**call).sample, base(**plain).sample)


@torch.no_grad()
def test_share_of_the_softmax_that_a_fresh_lr_stream_takes():
    """K zero logits with zero values scale the attention of every query by Z / (Z + K)."""
    block = DiT4SR.from_sd3(base_model()).transformer_blocks[0]
    attn, n = block.attn2, 12
    tokens = torch.randn(2, n, 48)

    def before_projection(lr):
        caught = []
        hook = attn.to_out[0].register_forward_pre_hook(lambda m, args: caught.append(args[0]))
        attn(torch.cat([tokens, torch.randn(2, n, 48)], dim=1), lr_tokens=n) if lr else attn(tokens)
        hook.remove()
        return caught[0].unflatten(-1, (attn.heads, -1))  # (B, N, heads, head_dim)

    q, k = (f(p(tokens).unflatten(-1, (3, 16)).transpose(1, 2)) for f, p in
            ((attn.norm_q, attn.to_q), (attn.norm_k, attn.to_k)))  # fmt: skip
    z = (q @ k.mT / 4).exp().sum(-1).transpose(1, 2)[..., None]  # (B, N, heads, 1)
    torch.testing.assert_close(before_projection(lr=True), before_projection(lr=False) * z / (z + n))

    # The published keys repeat the image keys (with unit norm weights norm(norm(k)) = norm(k)): one half.
    attn.processor.compat = "published"
    half = before_projection(lr=False) / 2
    torch.testing.assert_close(before_projection(lr=True), half, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_without_norms_the_released_code_has_no_fault():
    """There the image's keys stand in for the LR stream's where keys are normalised, and nowhere else."""
    torch.manual_seed(0)
    for norm, same in ((None, True), ("rms_norm", False)):
        block = DiT4SRBlock(8, 2, 4, qk_norm=norm)
        for parameter in block.attn.parameters():
            parameter.normal_()
        tokens, text = torch.randn(1, 8, 8), torch.randn(1, 3, 8)
        outs = []
        for compat in ("published", "intended"):
            block.attn.processor.compat = compat
            outs.append(block.attn(tokens, text, lr_tokens=4)[0])
        assert torch.equal(*outs) == same


def test_the_second_attention_of_a_last_block_has_no_text_output():
    names = DiT4SRBlock(8, 2, 4, context_pre_only=True, use_dual_attention=True).state_dict()
    assert "attn2.add_k_proj.weight" in names
    assert "attn2.to_add_out.weight" not in names
    assert "attn2.to_add_out.weight" in DiT4SRBlock(8, 2, 4, use_dual_attention=True).state_dict()


@pytest.mark.parametrize("compat", ["published", "intended"])
def test_which_modules_learn_first(call, compat):
    model = DiT4SR.from_sd3(base_model(), compat=compat)
    optimizer = torch.optim.AdamW(model.control_parameters().values(), lr=1e-3)
    sizes = []
    for _ in range(2):
        optimizer.zero_grad()
        model(**call).sample.square().mean().backward()
        attn = model.transformer_blocks[1].attn
        sizes.append(
            {
                name: 0.0 if module.weight.grad is None else module.weight.grad.norm().item()
                for name, module in {
                    "q": attn.to_q_control,
                    "k": attn.to_k_control,
                    "v": attn.to_v_control,
                    "out": attn.to_out_control,
                    "conv": model.transformer_blocks[1].ff.control_conv,
                }.items()
            }
        )
        optimizer.step()
    first, second = sizes
    assert first["v"] > 0
    assert first["conv"] > 0
    assert first["q"] == 0  # what the LR tokens hold cannot reach the image tokens yet
    assert first["out"] == 0
    assert all(second[name] > 0 for name in ("q", "v", "out", "conv"))
    if compat == "published":
        assert first["k"] == second["k"] == 0
    else:
        # RMSNorm of the zero vector has the slope eps ** -0.5 = 1e3: train in float32 and clip.
        assert first["k"] > 10 * first["v"]
        assert second["k"] > 0
    assert all(p.grad is None for name, p in model.named_parameters() if "control" not in name)


@torch.no_grad()
def test_shifting_lr_by_a_token_shifts_the_injection_by_a_token():
    """Holds row by row on a grid that is not square; a wrong reshape order fails it."""
    torch.manual_seed(0)
    ff, (h, w) = LRInjectionFeedForward(8, control_conv_factor=1.2), (5, 7)
    torch.nn.init.zeros_(ff.control_conv.bias)
    image = torch.randn(1, h * w, 8)
    lr = torch.randn(1, h, w, 8)

    def injection(lr):
        both = ff(torch.cat([image, lr.flatten(1, 2)], dim=1), grid=(h, w))
        plain = ff(torch.cat([image, lr.flatten(1, 2)], dim=1))
        assert torch.equal(both[:, h * w :], plain[:, h * w :])
        return (both - plain)[:, : h * w].unflatten(1, (h, w))

    still = injection(lr)
    for axis, inner in ((1, (slice(2, -1), slice(1, -1))), (2, (slice(1, -1), slice(2, -1)))):
        moved, expected = injection(lr.roll(1, dims=axis)), still.roll(1, dims=axis)
        torch.testing.assert_close(moved[:, *inner], expected[:, *inner], atol=1e-6, rtol=1e-5)
        assert not torch.allclose(moved[:, *inner], still[:, *inner], atol=1e-3)


def test_any_size_and_a_clear_refusal_of_unequal_ones(weights, call):
    model = dit4sr_from_official(weights, **META["config"], compat="intended")
    rest = {name: call[name] for name in ("encoder_hidden_states", "pooled_projections", "timestep")}
    wide = torch.randn(2, 4, 4, 12)
    with torch.no_grad():
        assert model(wide, torch.randn(2, 4, 4, 12), **rest).sample.shape == wide.shape
        # Without blocks the stream has no way in: what embeds and unfolds the patches must agree with SD3's.
        rest["skip_layers"] = [0, 1, 2]
        assert torch.equal(model(wide, torch.randn(2, 4, 4, 12), **rest).sample, model(wide, **rest).sample)
        del rest["skip_layers"]
    with pytest.raises(ValueError, match="enlarged picture"):
        model(wide, torch.randn(2, 4, 4, 4), **rest)
    with pytest.raises(PolyditError, match="cannot fuse"):
        model.fuse_qkv_projections()


def test_gradient_checkpointing_changes_nothing(call):
    def gradients(checkpointing):
        model = DiT4SR.from_sd3(base_model())
        calls = []
        model.transformer_blocks[0].ff.register_forward_hook(lambda *_: calls.append(1))
        if checkpointing:
            model.enable_gradient_checkpointing()
        model(**call).sample.square().mean().backward()
        return [p.grad for p in model.control_parameters().values()], len(calls)

    (plain, once), (checkpointed, twice) = gradients(False), gradients(True)
    assert (once, twice) == (1, 2)
    assert all(torch.equal(a, b) for a, b in zip(plain, checkpointed, strict=True))


@pytest.mark.parametrize("with_lr", [True, False])
@torch.no_grad()
def test_diffusers_first_block_cache_skips_blocks(weights, call, with_lr):
    model = dit4sr_from_official(weights, **META["config"])
    call = call if with_lr else {name: value for name, value in call.items() if name != "controlnet_image"}
    calls = []
    for block in model.transformer_blocks:
        block.ff.register_forward_hook(lambda *_: calls.append(1))
    plain = model(**call).sample
    calls.clear()
    model.enable_cache(FirstBlockCacheConfig(threshold=1e6))
    with model.cache_context("cond"):
        first = model(**call).sample
        assert len(calls) == 3
        second = model(**call).sample
    assert len(calls) == 4
    assert torch.equal(first, plain)
    torch.testing.assert_close(second, plain)


@torch.no_grad()
def test_diffusers_pyramid_attention_broadcast_skips_attention(weights, call):
    model = dit4sr_from_official(weights, **META["config"])
    calls = []
    for block in model.transformer_blocks:
        block.attn.to_v_control.register_forward_hook(lambda *_: calls.append(1))
    config = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(0, 1000),
        current_timestep_callback=lambda: 500,
    )
    model.enable_cache(config)
    with model.cache_context("cond"):
        for _ in range(4):
            model(**call)
    assert len(calls) == 6


@torch.no_grad()
def test_lora_and_skipped_layers(weights, call):
    from peft import LoraConfig

    model = dit4sr_from_official(weights, **META["config"])
    plain = model(**call).sample
    assert not torch.equal(model(**call, skip_layers=[1]).sample, plain)
    model.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k"], init_lora_weights=False))
    full = model(**call).sample
    half = model(**call, joint_attention_kwargs={"scale": 0.5}).sample
    assert not torch.equal(full, plain)
    assert not torch.equal(half, full)
    torch.testing.assert_close(model(**call, joint_attention_kwargs={"scale": 0.0}).sample, plain)
