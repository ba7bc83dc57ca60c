"""What every cache owes: no leak between runs, branches apart, gradients, compilation, and a clean end."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel, FirstBlockCacheConfig
from torch import nn

from polydit.core.acceleration import FORA, RAS, FirstBlock, MagCache, TaylorSeer, accelerate
from polydit.core.acceleration.clock import Clock
from polydit.core.diffusion import Parameterization, sample
from polydit.core.errors import PolyditError


def forwards(model):
    return [module.forward for module in model.modules()]


def test_a_run_leaves_nothing_to_the_next(make_dit, run):
    model = make_dit()
    with accelerate(model, TaylorSeer(4)) as handle:
        first = run(model)
        assert handle.report().plan.full_steps == [0, 1, 5, 9]
        assert torch.equal(run(model), first)
        other = run(model, 9, size=4)  # another length and resolution
        assert torch.equal(run(model), first)
    with accelerate(model, TaylorSeer(4)):
        assert torch.equal(run(model, 9, size=4), other)


def test_no_run_is_announced(make_dit):
    """Only the timesteps tell: they go back when a run begins."""
    model = make_dit()
    x, y = torch.randn(2, 4, 8, 8), torch.tensor([0, 3])

    @torch.no_grad()
    def loop(begin=8, end=0):
        state = x
        for step in range(begin, end, -1):
            state = state - model(state, torch.full((2,), float(step)), y).sample / 8
        return state

    with accelerate(model, TaylorSeer(3)) as handle:
        first = loop()
        assert handle.report().plan.full_steps == [0, 1, 4, 7]
        loop(end=5)  # broken off
        assert torch.equal(loop(), first)
        with handle.run(8):
            assert torch.equal(loop(), first)
        loop(end=6)
        with handle.run(3):  # begins at less noise than the last run ended with: only this can say so
            opened = loop(begin=5, end=2)
        assert handle.report().plan.full_steps == [0, 1]
        with pytest.raises(PolyditError, match="opened with 7 steps"), handle.run(7):
            loop()
        with pytest.raises(PolyditError, match="do not nest"), handle.run(7), handle.run(7):
            pass
    with accelerate(model, TaylorSeer(3)):
        assert torch.equal(loop(begin=5, end=2), opened)


def test_time_that_runs_the_other_way(make_dit):
    model, y = make_dit(), torch.tensor([0, 3])

    def loop():
        for step in range(8):
            model(torch.zeros(2, 4, 8, 8), torch.full((2,), step / 8), y)

    with accelerate(model, FORA(3)) as handle, torch.no_grad():
        loop()
        loop()
        assert (handle.report().plan.steps, handle.report().plan.full_steps) == (8, [0, 3, 6])


def test_second_order_steps_are_branches(make_dit):
    model, y = make_dit(), torch.tensor([0, 3])
    noise = torch.randn(2, 4, 8, 8)

    @torch.no_grad()
    def run():
        return sample(lambda x, t: model(x, t, y).sample, noise, Parameterization(), 6, "heun")

    plain = run()
    with accelerate(model, TaylorSeer(1)) as handle:
        assert torch.equal(run(), plain)
        assert handle.report().calls == 11
    with accelerate(model, FORA(3)) as handle:
        first = run()
        assert not torch.equal(first, plain)
        assert handle.report().computed == 2 * 2 * 8  # the last step has no second call
        assert torch.equal(run(), first)


def test_branches_are_kept_apart(make_dit, run):
    model = make_dit()
    with accelerate(model, TaylorSeer(4)) as handle:
        together = run(model)
        assert handle.report().calls == 12
        separate = run(model, separate=True)
        assert handle.report().calls == 24
        assert handle.report().plan.steps == 12
    torch.testing.assert_close(separate, together, atol=1e-5, rtol=1e-4)


def test_gradients_flow(make_dit, run):
    model = make_dit()
    weight = model.blocks[0].mlp.fc1.weight

    def gradient():
        weight.grad = None
        run(model, 6, grad=True).square().mean().backward()
        return weight.grad.clone()

    plain = gradient()
    with accelerate(model, TaylorSeer(1)):
        assert torch.equal(gradient(), plain)
    with accelerate(model, TaylorSeer(3)) as handle:
        through = gradient()
        assert handle.report().plan.reused > 0
    assert 0 < (through - plain).norm() < plain.norm()


def test_in_training_it_steps_aside(make_dit):
    model = make_dit(class_dropout_prob=0.0)

    def run(grad=False):
        with torch.set_grad_enabled(grad):
            x, y = torch.ones(2, 4, 8, 8), torch.tensor([0, 3])
            return sample(lambda x, t: model(x, t, y).sample, x, Parameterization(), 8)

    plain = run()
    with accelerate(model, FORA(4)) as handle:
        cached = run()
        model.train()
        with pytest.warns(UserWarning, match="training mode"):
            assert torch.equal(run(), plain)
        model.eval()
        assert torch.equal(run(), cached)
        assert not torch.equal(cached, plain)
        model.enable_gradient_checkpointing()
        with pytest.raises(PolyditError, match="gradient checkpointing"):
            run(grad=True)
        assert handle.report().policy == "FORA(interval=4)"


@pytest.mark.parametrize("inner", [pytest.param("whole", marks=pytest.mark.slow), "blocks"])
def test_compiled(make_dit, run, inner):
    model = make_dit(depth=2)
    with accelerate(model, TaylorSeer(3)):
        expected = run(model)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager") if inner == "whole" else model
    if inner == "blocks":
        model.compile_repeated_blocks(backend="eager")
    with accelerate(compiled, TaylorSeer(3)) as handle:
        run(compiled)
        torch.testing.assert_close(run(compiled), expected, atol=1e-5, rtol=1e-4)
        assert handle.report().plan.full_steps == [0, 1, 4, 7, 10]
        with torch.compiler.set_stance("fail_on_recompile"):  # what two runs have traced serves the third
            run(compiled)


def test_it_comes_off(make_dit, run):
    model = make_dit()
    before, plain, keys = forwards(model), run(model), list(model.state_dict())
    handle = accelerate(model, TaylorSeer(4))
    assert list(model.state_dict()) == keys
    run(model)
    handle.remove()
    assert forwards(model) == before
    assert all("forward" not in module.__dict__ for module in model.modules())
    assert torch.equal(run(model), plain)
    assert torch.equal(run(copy.deepcopy(model)), plain)


def test_two_caches_are_refused(make_dit):
    model = make_dit()
    with (
        accelerate(model, TaylorSeer(4)),
        pytest.raises(PolyditError, match=r"has one already, TaylorSeer\("),
    ):
        accelerate(model, FORA(2))
    model.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(PolyditError, match="one of diffusers"):
        accelerate(model, FORA(2))
    model.disable_cache()
    accelerate(model, FORA(2)).remove()

    with accelerate(model, FORA(2)), pytest.raises(PolyditError, match=r"has one already, FORA\("):
        model.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    model.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    model.disable_cache()


@pytest.mark.parametrize("policy", [TaylorSeer(4), RAS(0.5, start=2)], ids=str)
def test_a_copy_has_no_cache_and_runs_its_own_weights(make_dit, run, policy):
    model = make_dit()
    plain = run(model)
    with accelerate(model, policy) as handle:
        alike, other = copy.deepcopy(model), copy.deepcopy(nn.Sequential(model))[0]
        assert torch.equal(run(alike), plain)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.zero_()
        assert not run(other).isnan().any()
        assert (run(other) - plain).norm() > 0.1 * plain.norm()
        assert all("forward" not in module.__dict__ for module in other.modules())
        accelerate(other, FORA(2)).remove()
        assert not isinstance(policy, TaylorSeer) or handle.report().plan.steps == 0
        assert any("forward" in module.__dict__ for module in model.modules()), "the cache is still on"
    assert torch.equal(run(model), plain)


@pytest.mark.parametrize(
    "make",
    [
        lambda: TaylorSeer(2.5),
        lambda: TaylorSeer(order=1.5),
        lambda: FirstBlock(float("nan")),
        lambda: MagCache([1.0], max_skip=-1),
        lambda: MagCache([1.0], retention=5),
        lambda: MagCache([1.0], threshold=float("nan")),
    ],
)
def test_settings_that_are_none(make):
    with pytest.raises(PolyditError, match=r"give|from 0 to 1"):
        make()


class Idle(nn.Module):
    """Has blocks by the right names and does not call them."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.ModuleDict({"attn": nn.Linear(2, 2)})])

    def forward(self, hidden_states, timestep):
        return hidden_states


def test_nothing_to_cache_is_an_error():
    with pytest.raises(PolyditError, match="no list of transformer blocks"):
        accelerate(nn.Sequential(nn.Linear(2, 2)), FORA(2))
    empty = Idle()
    empty.blocks = nn.ModuleList([nn.Linear(2, 2)])
    with pytest.raises(PolyditError, match="no attention and no MLP found"):
        accelerate(empty, FORA(2))
    idle = Idle().eval()
    with accelerate(idle, FORA(2)), pytest.raises(PolyditError, match="never calls what it would cache"):
        idle(torch.zeros(1, 2), torch.tensor([3]))
    with pytest.raises(PolyditError, match="neither a transformer nor a unet"):
        accelerate(object(), FORA(2))


def test_a_pipeline_of_diffusers():
    torch.manual_seed(0)
    model = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2, sample_size=8,
        num_embeds_ada_norm=1000,
    ).eval()  # fmt: skip
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.05)
    vae = AutoencoderKL(block_out_channels=(4,), norm_num_groups=1, latent_channels=4).eval()
    pipe = DiTPipeline(model, vae, DDIMScheduler(clip_sample=False))
    pipe.set_progress_bar_config(disable=True)

    def call(steps=8):
        generator = torch.Generator().manual_seed(0)
        return pipe([1], num_inference_steps=steps, generator=generator, output_type="np").images

    plain = call()
    with accelerate(pipe, TaylorSeer(3)) as handle:
        first = call()
        report = handle.report()
        assert (report.plan.steps, report.plan.full_steps) == (8, [0, 1, 4, 7])
        call(5)
        assert handle.report().plan.full_steps == [0, 1, 4]
        assert (call() == first).all()
    assert (call() == plain).all()
    assert (first != plain).any()


def test_clock_reads_what_a_scheduler_says():
    class Pipe:
        scheduler = DDIMScheduler()

    pipe = Pipe()
    clock = Clock(pipe)
    pipe.scheduler.set_timesteps(4)
    times = pipe.scheduler.timesteps
    moments = [clock.tick(t) for t in times for _ in range(2)]
    assert [(m.step, m.branch) for m in moments] == [
        (step, branch) for step in range(4) for branch in range(2)
    ]
    assert [m.new_run for m in moments] == [True] + [False] * 7
    assert moments[0].total == 4
    pipe.scheduler.set_timesteps(4)  # the next run, begun with the last time of the one before
    assert clock.tick(times[-1]).new_run
