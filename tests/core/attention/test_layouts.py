"""What is computed another way for speed gives what the plain way gives, on every memory layout."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from polydit.core.attention import projection, rotary
from polydit.core.attention.attention import RMSNorm
from polydit.core.attention.masks import grid_coordinates
from polydit.core.attention.rotary import apply_rotary, rotary_table
from polydit.core.backbones.dit import DiT, convolve_tokens
from polydit.core.backbones.embedding import PatchEmbed


def packed(batch, tokens, heads, dim, offset=0, dtype=torch.float32):
    """Queries as attention cuts them out of a packed projection: strided, and from an odd place if asked."""
    flat = torch.randn(offset + batch * tokens * 3 * heads * dim, generator=torch.Generator().manual_seed(0))
    qkv = flat.to(dtype)[offset:].view(batch, tokens, 3 * heads * dim)
    return qkv.chunk(3, dim=-1)[1].unflatten(-1, (heads, dim)).transpose(1, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("dim", "offset"), [(8, 0), (8, 1), (9, 0), (13, 1)])
def test_complex_rotation_is_the_real_one(monkeypatch, dtype, dim, offset):
    x = packed(2, 12, 3, dim, offset, dtype)
    cos, sin = rotary_table(grid_coordinates((3, 4)), (4, 4))
    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    results = []
    for allowed in (True, False):
        if not allowed:
            monkeypatch.setattr(rotary, "_as_complex", lambda x, cos: False)
        leaf = x.detach().requires_grad_()
        out = apply_rotary(leaf, cos, sin)
        (gradient,) = torch.autograd.grad((out * weight).sum(), leaf)
        results.append((out.detach(), gradient))
    (turned, gradient), (plain, plain_gradient) = results
    assert turned.dtype == dtype
    tolerance = 5e-7 if dtype == torch.float32 else 2e-2  # float32: one rounding more or less
    torch.testing.assert_close(turned, plain, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(gradient, plain_gradient, atol=tolerance, rtol=tolerance)


def test_rotation_is_exported_without_complex_numbers():
    class Turn(nn.Module):
        def forward(self, x, cos, sin):
            return apply_rotary(x, cos, sin)

    args = (packed(1, 4, 2, 8), *rotary_table(grid_coordinates((2, 2)), (4, 4)))
    exported = torch.export.export(Turn(), args)
    targets = {str(node.target) for node in exported.graph.nodes if node.op == "call_function"}
    assert targets
    assert not any("complex" in target for target in targets)
    torch.testing.assert_close(exported.module()(*args), apply_rotary(*args))


def test_norm_of_strided_heads():
    x, norm = packed(2, 12, 3, 8), RMSNorm(8, eps=1e-6)
    nn.init.uniform_(norm.weight)
    assert not x.is_contiguous()
    torch.testing.assert_close(norm(x), x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * norm.weight)


@pytest.mark.parametrize("grid", [(4, 3), (2, 4, 3)])
def test_a_batch_of_one_is_convolved_as_channels_last(grid):
    conv = {2: nn.Conv2d, 3: nn.Conv3d}[len(grid)](6, 6, 3, padding=1, groups=6)
    layout = {2: torch.channels_last, 3: torch.channels_last_3d}[len(grid)]
    seen = []
    conv.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    tokens = torch.randn(1, 2 * torch.Size(grid).numel(), 6).chunk(2, dim=1)[1]  # one of two streams
    out = convolve_tokens(conv, tokens, grid)
    # What torch takes for channels-last shows in what it allocates after it; strides of a size of one count here.
    assert torch.empty_like(seen[0]).stride() == torch.empty(1, 6, *grid, memory_format=layout).stride()
    expected = F.conv2d if len(grid) == 2 else F.conv3d
    picture = tokens.mT.reshape(1, 6, *grid).contiguous()
    expected = expected(picture, conv.weight, conv.bias, padding=1, groups=6).flatten(2).mT
    torch.testing.assert_close(out, expected)


def test_residual_stream_is_contiguous():
    assert PatchEmbed(3, 8, (2, 2))(torch.randn(2, 3, 4, 6)).is_contiguous()
    model = DiT(input_size=4, patch_size=2, hidden_size=16, depth=2, num_heads=2)
    layouts = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda module, args: layouts.append(args[0].is_contiguous()))
    model(torch.randn(2, 4, 4, 4), torch.rand(2))
    assert layouts == [True, True]


def test_processor_without_bfloat16_products_takes_the_plain_way(monkeypatch):
    layer = projection.Projection(8, 8).to(torch.bfloat16)
    x = torch.randn(2, 8, dtype=torch.bfloat16)
    expected = F.linear(x, layer.weight, layer.bias)

    class Operators:
        _is_mkldnn_bf16_supported = staticmethod(lambda: False)

    monkeypatch.setattr(torch.ops, "mkldnn", Operators)
    dtypes = projection._kernel_dtypes()
    assert dtypes == (torch.float32,)
    monkeypatch.setattr(projection, "_DTYPES", dtypes)
    monkeypatch.setattr(projection, "_KERNEL", lambda *args: pytest.fail("the kernel was called"))
    with torch.no_grad():
        assert torch.equal(layer(x), expected)
