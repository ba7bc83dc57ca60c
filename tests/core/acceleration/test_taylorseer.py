"""FORA and TaylorSeer: reference vectors, identities, equality with diffusers' own."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DiTTransformer2DModel, TaylorSeerCacheConfig
from diffusers.hooks import HookRegistry
from diffusers.hooks.taylorseer_cache import apply_taylorseer_cache
from diffusers.models.cache_utils import CacheMixin
from safetensors.torch import load_file
from torch import Tensor

from polydit.core.acceleration import FORA, Replay, TaylorSeer, accelerate
from polydit.core.acceleration.estimators import Taylor
from polydit.core.acceleration.plan import Plan, diffusers_steps, first_then_every
from polydit.core.errors import PolyditError


def full_steps(steps, *schedule):
    rule = first_then_every(*schedule)
    return [step for step in range(steps) if rule(step)]


def forecast(features: Tensor, full: list[int], order: int, first: int = 1) -> Tensor:
    memory, out = TaylorSeer(order=order, first_enhance=first).estimator.memory(), []
    for step, feature in enumerate(features):
        memory.plan(step, step in full)
        if step in full:
            memory.update(feature)
        out.append(feature if step in full else memory.predict())
    return torch.stack(out)


@pytest.mark.parametrize("interval", [3, 5])
@pytest.mark.parametrize(("source", "first"), [("dit", 2), ("flux", 3)])
def test_reference_forecasts(golden, source, first, interval):
    data = load_file(golden / "taylorseer" / "forecasts.safetensors")
    features = data["arith.f"]
    full = full_steps(20, interval, first)
    assert full == data[f"arith.{source}.i{interval}.full_mask"].nonzero().flatten().tolist()
    for order in range(3):
        expected = data[f"arith.{source}.i{interval}.o{order}"]
        torch.testing.assert_close(forecast(features, full, order, first), expected, atol=1e-5, rtol=1e-5)


def test_closed_forms():
    s = torch.arange(16.0, dtype=torch.float64)[:, None]
    full = full_steps(16, 4, 1)
    linear = forecast(3 * s - 5, full, 1)
    torch.testing.assert_close(linear[5:], (3 * s - 5)[5:])  # two full steps are needed for a slope
    ahead = torch.tensor([step - max(f for f in full if f <= step) for step in range(16)])[:, None]
    quadratic = forecast(s**2, full, 2)  # backward differences of a square: off by exactly gap x
    torch.testing.assert_close(quadratic[9:] - (s**2)[9:], -4.0 * ahead[9:].double())
    memory = Taylor(4).memory()
    for count, step in enumerate(range(0, 18, 3)):
        memory.plan(step, True)
        memory.update(s[step])
        assert len(memory.factors) == min(4, count) + 1


@pytest.mark.parametrize(
    ("first", "interval", "count"),
    [(2, 3, 18), (2, 4, 14), (2, 5, 11), (3, 4, 14), (3, 6, 10), (3, 7, 9), (1, 5, 10)],
)
def test_full_steps_of_the_published_settings(first, interval, count):
    assert len(full_steps(50, interval, first)) == count == first + (50 - first) // interval


def test_interval_1_is_no_cache(make_dit, run):
    model = make_dit()
    plain = run(model)
    with accelerate(model, TaylorSeer(interval=1)) as handle:
        assert torch.equal(run(model), plain)
        assert handle.report().plan.reused == 0
    assert torch.equal(run(model), plain)


def test_it_leaves_out_what_it_says(make_dit, run):
    model = make_dit()
    plain, calls = run(model), []
    for block in model.blocks:
        block.mlp.fc1.register_forward_hook(lambda *_: calls.append("mlp"))
        block.attn.proj.register_forward_hook(lambda *_: calls.append("attn"))
    with accelerate(model, TaylorSeer(interval=4, order=1)) as handle:
        cached = run(model)
        report = handle.report()
    full = full_steps(12, 4, 2)
    assert report.plan.full_steps == full == [0, 1, 5, 9]
    assert calls.count("mlp") == calls.count("attn") == len(full) * 4
    assert (report.computed, report.asked, report.speed_up) == (8 * 4, 8 * 12, 3.0)
    # Two orders of (2 x 2 pictures, 16 tokens, width 32) float32 at each of 8 sites.
    assert report.bytes == 2 * 8 * 4 * 16 * 32 * 4
    error = (cached - plain).norm() / plain.norm()
    assert 0 < error < 0.1
    assert "4 of 12 steps in full" in str(report)
    assert "##...#...#..  blocks.0.attn .. blocks.3.mlp (8)" in str(report)


def test_a_slope_helps(make_dit, run):
    model = make_dit()
    plain, errors = run(model, 30), []
    for policy in (FORA(4), TaylorSeer(4, order=0, full_steps=range(0, 30, 4)), TaylorSeer(4, order=1)):
        with accelerate(model, policy):
            errors.append(float((run(model, 30) - plain).norm()))
    assert errors[0] == errors[1]  # order 0 is FORA
    assert errors[2] < 0.7 * errors[0]


def test_without_a_change_nothing_is_lost(make_dit, run):
    """Gates at zero: what is left out adds nothing."""
    model = make_dit()
    for block in model.blocks:
        block.modulation.weight.data.zero_()
        block.modulation.bias.data.zero_()
    plain = run(model)
    with accelerate(model, FORA(6)):
        assert torch.equal(run(model), plain)


def test_replay_of_a_plan(make_dit, run, tmp_path):
    model, path = make_dit(), tmp_path / "plan.json"
    with accelerate(model, TaylorSeer(3)) as handle:
        first = run(model)
        path.write_text(handle.report().plan.to_json())
        assert handle.policy.plan(12, handle.sites) == handle.report().plan
    plan = Plan.read(path)
    with accelerate(model, Replay(TaylorSeer(5), plan)):
        assert torch.equal(run(model), first)
        with pytest.raises(PolyditError, match="has 12 steps, the run 13"):
            run(model, 13)
    with pytest.raises(PolyditError, match="recorded on another model"):
        accelerate(make_dit(depth=5), Replay(TaylorSeer(5), plan))
    with pytest.raises(PolyditError, match="not one that was saved"):
        Plan.from_json("{}")


@pytest.mark.parametrize("order", [0, 1, 2])
def test_equals_diffusers_on_the_same_steps(order):
    torch.manual_seed(0)
    model = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, num_layers=3, sample_size=8,
        num_embeds_ada_norm=5,
    ).eval()  # fmt: skip
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)

    @torch.no_grad()
    def run():
        x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        for step in range(30):
            t = torch.full((2,), 999 - 33 * step)
            x = x - model(x, t, class_labels=torch.tensor([0, 3])).sample / 30
        return x

    settings = TaylorSeerCacheConfig(
        cache_interval=5,
        disable_cache_before_step=3,
        max_order=order,
        taylor_factors_dtype=torch.float32,
        cache_identifiers=[r".*attn1$", r".*\.ff$"],
    )
    plain = run()
    apply_taylorseer_cache(model, settings)
    with CacheMixin.cache_context(model, "all"):
        theirs = run()
    assert not torch.equal(theirs, plain)
    for module in model.modules():
        HookRegistry.check_if_exists_or_initialize(module).remove_hook("taylorseer_cache", recurse=False)
    assert torch.equal(run(), plain)
    full = diffusers_steps(30, 5, 3)
    assert full == [0, 1, 2, 4, 9, 14, 19, 24, 29]
    with accelerate(model, TaylorSeer(order=order, full_steps=full)) as handle:
        assert torch.equal(run(), theirs)
        assert handle.report().plan.full_steps == full


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"interval": 0}, "interval 0"),
        ({"first_enhance": 0}, "first steps 0"),
        ({"order": -1}, "order -1"),
        ({"full_steps": [1, 5]}, "step 0 must be among them"),
    ],
)
def test_settings_that_cannot_be(settings, said):
    with pytest.raises(PolyditError, match=said):
        TaylorSeer(**settings)


def test_settings_that_do_not_fit_the_run(make_dit, run):
    model = make_dit()
    with accelerate(model, TaylorSeer(4, order=4)), pytest.raises(PolyditError, match="take order 3 or less"):
        run(model, 12)
    late = accelerate(model, TaylorSeer(full_steps=[0, 1, 12]))
    with late, pytest.raises(PolyditError, match="the run has 12 steps"):
        run(model, 12)
    assert math.isfinite(run(model).sum())


@pytest.mark.parametrize("options", [{}, {"norm": "rms", "position": "rope", "modulation": "adaln_single"}])
def test_shortcut_of_native_blocks_changes_no_bit(make_dit, run, monkeypatch, options):
    model, norms = make_dit(**options), []
    model.blocks[1].norm2.register_forward_hook(lambda *_: norms.append(1))
    with accelerate(model, TaylorSeer(4)) as handle:
        short, report = run(model), handle.report()
    assert len(norms) == 4  # nothing is prepared for parts that are left out
    monkeypatch.setattr("polydit.core.acceleration.handle.shortcuts", lambda model, sites: [])
    with accelerate(model, TaylorSeer(4)) as handle:
        assert torch.equal(run(model), short)
        assert handle.report() == report
    assert len(norms) == 4 + 12
