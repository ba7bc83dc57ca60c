"""The condition stream of DiT4SR on the native backbone: what its initialisation really does, and where things land."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from polydit.core.attention.masks import window_mask
from polydit.core.conditioning import StreamDiT
from polydit.core.conditioning.stream import StreamAttention

T = torch.tensor([0.2, 0.7])
CONTROL = ("control_q", "control_k", "control_v", "control_proj", "control_conv")


def stream(make_dit, published_keys=False, stream_init="zero", qk_norm="rms", **options):
    """A pretrained-looking base with a freshly initialised stream."""
    model = make_dit(
        kind=StreamDiT, published_keys=published_keys, stream_init=stream_init, qk_norm=qk_norm, **options
    )
    for block in model.blocks:
        gates = block.modulation.weight.clone(), block.modulation.bias.clone()
        with torch.no_grad():
            model.initialize_block(block)
            block.modulation.weight.copy_(gates[0])
            block.modulation.bias.copy_(gates[1])
            for norm in (block.attn.q_norm, block.attn.k_norm):
                if hasattr(norm, "weight"):
                    norm.weight.fill_(1.0)
    return model


def attention(published_keys, qk_norm="rms"):
    torch.manual_seed(0)
    layer = StreamAttention(16, 2, qk_norm, published_keys)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    for part in (layer.control_q, layer.control_k, layer.control_v):
        nn.init.zeros_(part.weight)
        nn.init.zeros_(part.bias)
    if qk_norm == "rms":
        nn.init.ones_(layer.q_norm.weight)
        nn.init.ones_(layer.k_norm.weight)
    return layer.double()


def plain_attention(layer, x):
    """What the noisy stream would get without a condition, before the output projection, and Z per query."""
    query, key, value = (layer.heads(part) for part in layer.qkv(x).chunk(3, dim=-1))
    query, key = layer.q_norm(query), layer.k_norm(key)
    scores = (query @ key.transpose(-1, -2)) * layer.head_dim**-0.5
    return scores.softmax(-1) @ value, scores.exp().sum(-1, keepdim=True)


def test_zero_keys_take_softmax_mass(noise):
    """Intended keys: the noisy stream's attention is the base's times Z / (Z + K)."""
    layer, x = attention(False), noise(2, 12, 16).double()
    seen, z = plain_attention(layer, x[:, :6])
    query, key, value = layer.project(x)
    noisy = layer.attend(query, key, value)[:, :6]
    expected = (seen * z / (z + 6)).transpose(1, 2).flatten(2)
    torch.testing.assert_close(noisy, expected, atol=1e-12, rtol=0)


def test_published_keys_halve_the_base_exactly(noise):
    """Published keys are the noisy keys normalised again, so with unit gains half of the mass goes to zero values."""
    layer, x = attention(True), noise(2, 12, 16).double()
    layer.k_norm.eps = layer.q_norm.eps = 0.0  # a second norm is then the identity
    seen, _ = plain_attention(layer, x[:, :6])
    query, key, value = layer.project(x)
    noisy = layer.attend(query, key, value)[:, :6]
    torch.testing.assert_close(noisy, 0.5 * seen.transpose(1, 2).flatten(2), atol=1e-12, rtol=0)
    assert torch.equal(key[:, :, 6:], layer.k_norm(key[:, :, :6]))


@pytest.mark.parametrize("published_keys", [False, True])
def test_the_condition_s_output_gets_its_input_added(published_keys, noise):
    layer, x = attention(published_keys), noise(2, 12, 16).double()
    noisy, condition = layer.attend(*layer.project(x)).chunk(2, dim=1)
    expected = torch.cat([layer.proj(noisy), layer.control_proj(condition + x[:, 6:])], dim=1)
    torch.testing.assert_close(layer(x), expected, atol=1e-12, rtol=0)


def test_a_fresh_stream_is_not_ignored_but_its_content_is(make_dit, noise):
    """Zero keys and values make the output independent of the condition, though not equal to the base's."""
    x, a, b = (noise(2, 3, 8, 8, seed=s) for s in range(3))
    model, base = stream(make_dit), make_dit(qk_norm="rms")
    missing = base.load_state_dict(model.state_dict(), strict=False).missing_keys
    assert missing == []
    out = model(x, T, condition=a).sample
    assert torch.equal(model(x, T, condition=b).sample, out)
    assert (out - base(x, T).sample).abs().max() > 1e-3


def test_identity_start_reads_the_condition(make_dit, noise):
    x, a, b = (noise(2, 3, 8, 8, seed=s) for s in range(3))
    model = stream(make_dit, stream_init="identity")
    assert (model(x, T, condition=a).sample - model(x, T, condition=b).sample).abs().max() > 1e-3


def test_hidden_keys_give_the_base_back(make_dit, noise):
    """With the condition's keys masked the noisy stream is the base model: everything else is shared or zero."""
    x, c = noise(2, 3, 8, 8), noise(2, 3, 8, 8, seed=1)
    model, base = stream(make_dit, position="rope"), make_dit(qk_norm="rms", position="rope")
    base.load_state_dict(model.state_dict(), strict=False)
    mask = torch.ones(32, 32, dtype=torch.bool)
    mask[:16, 16:] = False
    hidden = torch.cat([model.embed_tokens(x), model.embed_tokens(c)], 1)
    vector = model.embed_condition(T)
    rope = model.rotary(model.position_ids((4, 4)))
    hidden = model.run_blocks(hidden, vector, rope=rope, attention_mask=mask, grids=((4, 4),))
    out = model.head(hidden[:, :16], vector, (4, 4))
    torch.testing.assert_close(out, base(x, T).sample, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("grid", [(4, 6), (3, 4, 6)])
def test_injection_moves_with_the_condition(grid, make_dit, noise):
    """One token to the right in the condition is one token to the right in what it injects, on any grid shape."""
    options = {"input_size": [2 * g for g in grid], "patch_size": 2}
    model = stream(make_dit, depth=1, **options)
    block = model.blocks[0]
    nn.init.normal_(block.control_conv.weight)
    nn.init.zeros_(block.attn.control_proj.weight)  # what remains of the condition's path is pointwise
    gate = block.modulation.bias.view(6, -1)
    with torch.no_grad():
        block.modulation.weight.zero_()
        gate.zero_()
        gate[5] = 1.0
    tokens = noise(1, *grid, 24, seed=1)
    tokens[..., 0, :] = tokens[..., -2:, :] = 0.0
    noisy = noise(1, *grid, 24).flatten(1, -2)

    def injected(condition, **changes):
        with torch.no_grad():
            x = torch.cat([noisy, condition.flatten(1, -2)], dim=1)
            out = block(x, torch.zeros(1, 24), grids=(grid,), **changes)
            zero = block(torch.cat([noisy, torch.zeros_like(noisy)], 1), torch.zeros(1, 24), grids=(grid,))
            return (out - zero).chunk(2, dim=1)[0].reshape(1, *grid, 24)

    here, there = injected(tokens), injected(tokens.roll(1, dims=-2))
    assert here.abs().max() > 1e-2
    torch.testing.assert_close(there, here.roll(1, dims=-2), atol=1e-5, rtol=1e-4)
    block.injection_factor = 1.2
    torch.testing.assert_close(injected(tokens), 1.2 * here, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("published_keys", [False, True])
def test_gradient_signature(published_keys, make_dit, noise):
    """Which of the five new parts learn at the first step; later all do, but for the published keys."""
    # The last block's condition output has no reader; its predecessors tell.
    model = stream(make_dit, published_keys, stream_init="zero").requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("control" in name)
    x, c = noise(2, 3, 8, 8), noise(2, 3, 8, 8, seed=1)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-2)

    def gradients():
        optimizer.zero_grad()
        model(x, T, condition=c).sample.square().mean().backward()
        nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        found = {}
        for part in CONTROL:
            found[part] = sum(
                p.grad.abs().sum().item()
                for n, p in model.named_parameters()
                if f".{part}." in n and p.grad is not None and not n.startswith("blocks.2")
            )
        return found

    first = gradients()
    assert first["control_v"] > 0
    assert first["control_conv"] > 0
    assert first["control_q"] == 0
    assert first["control_proj"] == 0, "the condition's content cannot reach the output yet"
    assert (first["control_k"] > 0) != published_keys
    optimizer.step()
    optimizer.step()
    later = gradients()
    for part in CONTROL:
        assert (later[part] > 0) != (published_keys and part == "control_k"), part


def test_the_norm_is_steep_at_a_zero_key(noise):
    """Its slope there is eps^-1/2, a thousand by default: why the keys' map wants float32 and clipped gradients."""
    x, gradients = noise(2, 12, 16).double(), []
    for eps in (1e-6, 1e-4):
        layer = attention(False)
        layer.k_norm.eps = eps
        layer(x).chunk(2, dim=1)[0].square().sum().backward()
        gradients.append(layer.control_k.weight.grad)
    torch.testing.assert_close(gradients[0], 10 * gradients[1], rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("published_keys", [False, True])
def test_save_and_load(published_keys, make_dit, noise, tmp_path):
    model = make_dit(
        kind=StreamDiT,
        published_keys=published_keys,
        injection_factor=1.2,
        condition_channels=2,
        position="rope",
        window_size=2,
    )
    model.save_pretrained(tmp_path)
    other = StreamDiT.from_pretrained(tmp_path)
    x, c = noise(2, 3, 8, 12), noise(2, 2, 8, 12, seed=1)
    assert torch.equal(other(x, T, condition=c).sample, model(x, T, condition=c).sample)
    assert other.config.injection_factor == 1.2
    assert other.blocks[0].attn.published_keys is published_keys


def test_gradient_checkpointing_changes_nothing(make_dit, noise):
    x, c = noise(2, 3, 8, 8), noise(2, 3, 8, 8, seed=1)
    grads = []
    for checkpointing in (False, True):
        model = make_dit(kind=StreamDiT, position="rope").train()
        if checkpointing:
            model.enable_gradient_checkpointing()
        model(x, T, condition=c).sample.square().mean().backward()
        grads.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    assert all(torch.equal(g, grads[1][n]) for n, g in grads[0].items())


@pytest.mark.parametrize("published_keys", [False, True])
@pytest.mark.parametrize("size", [(8, 8), (8, 12), (10, 14)])
def test_windows_equal_the_dense_mask(published_keys, size, make_dit, noise):
    """A window holds the tokens of both streams at its place; sizes that do not divide are padded and masked."""
    options = {"position": "sincos+rope", "published_keys": published_keys, "kind": StreamDiT}
    windowed, dense = make_dit(window_size=2, **options), make_dit(**options)
    x, c = noise(2, 3, *size), noise(2, 3, *size, seed=1)
    grid = dense.grid_of(x)
    mask = window_mask(grid, (2, 2)).repeat(2, 2)
    hidden = torch.cat([dense.embed_tokens(x), dense.embed_tokens(c)], 1)
    vector = dense.embed_condition(T)
    rope = dense.rotary(dense.position_ids(grid))
    hidden = dense.run_blocks(hidden, vector, rope=rope, attention_mask=mask, grids=(grid,))
    expected = dense.head(hidden.chunk(2, dim=1)[0], vector, grid)
    torch.testing.assert_close(windowed(x, T, condition=c).sample, expected, atol=1e-5, rtol=1e-4)


def test_a_condition_of_another_size_is_refused(make_dit, noise):
    model = make_dit(kind=StreamDiT)
    with pytest.raises(ValueError, match=r"\[8, 8\]"):
        model(noise(2, 3, 8, 8), T, condition=noise(2, 3, 4, 4))
    with pytest.raises(ValueError, match=r"\[8, 8\]"):
        model(noise(2, 3, 8, 8), T)
    with pytest.raises(ValueError, match="stream_init"):
        make_dit(kind=StreamDiT, stream_init="one")
