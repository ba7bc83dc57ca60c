"""Caches of the project on diffusers transformers: every family finds its sites, interval 1 moves no bit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from polydit.core.acceleration import BlockSpan, FirstBlock, TaylorSeer, accelerate

STEPS = 8

# What a block keeps, in the family's own names; the names of the first block and the number of sites.
SITES = {
    "dit": (["attn1", "ff"], 4),
    "pixart": (["attn1", "ff"], 4),
    "sd3": (["attn", "attn2", "ff", "ff_context"], 9),
    "flux": (["attn", "ff", "ff_context"], 5),
    "sana": (["attn1", "ff"], 4),
    "ltx": (["attn1", "ff"], 4),
    "wan": (["attn1", "ffn"], 4),
    "cogvideox": (["attn1", "ff"], 4),
    "qwen": (["attn", "img_mlp", "txt_mlp"], 6),
}


@torch.no_grad()
def run(family, model):
    x, t, condition = family.inputs()
    for step in range(STEPS):
        now = torch.full_like(t, 900 - 100 * step)
        x = x - family.direct(model, x, now, **condition) / STEPS
    return x


def settled(family):
    model = family.build()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.08)
    return model


def test_sites_identity_and_saving(family, request):
    names, count = SITES[request.node.callspec.params["family"]]
    model = settled(family)
    plain = run(family, model)
    with accelerate(model, TaylorSeer(1)) as handle:
        assert torch.equal(run(family, model), plain)
        found = [site.name for site in handle.sites]
        assert [name.split(".")[-1] for name in found if ".0." in name][: len(names)] == names
        assert len(found) == count
    modules = [site.module for site in handle.sites]
    feeders = [feeder for site in handle.sites for feeder in site.feeders]
    calls = []
    for module in [*modules, *feeders]:
        for inner in module.modules():
            # A feeder itself is called, with nothing to do.
            if isinstance(inner, nn.Linear) and inner not in modules and inner not in feeders:
                inner.register_forward_hook(lambda module, *_: calls.append(module))
    run(family, model)
    every = len(calls)
    with accelerate(model, TaylorSeer(4)) as handle:
        calls.clear()
        cached = run(family, model)
        assert handle.report().plan.full_steps == [0, 1, 5]
        assert len(calls) == 3 * every // STEPS > 0
        assert torch.equal(run(family, model), cached)
    assert 0 < (cached - plain).norm() < 0.2 * plain.norm()
    assert torch.equal(run(family, model), plain)


def test_parallel_block_of_flux(families):
    """Attention and MLP of a single block share one projection: nothing in front of it is computed."""
    family = families["flux"]
    model = settled(family)
    block, calls = model.single_transformer_blocks[0], []
    for name in ("proj_mlp", "proj_out"):
        getattr(block, name).register_forward_pre_hook(
            lambda module, args, name=name: calls.append((name, args[0].shape[-1]))
        )
    block.attn.to_q.register_forward_hook(lambda *_: calls.append("to_q"))
    with accelerate(model, TaylorSeer(4)):
        run(family, model)
    assert calls.count("to_q") == 3
    assert calls.count(("proj_out", 32 + 128)) == 3
    assert calls.count(("proj_out", 0)) == STEPS - 3


@pytest.mark.parametrize("name", ["pixart", "wan"])
def test_attention_to_the_text_when_asked(families, name):
    model = settled(families[name])
    with accelerate(model, TaylorSeer(4, cross_attention=True)) as handle:
        assert sum(site.name.endswith("attn2") for site in handle.sites) == 2
        run(families[name], model)


@pytest.mark.parametrize("policy", [BlockSpan(0, None, 3), FirstBlock(0.9)], ids=str)
def test_blocks_left_out(family, policy):
    model = settled(family)
    plain = run(family, model)
    identity = FirstBlock(0.0) if isinstance(policy, FirstBlock) else BlockSpan(0, None, 1)
    with accelerate(model, identity):
        assert torch.equal(run(family, model), plain)
    with accelerate(model, policy) as handle:
        cached = run(family, model)
        assert handle.report().plan.reused > 0.3
        assert torch.equal(run(family, model), cached)
    assert 0 < (cached - plain).norm() < 0.3 * plain.norm()
    assert torch.equal(run(family, model), plain)
