"""Keys and values of constant groups: exact, run once, never stale."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from polydit.core.adapters import LoraOptions, inject, inject_group
from polydit.core.conditioning import (
    KeyValueCache,
    Position,
    SideBranch,
    TokenGroup,
    forward_groups,
    only_itself,
)

LOOKS = only_itself("person", "garment")


def groups(noise, step, dtype=torch.float32, **person):
    target = noise(2, 3, 8, 8, seed=100 + step).to(dtype)
    return [
        TokenGroup("target", target, timestep=1 - step / 4),
        TokenGroup("person", noise(2, 3, 8, 8, seed=1).to(dtype), **{"adapter": "p", **person}),
        TokenGroup(
            "garment", noise(2, 3, 4, 8, seed=2).to(dtype), position=Position.beside((4, 4)), adapter="g"
        ),
    ]


def adapted(make_dit, dtype=torch.float32, **options):
    """A model with two trained-looking group adapters."""
    model = make_dit(dtype=dtype, **options)
    inject_group(model, LoraOptions(rank=3, targets="linear"), "p")
    inject_group(model, LoraOptions(rank=2), "g")
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    return model


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
@pytest.mark.parametrize(
    "options", [{"position": "rope", "qk_norm": "rms"}, {"context_dim": 5}, {"conv_kernel": 3}]
)
@torch.no_grad()
def test_cached_equals_uncached_over_a_sampling_run(dtype, bound, options, make_dit, noise):
    model, cache = adapted(make_dit, dtype, **options), KeyValueCache()
    text = {"encoder_hidden_states": noise(2, 4, 5, dtype=dtype)} if "context_dim" in options else {}
    for step in range(4):
        given = groups(noise, step, dtype)
        plain = forward_groups(model, given, LOOKS, **text)["target"]
        cached = forward_groups(model, given, LOOKS, **text, cache=cache)["target"]
        assert (cached - plain).abs().max() < bound * plain.abs().max()
    assert cache.runs == 2
    assert len(cache) == 2


@torch.no_grad()
def test_cached_tokens_are_run_once(make_dit, noise):
    """Counted at every block: 16 target, 16 person, 8 garment tokens over four steps."""
    model, cache, tokens = adapted(make_dit), KeyValueCache(), Counter()
    for name, module in model.named_modules():
        if name.startswith("blocks.") and name.count(".") == 1:
            module.register_forward_hook(lambda m, i, out, name=name: tokens.update({name: out.shape[1]}))
    for step in range(4):
        forward_groups(model, groups(noise, step), LOOKS, cache=cache)
    assert set(tokens.values()) == {4 * 16 + 16 + 8}
    tokens.clear()
    for step in range(4):
        forward_groups(model, groups(noise, step), LOOKS)
    assert set(tokens.values()) == {4 * (16 + 16 + 8)}


def changed_picture(model, given, text):
    given[1].picture = given[1].picture + 1e-3


def changed_in_place(model, given, text):
    given[1].picture.add_(1e-3)


def changed_timestep(model, given, text):
    given[1].timestep = 0.25


def changed_place(model, given, text):
    given[1].position = Position(offset=1.0)


def changed_type(model, given, text):
    given[1].type_embedding = torch.ones(24)


def changed_adapter_name(model, given, text):
    given[1].adapter = None


def changed_adapter_weight(model, given, text):
    model.blocks[0].attn.qkv.lora_B["p"].weight.mul_(1.5)


def changed_adapter_strength(model, given, text):
    model.blocks[0].attn.qkv.set_scale("p", 0.5)


def changed_base_weight(model, given, text):
    model.load_state_dict({k: v * 1.1 for k, v in model.state_dict().items()})


def changed_prompt(model, given, text):
    text["encoder_hidden_states"] = text["encoder_hidden_states"] + 1e-3


def changed_prompt_mask(model, given, text):
    text["encoder_attention_mask"] = torch.tensor([[1, 1, 0, 0]] * 2).bool()


CHANGES = [f for name, f in list(globals().items()) if name.startswith("changed_")]


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
@torch.no_grad()
def test_nothing_stale_is_used(change, make_dit, noise):
    model, cache = adapted(make_dit, context_dim=5), KeyValueCache()
    text = {"encoder_hidden_states": noise(2, 4, 5)}
    given = groups(noise, 0)
    before = forward_groups(model, given, LOOKS, **text, cache=cache)["target"]
    runs = cache.runs
    change(model, given, text)
    expected = forward_groups(model, given, LOOKS, **text)["target"]
    assert (expected - before).abs().max() > 1e-6, "the change must matter for the test to mean something"
    after = forward_groups(model, given, LOOKS, **text, cache=cache)["target"]
    torch.testing.assert_close(after, expected, atol=1e-5, rtol=1e-4)
    assert cache.runs > runs
    runs = cache.runs
    forward_groups(model, given, LOOKS, **text, cache=cache)
    assert cache.runs == runs, "and it is cached again"


@torch.no_grad()
def test_an_adapter_over_all_tokens_is_noticed(make_dit, noise):
    model, cache = make_dit(), KeyValueCache()
    inject(model, LoraOptions(rank=2))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    given = groups(noise, 0)
    for switch in (lambda: None, model.disable_lora, model.enable_lora):
        switch()
        cached = forward_groups(model, given, LOOKS, cache=cache)["target"]
        torch.testing.assert_close(
            cached, forward_groups(model, given, LOOKS)["target"], atol=1e-5, rtol=1e-4
        )
    assert cache.runs == 6


@pytest.mark.parametrize("target", [["target", "person"], ["target"], ["garment"]])
@torch.no_grad()
def test_the_table_holds_for_cached_groups_too(target, make_dit, noise):
    """A group may be kept from looking at a cached one, beside another that sees it."""
    model, cache, given = make_dit(dtype=torch.float64), KeyValueCache(), groups(noise, 0, torch.float64)
    given.append(TokenGroup("second", noise(2, 3, 8, 8, seed=5).double(), timestep=0.5))
    looks, outputs = {**LOOKS, "target": target}, ("target", "second")
    plain = forward_groups(model, given, looks, outputs)
    for _ in range(2):
        cached = forward_groups(model, given, looks, outputs, cache=cache)
        for name, value in plain.items():
            torch.testing.assert_close(cached[name], value, atol=1e-11, rtol=0)
    assert cache.runs == 2
    free = forward_groups(model, given, LOOKS, outputs, cache=cache)
    assert (free["target"] - plain["target"]).abs().max() > 1e-3


@torch.no_grad()
def test_equal_values_in_new_tensors_are_the_same_condition(make_dit, noise):
    model, cache = adapted(make_dit), KeyValueCache()
    forward_groups(model, groups(noise, 0), LOOKS, cache=cache)
    forward_groups(model, groups(noise, 1, timestep=torch.tensor(0.0)), LOOKS, cache=cache)
    assert cache.runs == 3, "a number and a tensor are told apart, which only costs a run"
    forward_groups(model, groups(noise, 1, timestep=torch.tensor(0.0)), LOOKS, cache=cache)
    assert cache.runs == 3


def test_inference_mode_works(make_dit, noise):
    model, cache = adapted(make_dit), KeyValueCache()
    with torch.inference_mode():
        for step in range(2):
            given = groups(noise, step)
            cached = forward_groups(model, given, LOOKS, cache=cache)["target"]
            torch.testing.assert_close(
                cached, forward_groups(model, given, LOOKS)["target"], atol=1e-5, rtol=1e-4
            )
    assert cache.runs == 2


@torch.no_grad()
def test_only_groups_that_see_themselves_alone_are_cached(make_dit, noise):
    model, cache, given = make_dit(), KeyValueCache(), groups(noise, 0)
    looks = {"person": ["person"], "garment": ["garment", "person"]}
    cached = forward_groups(model, given, looks, cache=cache)["target"]
    torch.testing.assert_close(cached, forward_groups(model, given, looks)["target"], atol=1e-5, rtol=1e-4)
    assert cache.runs == 1
    out = forward_groups(model, given, looks, ("target", "person"), cache=cache)
    assert out["person"].shape == given[1].picture.shape, "an output is computed at every step"
    cache.clear()
    assert len(cache) == 0


def test_misuse(make_dit, noise):
    model, given = make_dit(), groups(noise, 0)
    with pytest.raises(ValueError, match="is for sampling"):
        forward_groups(model, given, LOOKS, cache=KeyValueCache())
    with torch.no_grad(), pytest.raises(ValueError, match="is for sampling"):
        forward_groups(model.train(), given, LOOKS, cache=KeyValueCache())
    model.eval()
    x = given[1].picture
    hints = SideBranch.from_base(model, 1, 3)(torch.cat([x, x], 1), torch.zeros(2))
    with torch.no_grad(), pytest.raises(ValueError, match="'person': residuals change"):
        forward_groups(model, given, LOOKS, residuals={"person": hints}, cache=KeyValueCache())
