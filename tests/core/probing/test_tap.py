"""Taps on the native DiT and on diffusers' DiT and SD3: nothing moves, all can be read and replaced."""

import pytest
import torch
import torch.nn.functional as F
from diffusers import DiTTransformer2DModel, SD3Transformer2DModel

from polydit.core.backbones import DiT
from polydit.core.errors import PolyditError
from polydit.core.probing import find_sites, read_features, skip, tap

KINDS = ["native", "diffusers_dit", "sd3"]
DEPTH = 3


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def build(kind):
    """A tiny model with random gates, and the arguments of a call."""
    torch.manual_seed(0)
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([17, 650])
    if kind == "native":
        model = DiT(
            input_size=8, patch_size=2, in_channels=4, hidden_size=32, depth=DEPTH, num_heads=2, num_classes=5
        )
        kwargs = {"hidden_states": x, "timestep": t, "class_labels": torch.tensor([1, 4])}
    elif kind == "diffusers_dit":
        model = DiTTransformer2DModel(
            num_attention_heads=2, attention_head_dim=16, in_channels=4, num_layers=DEPTH, sample_size=8,
            num_embeds_ada_norm=5,
        )  # fmt: skip
        kwargs = {"hidden_states": x, "timestep": t, "class_labels": torch.tensor([1, 4])}
    else:
        model = SD3Transformer2DModel(
            sample_size=8, in_channels=4, num_layers=DEPTH, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=24, caption_projection_dim=32, pooled_projection_dim=16, out_channels=4,
            pos_embed_max_size=8, dual_attention_layers=(0, 1), qk_norm="rms_norm",
        )  # fmt: skip
        kwargs = {
            "hidden_states": x,
            "timestep": t,
            "encoder_hidden_states": torch.randn(2, 7, 24),
            "pooled_projections": torch.randn(2, 16),
        }
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval(), kwargs


def blocks_of(model):
    return model.blocks if hasattr(model, "blocks") else model.transformer_blocks


def hook_count(model):
    return sum(
        len(hooks)
        for module in model.modules()
        for hooks in (module._forward_hooks, module._forward_pre_hooks, module._forward_hooks_always_called)
    )


SITES = [
    "blocks.*",
    "blocks.*.input",
    "blocks.*.attn",
    "blocks.*.mlp",
    "blocks.1.attn.gated",
    "blocks.1.mlp.gated",
    *(f"blocks.1.attn.{part}" for part in ("q", "k", "v", "logits", "probs")),
]


@torch.no_grad()
def test_recording_moves_no_bit_and_leaves_no_hook(kind):
    model, kwargs = build(kind)
    plain, before = model(**kwargs).sample, hook_count(model)
    with tap(model, SITES) as record:
        assert hook_count(model) > before
        assert torch.equal(model(**kwargs).sample, plain)
    assert hook_count(model) == before
    assert set(record) == {site.name for site in find_sites(model, SITES)}
    assert len(record) == 4 * DEPTH + 7
    tokens = 23 if kind == "sd3" else 16
    assert (
        record["blocks.2"].shape
        == record["blocks.0.attn"].shape
        == record["blocks.0.mlp"].shape
        == (2, 16, 32)
    )
    assert record["blocks.1.attn.v"].shape == (2, 2, tokens, 16)
    assert record["blocks.1.attn.probs"].shape == (2, 2, tokens, tokens)
    assert torch.equal(record["blocks.0"], record["blocks.1.input"])


@torch.no_grad()
def test_contributions_add_up_to_the_residual_stream(kind):
    model, kwargs = build(kind)
    sites = ["blocks.0.input", f"blocks.{DEPTH - 1}", "blocks.*.attn.gated", "blocks.*.mlp.gated"]
    sites += ["blocks.0.attn2.gated", "blocks.1.attn2.gated"] if kind == "sd3" else []
    with tap(model, sites) as record:
        model(**kwargs)
    total = record["blocks.0.input"] + sum(value for name, value in record.items() if name.endswith("gated"))
    torch.testing.assert_close(total, record[f"blocks.{DEPTH - 1}"], atol=1e-5, rtol=1e-5)
    assert all(record[name].abs().max() > 1e-3 for name in record if name.endswith("gated"))


@torch.no_grad()
def test_probabilities_are_those_of_the_attention(kind):
    model, kwargs = build(kind)
    with tap(model, ["blocks.0.attn.probs", "blocks.0.attn.v", "blocks.0.attn.logits"]) as record:
        model(**kwargs)
    probs = record["blocks.0.attn.probs"]
    torch.testing.assert_close(probs.sum(-1), torch.ones_like(probs[..., 0]))
    assert torch.equal(record["blocks.0.attn.logits"].softmax(-1), probs)
    plain = model(**kwargs).sample
    with tap(model, replace={"blocks.0.attn.probs": probs}):
        torch.testing.assert_close(model(**kwargs).sample, plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "site",
    ["blocks.1", "blocks.1.input", "blocks.1.attn", "blocks.1.mlp"]
    + [f"blocks.1.attn.{part}" for part in ("q", "k", "v", "logits", "probs")],
)
@torch.no_grad()
def test_replacing_changes_the_output_and_is_undone(kind, site):
    model, kwargs = build(kind)
    plain = model(**kwargs).sample
    with tap(model, [site]) as record:
        model(**kwargs)
    value = record[site]
    with tap(model, [site], replace={site: lambda v: v.flip(-1)}) as record:
        changed = model(**kwargs).sample
    assert not torch.allclose(changed, plain, atol=1e-5)
    assert torch.equal(record[site], value.flip(-1))  # what flows on is what is recorded
    with tap(model, replace={site: value.flip(-1)}):
        torch.testing.assert_close(model(**kwargs).sample, changed)
    assert torch.equal(model(**kwargs).sample, plain)


@torch.no_grad()
def test_skip(kind):
    model, kwargs = build(kind)
    with tap(model, ["blocks.1", "blocks.1.input"], replace={"blocks.1": skip}) as record:
        model(**kwargs)
    assert torch.equal(record["blocks.1"], record["blocks.1.input"])
    branches = ["blocks.0.attn", "blocks.0.mlp"] + (["blocks.0.attn2"] if kind == "sd3" else [])
    with tap(model, ["blocks.0", "blocks.0.input"], replace=dict.fromkeys(branches, skip)) as record:
        model(**kwargs)
    torch.testing.assert_close(record["blocks.0"], record["blocks.0.input"])
    with tap(model, replace={"blocks.*": skip}):
        short = model(**kwargs).sample
    if kind == "sd3":  # has its own way to leave layers out
        torch.testing.assert_close(short, model(**kwargs, skip_layers=[0, 1, 2]).sample)


@torch.no_grad()
def test_reading_stops_at_the_last_site(kind):
    model, kwargs = build(kind)
    with tap(model, ["blocks.1", "blocks.0.attn"]) as record:
        model(**kwargs)
    ran = []
    for index, block in enumerate(blocks_of(model)):
        block.register_forward_pre_hook(lambda *_, index=index: ran.append(index))
    before = hook_count(model)
    features = read_features(model, ["blocks.1", "blocks.0.attn"], **kwargs)
    assert ran == [0, 1]
    assert hook_count(model) == before
    assert list(features) == ["blocks.1", "blocks.0.attn"]
    assert all(torch.equal(features[name], record[name]) for name in features)


def test_gradients_flow_through_what_is_recorded(kind):
    model, kwargs = build(kind)
    with tap(model, ["blocks.1", "blocks.1.attn.logits"]) as record:
        model(**kwargs)
    (record["blocks.1"].square().mean() + record["blocks.1.attn.logits"].square().mean()).backward()
    first, last = blocks_of(model)[0], blocks_of(model)[-1]
    assert any(p.grad is not None and p.grad.any() for p in first.parameters())
    assert all(p.grad is None for p in last.parameters())


@torch.no_grad()
def test_text_stream_of_joint_blocks():
    model, kwargs = build("sd3")
    sites = ["blocks.0.text", "blocks.1.input.text", "blocks.0.attn.text", "blocks.0.mlp.text"]
    gated = ["blocks.0.attn.gated.text", "blocks.0.mlp.gated.text"]
    with tap(model, [*sites, *gated, "blocks.0.input.text"]) as record:
        model(**kwargs)
    assert all(record[site].shape == (2, 7, 32) for site in sites)
    assert torch.equal(record["blocks.0.text"], record["blocks.1.input.text"])
    total = record["blocks.0.input.text"] + record[gated[0]] + record[gated[1]]
    torch.testing.assert_close(total, record["blocks.0.text"], atol=1e-5, rtol=1e-5)
    plain = model(**kwargs).sample
    with tap(model, replace={"blocks.0.text": torch.zeros(2, 7, 32)}):
        assert not torch.equal(model(**kwargs).sample, plain)


@torch.no_grad()
def test_calls_are_counted_only_on_request():
    model, kwargs = build("native")
    other = {**kwargs, "hidden_states": kwargs["hidden_states"] * 2}
    with tap(model, ["blocks.0"]) as last, tap(model, ["blocks.0"], keep_all=True) as every:
        model(**kwargs)
        model(**other)
    assert len(last.all("blocks.0")) == 1
    assert len(every.all("blocks.0")) == 2
    assert torch.equal(every.all("blocks.0")[1], last["blocks.0"])
    every.clear()
    assert len(every) == 0
    with pytest.raises(KeyError, match="nothing recorded yet"):
        every["blocks.0"]


@torch.no_grad()
def test_masks_causality_and_grouped_queries_enter_the_probabilities():
    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = Attend()

    class Attend(torch.nn.Module):
        def forward(self, q, k, v, **kwargs):
            return F.scaled_dot_product_attention(q, k, v, **kwargs)

    model = torch.nn.Module()
    model.blocks = torch.nn.ModuleList([Block()])
    attend = model.blocks[0].attn
    torch.manual_seed(0)
    q, k, v = torch.randn(1, 4, 5, 8), torch.randn(1, 2, 5, 8), torch.randn(1, 2, 5, 8)
    mask = torch.rand(5, 5) > 0.4
    mask[:, 0] = True
    for options in (
        {"enable_gqa": True},
        {"enable_gqa": True, "is_causal": True},
        {"enable_gqa": True, "attn_mask": mask, "scale": 0.2},
        {"enable_gqa": True, "attn_mask": torch.randn(5, 5)},
    ):
        plain = attend(q, k, v, **options)
        with tap(model, replace={"blocks.0.attn.probs": torch.clone}):  # takes the explicit product
            torch.testing.assert_close(attend(q, k, v, **options), plain)


@torch.no_grad()
def test_an_exception_leaves_no_hook(kind):
    model, kwargs = build(kind)
    before, plain = hook_count(model), model(**kwargs).sample

    def fail(value):
        raise RuntimeError("on purpose")

    with tap(model, SITES, replace={"blocks.1.attn.k": fail}):
        for _ in range(2):
            with pytest.raises(RuntimeError, match="on purpose"):
                model(**kwargs)
    assert hook_count(model) == before
    assert torch.equal(model(**kwargs).sample, plain)


@pytest.mark.parametrize(
    ("site", "message"),
    [
        ("blocks.3", "from 0 to 2"),
        ("blocks.one", "from 0 to 2"),
        ("layers.0", "no block list 'layers', only ['blocks']"),
        ("blocks.0.ssm", "has no 'ssm', only"),
        ("blocks.0.attn2", "has no 'attn2'"),
        ("blocks.0.attn.input", "belongs to a block"),
        ("blocks.0.probs", "to its attention"),
        ("blocks.0.attn.q.text", "holds all streams"),
    ],
)
def test_unknown_sites_say_what_there_is(site, message):
    model, _ = build("native")
    with pytest.raises(PolyditError) as error, tap(model, [site]):
        pass
    assert message in str(error.value)


def test_a_branch_without_a_gate_says_so():
    model, _ = build("sd3")
    with pytest.raises(PolyditError, match="no adaLN gate"), tap(model, ["blocks.0.norm2.gated"]):
        pass


@torch.no_grad()
def test_replacements_that_cannot_be(kind):
    model, kwargs = build(kind)
    with pytest.raises(ValueError, match="read only"), tap(model, replace={"blocks.0.attn.gated": skip}):
        pass
    with (
        tap(model, replace={"blocks.0": torch.zeros(2, 3, 32)}),
        pytest.raises(ValueError, match="has the shape"),
    ):
        model(**kwargs)
