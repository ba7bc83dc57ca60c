"""A stream of its own for the condition: on Stable Diffusion 3, refused elsewhere."""

from __future__ import annotations

import pytest
import torch

from polydit.core.backbones.dit4sr_sd3 import DiT4SR
from polydit.core.backbones.pretrained import adapt_transformer, load_transformer
from polydit.core.conditioning import stream_on
from polydit.core.errors import PolyditError


@pytest.fixture
def scene(families):
    """SD3 with a fresh stream, inputs, a condition."""
    model = stream_on(adapt_transformer(families["sd3"].build()))
    x, t, text = families["sd3"].inputs()
    return model, x, t, text, torch.randn(x.shape, generator=torch.Generator().manual_seed(4))


def test_a_saved_checkpoint_answers_as_the_model_does(scene, tmp_path):
    model, x, t, text, condition = scene
    with torch.no_grad():
        for parameter in model.transformer.control_parameters().values():
            parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
        model.transformer.save_pretrained(tmp_path)
        adapter = load_transformer(str(tmp_path))
        assert isinstance(adapter.transformer, DiT4SR)
        direct = adapter.transformer(x, controlnet_image=condition, timestep=t, **text).sample
        assert torch.equal(adapter(x, t, condition=condition, **text).sample, direct)
        torch.testing.assert_close(model.eval()(x, t, condition=condition, **text).sample, direct)


def test_without_a_condition_it_is_the_base_and_shares_its_weights(scene, families):
    model, x, t, text, _ = scene
    base = adapt_transformer(families["sd3"].build())
    with torch.no_grad():
        assert torch.equal(model.eval()(x, t, **text).sample, base(x, t, **text).sample)
        shared = stream_on(base).transformer.proj_out.weight
    assert shared.data_ptr() == base.transformer.proj_out.weight.data_ptr()


def test_what_is_shown_does_not_matter_until_it_is_trained(scene):
    """The tokens' presence does: zero keys take a share of the softmax (tests of DiT4SR say how much)."""
    model, x, t, text, condition = scene
    first, second = {"condition": condition, **text}, {"condition": condition.flip(0), **text}
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {id(p) for p in trained} == {id(p) for p in model.transformer.control_parameters().values()}
    with torch.no_grad():
        assert torch.equal(model(x, t, **first).sample, model(x, t, **second).sample)
    optimizer = torch.optim.SGD(trained, lr=0.5)
    model(x, t, **first).sample.square().mean().backward()
    optimizer.step()
    with torch.no_grad():
        assert not torch.allclose(model(x, t, **first).sample, model(x, t, **second).sample, atol=1e-6)


@pytest.mark.parametrize("name", ["dit", "pixart", "flux", "sana", "ltx", "wan", "cogvideox", "qwen"])
def test_other_families_are_refused(families, name):
    with pytest.raises(PolyditError, match=f"{families[name].model}: only Stable Diffusion 3 has blocks"):
        stream_on(adapt_transformer(families[name].build()))
