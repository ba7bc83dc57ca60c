"""Conditions as further channels of every family: nothing at the start, something after a step."""

from __future__ import annotations

import pytest
import torch

from polydit.core.backbones.pretrained import adapt_transformer, load_transformer
from polydit.core.conditioning import widen_input


@pytest.fixture
def widened(checkpoint):
    """A checkpoint, its inputs, what it answers, and the same after widening by three channels."""
    adapter = adapt_transformer(checkpoint.build())
    x, t, condition = checkpoint.inputs()
    with torch.no_grad():
        plain = adapter(x, t, **condition).sample
    channels = adapter.in_channels
    assert widen_input(adapter, 3) is adapter
    assert adapter.in_channels == channels + 3
    assert adapter.latent_channels == plain.shape[1]
    return adapter, (x, t, condition), plain


def shown(adapter, inputs, seed):
    x, t, condition = inputs
    extra = torch.randn(x.shape[0], 3, *x.shape[2:], generator=torch.Generator().manual_seed(seed))
    return adapter(torch.cat([x, extra], dim=1), t, **condition).sample


def test_nothing_changes_until_it_is_trained(widened):
    adapter, inputs, plain = widened
    with torch.no_grad():
        torch.testing.assert_close(shown(adapter, inputs, 1), plain)
        assert torch.equal(shown(adapter, inputs, 1), shown(adapter, inputs, 2))  # whatever is shown
    optimizer = torch.optim.SGD(adapter.parameters(), lr=0.1)
    shown(adapter, inputs, 1).square().mean().backward()
    optimizer.step()
    with torch.no_grad():
        assert not torch.allclose(shown(adapter, inputs, 1), shown(adapter, inputs, 2), atol=1e-5)


def test_a_widened_model_is_saved_and_read_back(widened, tmp_path):
    adapter, inputs, _ = widened
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.01)
        adapter.transformer.save_pretrained(tmp_path)
        again = load_transformer(str(tmp_path))
        torch.testing.assert_close(shown(again, inputs, 1), shown(adapter, inputs, 1))


@pytest.mark.parametrize("name", ["flux", "ltx with patches", "qwen", "cogvideox-1.5"])
def test_columns_of_a_token_belong_to_the_channels_they_are_said_to(families, name):
    """A packed token holds its channels one after another: zeroing the last channel's columns hides that channel."""
    adapter = widen_input(adapt_transformer(families[name].build()), 2)
    inputs = families[name].inputs()
    x, t, condition = inputs
    layers = {"flux": "x_embedder", "ltx with patches": "proj_in", "qwen": "img_in"}
    layer = adapter.transformer.get_submodule(layers.get(name, "patch_embed.proj"))
    columns = adapter.columns_per_channel
    with torch.no_grad():
        layer.weight[:, -2 * columns : -columns] = torch.randn(
            layer.out_features, columns
        )  # the first new channel
        first, second = (torch.randn(2, 1, *x.shape[2:]) for _ in range(2))

        def answer(a, b):
            return adapter(torch.cat([x, a, b], dim=1), t, **condition).sample

        assert torch.equal(answer(first, second), answer(first, first))
        assert not torch.allclose(answer(first, second), answer(second, second), atol=1e-4)
