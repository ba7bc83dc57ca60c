"""One sweep over every backbone: it learns everywhere, saves, adapts, and works with what diffusers offers."""

import warnings

import pytest
import torch
from diffusers import FirstBlockCacheConfig, PyramidAttentionBroadcastConfig
from diffusers.hooks import apply_group_offloading
from peft import LoraConfig
from torch._dynamo.testing import CompileCounter

from polydit.core.backbones import DiT
from polydit.core.backbones.d3d_dit import D3DDiT
from polydit.core.backbones.dit4sr_sd3 import DiT4SR
from polydit.core.backbones.dit_3d import DiT3D
from polydit.core.conditioning import SideBranch, StreamDiT, TokenGroupDiT
from polydit.core.conditioning.layer_group_dit import LayerGroupDiT
from polydit.core.conditioning.layer_stack import LayerStackDiT
from polydit.core.conditioning.reference_dit import ReferenceDiT

TINY = {"input_size": 8, "patch_size": 2, "in_channels": 4, "hidden_size": 32, "depth": 2, "num_heads": 2}
SD3 = {
    "sample_size": 8, "patch_size": 2, "in_channels": 4, "num_layers": 2, "attention_head_dim": 16,
    "num_attention_heads": 2, "joint_attention_dim": 24, "caption_projection_dim": 32, "pooled_projection_dim": 16,
    "out_channels": 4, "pos_embed_max_size": 8, "dual_attention_layers": (0,), "qk_norm": "rms_norm",
}  # fmt: skip


def data(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def dit_call(shape=(2, 4, 8, 8), **more):
    return {"hidden_states": data(*shape, seed=1), "timestep": torch.tensor([3.0, 700.0]), **more}


LABELS = {"class_labels": torch.tensor([1, 4])}
TEXT = {"encoder_hidden_states": data(2, 5, 12, seed=2), "encoder_attention_mask": torch.ones(2, 5).bool()}
POOLED = {"pooled_projections": data(2, 6, seed=3)}
CONDITION = {"condition": data(2, 3, 8, 8, seed=4)}

BACKBONES = {
    "dit": (DiT, {**TINY, "num_classes": 5, "learn_sigma": True}, dit_call(**LABELS)),
    "lightning": (
        DiT,
        {
            **TINY,
            "num_classes": 5,
            "mlp_ratio": 3.0,
            "norm": "rms",
            "mlp": "swiglu",
            "position": "sincos+rope",
            "qk_norm": "rms",
        },
        dit_call(**LABELS),
    ),
    "without_shift": (
        DiT,
        {**TINY, "modulation_shift": False, "mlp": "gelu", "qk_norm": "layer", "position": "none"},
        dit_call(),
    ),
    "text_single": (
        DiT,
        {
            **TINY,
            "context_dim": 12,
            "pooled_projection_dim": 6,
            "modulation": "adaln_single",
            "position": "rope",
        },
        dit_call(**TEXT, **POOLED),
    ),
    "windows": (
        DiT,
        {**TINY, "window_size": 3, "global_every": 2, "conv_kernel": 3, "conv_dense": True, "norm": "none"},
        dit_call(),
    ),
    "video": (
        DiT,
        {
            **TINY,
            "hidden_size": 48,
            "input_size": [4, 8, 8],
            "patch_size": [1, 2, 2],
            "conv_kernel": 3,
            "window_size": [2, 4, 4],
        },
        dit_call((2, 4, 4, 8, 8)),
    ),
    "stream": (
        StreamDiT,
        {
            **TINY,
            "condition_channels": 3,
            "qk_norm": "rms",
            "window_size": 2,
            "conv_kernel": 3,
            "position": "rope",
        },
        dit_call(**CONDITION),
    ),
    "stream_published_text": (
        StreamDiT,
        {**TINY, "condition_channels": 3, "published_keys": True, "qk_norm": "rms", "context_dim": 12},
        dit_call(**CONDITION, **TEXT),
    ),
    "token_groups": (
        TokenGroupDiT,
        {**TINY, "conditions": {"edges": "shared"}, "position": "sincos", "num_classes": 5},
        dit_call(**LABELS, conditions={"edges": data(2, 4, 8, 8, seed=5)}),
    ),
    "layer_groups": (
        LayerGroupDiT,
        {**TINY, "conditions": {"picture": 3}, "position": "rope"},
        dit_call((2, 8, 8, 8), conditions={"picture": data(2, 3, 8, 8, seed=6)}),
    ),
    "layer_stack": (
        LayerStackDiT,
        {**TINY, "roles": ["flat", "line"], "position": "rope"},
        dit_call((2, 4, 3, 8, 8), condition=data(2, 4, 8, 8, seed=6)),
    ),
    "references": (ReferenceDiT, {**TINY, "position": "rope"}, dit_call()),
    "points": (
        DiT3D,
        {**TINY, "hidden_size": 36, "patch_size": 4, "in_channels": 3, "num_classes": 5},
        dit_call((2, 3, 40), **LABELS),
    ),
    "planes": (
        D3DDiT,
        {
            **{k: v for k, v in TINY.items() if k != "input_size"},
            "resolution": 4,
            "semantic_channels": 12,
            "pixel_channels": 6,
        },
        dit_call(
            (2, 4, 4, 12),
            encoder_hidden_states=data(2, 5, 12, seed=2),
            pixel_hidden_states=data(2, 3, 6, seed=3),
        ),
    ),
    "dit4sr": (
        DiT4SR,
        {**SD3, "compat": "intended"},
        {
            "hidden_states": data(2, 4, 8, 8, seed=1),
            "controlnet_image": data(2, 4, 8, 8, seed=2),
            "encoder_hidden_states": data(2, 7, 24, seed=3),
            "pooled_projections": data(2, 16, seed=4),
            "timestep": torch.tensor([3.0, 700.0]),
        },
    ),
}
# Published weights hold parameters that their own forward does not use: what stays without gradient is listed.
UNUSED = {
    "references": ("reference_embed", "reference_offset"),  # no reference is given here
    "stream_published_text": ("control_k",),
    "dit4sr": (
        "attn2.add",
        "attn2.to_add",
        "norm_added",
        "add_q_proj",
        "add_k_proj",
        "add_v_proj",
        "to_add_out",
    ),
}
NATIVE = [name for name in BACKBONES if name != "dit4sr"]


def build(name, randomize=True):
    kind, options, _ = BACKBONES[name]
    torch.manual_seed(0)
    model = kind(**options)
    if randomize:  # zero-initialised gates would hide everything behind them
        for parameter in model.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def call_of(name, dtype=torch.float32):
    def cast(v):
        if isinstance(v, dict):
            return {k: cast(w) for k, w in v.items()}
        return v.to(dtype) if v.is_floating_point() else v

    return {k: v if k == "timestep" else cast(v) for k, v in BACKBONES[name][2].items()}


def run(model, name, dtype=torch.float32):
    with torch.no_grad():
        return model(**call_of(name, dtype)).sample


def blocks_of(model):
    return model.blocks if isinstance(model, DiT) else model.transformer_blocks


every = pytest.mark.parametrize("name", BACKBONES)
native = pytest.mark.parametrize("name", NATIVE)


def test_no_variant_of_the_native_model_is_left_out():
    def variants(kind):
        return {kind}.union(*(variants(sub) for sub in kind.__subclasses__()))

    # Which of the tasks' own variants are loaded depends on the tests before this one.
    ours = {kind for kind in variants(DiT) if kind.__module__.startswith("polydit.core.")}
    branches = {SideBranch}  # predict nothing by themselves
    assert ours - branches == {BACKBONES[name][0] for name in NATIVE}


@every
def test_forward_and_a_gradient_for_every_parameter(name):
    model = build(name)
    sample = model(**call_of(name)).sample
    assert sample.shape[0] == 2
    assert sample.isfinite().all()
    assert sample.std() > 1e-3
    sample.square().mean().backward()
    silent = [
        n
        for n, p in model.named_parameters()
        if p.requires_grad and (p.grad is None or p.grad.abs().max() == 0)
    ]
    known = UNUSED.get(name, ())
    assert [n for n in silent if not any(part in n for part in known)] == []
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@every
def test_two_samples_do_not_mix(name):
    def first(value):
        return {k: first(v) for k, v in value.items()} if isinstance(value, dict) else value[:1]

    model, call = build(name), call_of(name)
    with torch.no_grad():
        torch.testing.assert_close(
            model(**first(call)).sample, model(**call).sample[:1], atol=2e-5, rtol=1e-4
        )


@every
def test_gradient_checkpointing_changes_nothing_and_recomputes(name):
    def gradients(checkpointing):
        model = build(name)
        model.train()
        if checkpointing:
            model.enable_gradient_checkpointing()
            assert model.is_gradient_checkpointing
        runs = []
        for block in blocks_of(model):
            block.register_forward_pre_hook(lambda *_: runs.append(1))
        kept = []

        def pack(tensor):
            kept.append(tensor.nbytes)
            return tensor

        torch.manual_seed(7)  # label dropout
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = model(**call_of(name)).sample.square().mean()
            memory = sum(kept)
        loss.backward()
        return [p.grad for p in model.parameters() if p.grad is not None], len(runs), memory

    plain, once, much = gradients(False)
    checkpointed, twice, little = gradients(True)
    assert (once, twice) == (2, 4)
    assert little < 0.6 * much
    assert all(torch.equal(a, b) for a, b in zip(plain, checkpointed, strict=True))


@every
def test_save_and_load_change_nothing(name, tmp_path):
    model = build(name)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert type(loaded) is type(model)
    assert not loaded.training
    assert torch.equal(run(loaded, name), run(model, name))
    assert (tmp_path / "diffusion_pytorch_model.safetensors").is_file()


@every
def test_bfloat16_is_close_to_float32(name):
    model = build(name)
    exact = run(model, name)
    half = run(model.to(torch.bfloat16), name, torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert half.isfinite().all()
    assert (half.float() - exact).square().mean() < 0.03 * exact.square().mean()


@native
def test_autocast_trains(name):
    model = build(name).train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**call_of(name)).sample.float().square().mean()
    loss.backward()
    assert all(
        p.grad.dtype == torch.float32 and p.grad.isfinite().all()
        for p in model.parameters()
        if p.grad is not None
    )


@every
def test_lora_through_add_adapter(name):
    model = build(name)
    plain = run(model, name)
    targets = ["qkv", "fc1"] if isinstance(model, DiT) else ["to_q", "to_k"]
    model.add_adapter(LoraConfig(r=2, target_modules=targets))
    torch.testing.assert_close(run(model, name), plain, atol=2e-5, rtol=1e-5)  # fc1 leaves the fused kernel
    trainable = [n for n, p in model.named_parameters() if p.requires_grad]
    assert trainable
    assert all("lora_" in n for n in trainable)
    for n, p in model.named_parameters():
        if "lora_B" in n:
            torch.nn.init.normal_(p)
    assert not torch.allclose(run(model, name), plain, atol=1e-3)
    model.disable_adapters()
    torch.testing.assert_close(run(model, name), plain, atol=2e-5, rtol=1e-5)


# -- what diffusers offers --------------------------------------------------------------------------------------


def attention_calls(model):
    calls = []
    for block in blocks_of(model):
        original = block.attn.forward if isinstance(model, DiT) else block.attn.to_v_control.forward
        target = block.attn if isinstance(model, DiT) else block.attn.to_v_control

        def counted(*args, original=original, **kwargs):
            calls.append(1)
            return original(*args, **kwargs)

        target.forward = counted
    return calls


def three_passes(name, config, depth=4):
    kind, options, _ = BACKBONES[name]
    torch.manual_seed(0)
    model = kind(**{**options, "depth" if issubclass(kind, DiT) else "num_layers": depth}).eval()
    calls = attention_calls(model)
    if config is not None:
        model.enable_cache(config)
    with torch.no_grad(), model.cache_context("cond"):
        out = [model(**call_of(name)).sample for _ in range(3)]
    executed = len(calls)
    if config is not None:
        model.disable_cache()
        with torch.no_grad():
            model(**call_of(name))
        assert len(calls) == executed + depth  # nothing of the cache is left
    return executed, out


@every
def test_first_block_cache_skips_the_other_blocks(name):
    assert three_passes(name, None)[0] == 12
    executed, out = three_passes(name, FirstBlockCacheConfig(threshold=1e6))
    assert executed == 6
    torch.testing.assert_close(out[2], out[0], atol=1e-5, rtol=1e-5)


@every
def test_pyramid_attention_broadcast_skips_attention(name):
    config = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(0, 1000),
        current_timestep_callback=lambda: 500,
    )
    assert three_passes(name, config)[0] == 8


ATTRIBUTES = (
    "_no_split_modules",
    "_repeated_blocks",
    "_skip_layerwise_casting_patterns",
    "_cp_plan",
    "_tp_plan",
)


@native
def test_class_attributes_are_set_and_true(name):
    model = build(name, randomize=False)
    assert all(getattr(model, attribute) for attribute in ATTRIBUTES)
    assert model._supports_gradient_checkpointing
    assert (
        set(model._repeated_blocks)
        == set(model._no_split_modules)
        == {type(b).__name__ for b in model.blocks}
    )
    names = [n for n, _ in model.named_modules()]
    for pattern in model._skip_layerwise_casting_patterns:
        optional = {"pos_embed": True}.get(pattern, False)
        assert optional or any(pattern in n for n in names)
    for planned in model._cp_plan:
        assert planned == "rotary" or planned in names


@native
def test_tensor_parallel_plan_resolves(name):
    tensor_parallel = pytest.importorskip("diffusers.hooks.tensor_parallel")
    kind, options, _ = BACKBONES[name]
    with torch.device("meta"):
        model = kind(**options)
    specs = tensor_parallel.resolve_tp_shard_specs(model, model._tp_plan, tp_degree=2)
    shapes = {n: p.shape for n, p in model.named_parameters()}
    assert set(specs) <= set(shapes)
    for i in range(2):
        assert specs[f"blocks.{i}.attn.qkv.weight"].block_sizes == [options["hidden_size"]] * 3
        assert specs[f"blocks.{i}.attn.proj.weight"].dim == 1
        hidden = specs[f"blocks.{i}.mlp.fc1.weight"].block_sizes
        assert sum(hidden) == shapes[f"blocks.{i}.mlp.fc1.weight"][0]
        assert len(hidden) == (2 if options.get("mlp") == "swiglu" else 1)


@every
def test_layerwise_casting_stores_small_and_computes_wide(name):
    model = build(name)
    exact = run(model, name)
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    stored = {
        p.dtype for n, p in model.named_parameters() if "blocks" in n and "norm" not in n and "table" not in n
    }
    assert torch.float8_e4m3fn in stored
    out = run(model, name)
    assert out.isfinite().all()
    assert not torch.equal(out, exact)
    assert (out - exact).square().mean() < 0.2 * exact.square().mean()


@every
def test_group_offloading_changes_nothing(name):
    model = build(name)
    exact = run(model, name)
    apply_group_offloading(
        model,
        onload_device=torch.device("cpu"),
        offload_device=torch.device("cpu"),
        offload_type="leaf_level",
    )
    torch.testing.assert_close(run(model, name), exact, atol=1e-5, rtol=1e-5)


COMPILED = ["dit", "lightning", "windows", "stream"]


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILED)
def test_compiled_blocks_give_the_same(name):
    model = build(name)
    exact = run(model, name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.compile_repeated_blocks(fullgraph=True)
        torch.testing.assert_close(run(model, name), exact, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", COMPILED)
def test_blocks_are_one_graph(name):
    """What the compiler needs, without its code generation: no break in a block, one graph for all that are alike."""
    model = build(name)
    exact = run(model, name)
    torch._dynamo.reset()
    counter = CompileCounter()
    model.compile_repeated_blocks(fullgraph=True, backend=counter)
    torch.testing.assert_close(run(model, name), exact, atol=1e-5, rtol=1e-5)
    kinds = {(type(block), block.window_size) for block in model.blocks}
    assert counter.frame_count == len(kinds)
    torch._dynamo.reset()
