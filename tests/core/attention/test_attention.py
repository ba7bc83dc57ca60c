"""Dense attention, its choice of kernel, the modules around it, and the fused projections."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from polydit.core.attention import Attention, CrossAttention, Projection, attend, project_gelu
from polydit.core.attention.dense import PLAIN_KEYS


def heads(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator).to(dtype) for _ in range(3)]


def reference(query, key, value, mask=None):
    scores = query.double() @ key.double().mT / query.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(-1) @ value.double()


MASKS = {
    "none": None,
    "dense": torch.rand(7, 7, generator=torch.Generator().manual_seed(3)) > 0.4,
    "per_sample": torch.rand(2, 1, 1, 7, generator=torch.Generator().manual_seed(4)) > 0.4,
}
for mask in MASKS.values():
    if mask is not None:
        mask[..., 0] = True  # everybody may look at something


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 3e-2)])
def test_attend_is_softmax_attention(mask, dtype, tolerance):
    query, key, value = heads(2, 3, 7, 8, dtype=dtype)
    out = attend(query, key, value, MASKS[mask])
    assert out.dtype == dtype
    expected = reference(query, key, value, MASKS[mask])
    assert (out.double() - expected).abs().max() < tolerance


def test_both_bfloat16_routes_agree_with_gradients(monkeypatch):
    calls = []
    fused = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or fused(*a, **k))

    def both(keys):
        grads = []
        for dtype in (torch.bfloat16, torch.float32):
            q, k, v = (t.to(dtype).requires_grad_() for t in heads(1, 2, keys, 4, dtype=torch.bfloat16))
            attend(q, k, v, torch.ones(keys, keys).bool().tril()).sum().backward()
            grads.append([t.grad.float() for t in (q, k, v)])
        for half, exact in zip(*grads, strict=True):
            assert (half - exact).norm() < 0.03 * exact.norm()
        return len(calls)

    assert both(33) == 1  # float32 only
    assert both(PLAIN_KEYS + 1) == 3


def test_bfloat16_inside_a_function_mode_stays_one_visible_call():
    seen = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    q, k, v = heads(1, 2, 5, 4, dtype=torch.bfloat16)
    with Watch():
        attend(q, k, v)
    assert F.scaled_dot_product_attention in seen


# -- modules ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [None, "rms", "layer"])
@torch.no_grad()
def test_self_attention_is_its_formula(kind):
    torch.manual_seed(0)
    attention = Attention(24, 3, kind)
    x = torch.randn(2, 5, 24)
    q, k, v = (
        F.linear(x, attention.qkv.weight, attention.qkv.bias).reshape(2, 5, 3, 3, 8).permute(2, 0, 3, 1, 4)
    )
    if kind == "rms":
        q, k = (t / (t.square().mean(-1, keepdim=True) + 1e-6).sqrt() for t in (q, k))
    if kind == "layer":
        q, k = (F.layer_norm(t, (8,)) for t in (q, k))
    mixed = reference(q, k, v).float().transpose(1, 2).reshape(2, 5, 24)
    torch.testing.assert_close(attention(x), F.linear(mixed, attention.proj.weight, attention.proj.bias))


@torch.no_grad()
def test_key_value_hook_sees_and_extends():
    torch.manual_seed(0)
    attention, x, more = Attention(24, 3), torch.randn(2, 5, 24), torch.randn(2, 4, 24)
    kept = []
    attention(more, key_value_hook=lambda k, v: kept.append((k, v)) or (k, v))

    def extend(key, value):
        return torch.cat([key, kept[0][0]], dim=2), torch.cat([value, kept[0][1]], dim=2)

    joint = attention(torch.cat([x, more], dim=1))[:, :5]
    torch.testing.assert_close(attention(x, key_value_hook=extend), joint)


@torch.no_grad()
def test_cross_attention_looks_at_real_tokens_only():
    torch.manual_seed(0)
    attention = CrossAttention(24, 3)
    x, text = torch.randn(2, 5, 24), torch.randn(2, 6, 24)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
    out = attention(x, text, mask)
    torch.testing.assert_close(out[1:], attention(x[1:], text[1:, :3]))
    torch.testing.assert_close(out[:1], attention(x[:1], text[:1]))


@torch.no_grad()
def test_diffusers_may_choose_the_kernel():
    torch.manual_seed(0)
    attention, x = Attention(24, 3), torch.randn(2, 5, 24)
    plain = attention(x)
    attention.set_attention_backend("_native_math")
    assert not attention.processor.is_default
    torch.testing.assert_close(attention(x), plain)


def test_window_without_grid_is_named():
    with pytest.raises(ValueError, match="needs the grid"):
        Attention(24, 3)(torch.randn(1, 4, 24), window=(2, 2))


# -- projections ------------------------------------------------------------------------------------------------


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return Projection(24, 40)


X = torch.randn(3, 5, 24, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_projection_is_linear_with_and_without_gradients(layer, dtype):
    layer, x = layer.to(dtype), X.to(dtype)
    expected = F.linear(x, layer.weight, layer.bias)
    assert torch.equal(layer(x), expected)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-2
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected.detach(), atol=tolerance, rtol=tolerance)
        torch.testing.assert_close(
            layer(x[:, ::2]), expected[:, ::2].detach(), atol=tolerance, rtol=tolerance
        )


@pytest.mark.parametrize("approximate", ["tanh", "none"])
def test_gelu_is_fused_only_where_nobody_watches(layer, approximate):
    expected = F.gelu(F.linear(X, layer.weight, layer.bias), approximate=approximate)
    torch.testing.assert_close(project_gelu(layer, X, approximate), expected, atol=0, rtol=0)
    with torch.no_grad():
        torch.testing.assert_close(project_gelu(layer, X, approximate), expected, atol=2e-6, rtol=1e-5)
        seen = []
        handle = layer.register_forward_hook(lambda module, args, out: seen.append(out) or 2 * out)
        doubled = project_gelu(layer, X, approximate)
        assert torch.equal(doubled, F.gelu(2 * seen[0], approximate=approximate))
        handle.remove()
        layer.forward = lambda x: torch.zeros(3, 5, 40)  # as diffusers' hooks replace it
        assert project_gelu(layer, X, approximate).abs().max() == 0


@torch.no_grad()
def test_projection_under_everything_that_rewrites_a_model(layer):
    expected = F.linear(X, layer.weight, layer.bias)
    assert layer.to(torch.float32)(X).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(X).dtype == torch.bfloat16
        assert project_gelu(layer, X, "tanh").dtype == torch.bfloat16
    out, tangent = torch.func.jvp(layer, (X,), (torch.ones_like(X),))
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(tangent, F.linear(torch.ones_like(X), layer.weight))
    torch.testing.assert_close(torch.func.vmap(layer)(X), expected)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(X, torch.ones_like(X))
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(layer(dual)).tangent, tangent)
    with FlopCounterMode(display=False) as flops:
        layer(X)
    assert flops.get_total_flops() == 2 * 15 * 24 * 40
    exported = torch.export.export(layer, (X,))
    assert [n.target for n in exported.graph.nodes if n.op == "call_function"] == [
        torch.ops.aten.linear.default
    ]
    with torch.inference_mode():
        torch.testing.assert_close(layer(X), expected)
    assert Projection(4, 4, device="meta")(torch.empty(2, 4, device="meta")).shape == (2, 4)
