"""Token groups as a model: it trains, saves, loads, and learns what the mechanism is for."""

from __future__ import annotations

import pytest
import torch

from polydit.core.adapters import LoraOptions, inject_group
from polydit.core.backbones import DiT
from polydit.core.conditioning import KeyValueCache, TokenGroupDiT
from polydit.core.diffusion.objective import Objective
from polydit.core.diffusion.paths import LinearPath
from polydit.core.diffusion.samplers import sample

T = torch.tensor([0.2, 0.7])
CONDITIONS = {"person": "shared", "garment": "beside", "depth": "interpolated"}


def pictures(noise):
    return {
        "person": noise(2, 3, 8, 8, seed=1),
        "garment": noise(2, 3, 8, 8, seed=2),
        "depth": noise(2, 3, 4, 4, seed=3),
    }


@pytest.mark.parametrize("position", ["sincos", "rope"])
def test_without_conditions_it_is_the_plain_model(position, make_dit, noise):
    model, base = (
        make_dit(kind=TokenGroupDiT, conditions=CONDITIONS, position=position),
        make_dit(position=position),
    )
    base.load_state_dict(model.state_dict(), strict=False)
    x = noise(2, 3, 8, 8)
    assert torch.equal(model(x, T).sample, base(x, T).sample)
    assert (model(x, T, conditions=pictures(noise)).sample - base(x, T).sample).abs().max() > 1e-3


@pytest.mark.parametrize("attention", ["independent", "separate", "full"])
def test_save_and_load(attention, make_dit, noise, tmp_path):
    model = make_dit(kind=TokenGroupDiT, conditions=CONDITIONS, attention=attention, position="rope")
    model.save_pretrained(tmp_path)
    other = TokenGroupDiT.from_pretrained(tmp_path)
    x, c = noise(2, 3, 8, 8), pictures(noise)
    assert torch.equal(other(x, T, conditions=c).sample, model(x, T, conditions=c).sample)
    assert dict(other.config.conditions) == CONDITIONS
    one = model(x, T, conditions={"garment": c["garment"]}).sample
    assert (one - model(x, T, conditions=c).sample).abs().max() > 1e-3


def test_starts_from_the_weights_of_a_plain_model(make_dit, noise):
    """The only new weights are the type embeddings, and they start at zero."""
    torch.manual_seed(0)
    fresh = TokenGroupDiT(
        conditions=CONDITIONS, input_size=8, in_channels=3, hidden_size=24, depth=1, num_heads=2
    )
    plain = DiT(input_size=8, in_channels=3, hidden_size=24, depth=1, num_heads=2)
    new = fresh.state_dict().keys() - plain.state_dict().keys()
    assert new == {f"type_embed.{name}" for name in CONDITIONS}
    assert all(not fresh.state_dict()[key].any() for key in new)


@torch.no_grad()
def test_cache_through_the_model(make_dit, noise):
    model, cache = make_dit(kind=TokenGroupDiT, conditions=CONDITIONS, position="rope"), KeyValueCache()
    c = pictures(noise)
    for step in range(3):
        x, t = noise(2, 3, 8, 8, seed=10 + step), torch.full((2,), 1 - step / 3)
        cached = model(x, t, conditions=c, cache=cache).sample
        torch.testing.assert_close(cached, model(x, t, conditions=c).sample, atol=2e-5, rtol=1e-5)
    assert cache.runs == 3
    full = make_dit(kind=TokenGroupDiT, conditions=CONDITIONS, attention="full")
    with pytest.raises(ValueError, match="cannot be cached"):
        full(x, t, conditions=c, cache=cache)


def test_an_adapter_of_the_condition_s_name_acts(make_dit, noise):
    model, x, c = make_dit(kind=TokenGroupDiT, conditions=CONDITIONS), noise(2, 3, 8, 8), pictures(noise)
    before = model(x, T, conditions=c).sample
    inject_group(model, LoraOptions(rank=2), "garment")
    assert torch.equal(model(x, T, conditions=c).sample, before)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    assert (model(x, T, conditions=c).sample - before).abs().max() > 1e-3
    without = {"person": c["person"]}
    assert torch.equal(
        model(x, T, conditions=without).sample,
        make_dit(kind=TokenGroupDiT, conditions=CONDITIONS)(x, T, conditions=without).sample,
    )


def test_misuse(make_dit, noise):
    model = make_dit(kind=TokenGroupDiT, conditions=CONDITIONS)
    with pytest.raises(ValueError, match="conditions shoes; this model has person, garment, depth"):
        model(noise(2, 3, 8, 8), T, conditions={"shoes": noise(2, 3, 8, 8)})
    with pytest.raises(ValueError, match="'garment' at 'left'"):
        TokenGroupDiT(conditions={"garment": "left"})
    with pytest.raises(ValueError, match="attention is 'causal'"):
        TokenGroupDiT(attention="causal")


# -- what the mechanism is for -------------------------------------------------------------------------------


def scenes(count, generator):
    """A square of random colour at a random corner of black; the reference shows the same beside it."""
    picture = -torch.ones(count, 3, 8, 8)
    colour = torch.rand(count, 3, generator=generator) * 2 - 1
    corner = torch.randint(0, 2, (count, 2), generator=generator) * 4
    for i, (row, column) in enumerate(corner.tolist()):
        picture[i, :, row : row + 4, column : column + 4] = colour[i, :, None, None]
    return picture


def learn(open_mask, steps=250):
    """Train a tiny DiT to denoise scenes with the reference as a token group; return the error of its samples."""
    torch.manual_seed(0)
    model = TokenGroupDiT(
        conditions={"reference": "beside"},
        input_size=8,
        patch_size=2,
        in_channels=3,
        hidden_size=32,
        depth=2,
        num_heads=2,
        position="sincos+rope",
        gate_init=0.2,
    )
    if not open_mask:
        model.looks = lambda names: {name: (name,) for name in ("target", *names)}
    objective = Objective(LinearPath())
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        x = scenes(24, generator)
        loss = objective(
            lambda z, t, x=x: model(z, t, conditions={"reference": x}).sample, x, generator=generator
        ).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        x, cache = scenes(48, generator), KeyValueCache()
        noise = torch.randn(x.shape, generator=generator)
        out = sample(
            lambda z, t: model(z, t, conditions={"reference": x}, cache=cache).sample,
            noise,
            objective,
            steps=8,
        )
    assert cache.runs == 1
    return (out - x).square().mean().item()


def test_a_reference_group_is_copied_and_a_hidden_one_cannot_be():
    seen, hidden = learn(True), learn(False)
    variance = scenes(64, torch.Generator().manual_seed(9)).var(0).mean().item()
    assert seen < 0.1 * variance, (seen, variance)
    assert hidden > 0.5 * variance, (hidden, variance)
