"""Methods that leave whole blocks out: Delta-DiT, first-block thresholds, MagCache."""

from __future__ import annotations

import pytest
import torch
from diffusers import DiTTransformer2DModel, FirstBlockCacheConfig, MagCacheConfig
from diffusers.hooks import HookRegistry
from diffusers.hooks.first_block_cache import apply_first_block_cache
from diffusers.hooks.mag_cache import apply_mag_cache
from diffusers.models.cache_utils import CacheMixin
from torch import nn

from polydit.core.acceleration import (
    FORA,
    BlockSpan,
    DeltaDiT,
    FirstBlock,
    MagCache,
    Replay,
    accelerate,
    magnitude_ratios,
)
from polydit.core.errors import PolyditError


def error(value, reference):
    return float((value - reference).norm() / reference.norm())


def count_blocks(model):
    calls = []
    for index, block in enumerate(model.blocks):
        block.attn.register_forward_hook(lambda *_, index=index: calls.append(index))
    return calls


class Adding(nn.Module):
    """A model whose blocks add constants, behind an embedding that follows the time."""

    class Block(nn.Module):
        def __init__(self, value):
            super().__init__()
            self.value = value

        def forward(self, hidden_states):
            return hidden_states + self.value

    def __init__(self, values):
        super().__init__()
        self.blocks = nn.ModuleList([self.Block(value) for value in values])

    def forward(self, hidden_states, timestep):
        hidden_states = hidden_states + timestep
        for block in self.blocks:
            hidden_states = block(hidden_states)
        return hidden_states


ADDING = [
    BlockSpan(0, None, interval=4),
    BlockSpan(1, -1, interval=4),
    DeltaDiT(4, blocks=2, switch=4),
    FirstBlock(0.5),
    FirstBlock(0.5, first=2, last=1),
    MagCache([1.0] * 8, max_skip=9, retention=0.0),
]


@pytest.mark.parametrize("policy", ADDING, ids=str)
def test_what_blocks_add_is_exact_where_it_is_constant(policy):
    """A cache that forgets the first block's part, or the newest input, is off by just that."""
    model = Adding([2.0, 3.0, 5.0, 7.0]).eval()
    with accelerate(model, policy) as handle, handle.run(8):
        for time in range(8, 0, -1):
            out = model(torch.ones(1, 3, 1), torch.tensor(float(time)))
            assert torch.equal(out, torch.full((1, 3, 1), 18.0 + time))
        assert handle.report().plan.reused > 0
    feature = BlockSpan(0, None, interval=4, residual=False)
    with accelerate(model, feature) as handle, handle.run(2):
        outs = [model(torch.ones(1, 3, 1), torch.tensor(float(time))) for time in (8, 3)]
    assert torch.equal(outs[0], outs[1])  # keeping the output instead is off by the change of the input


IDENTITIES = [
    BlockSpan(0, None, interval=1),
    DeltaDiT(1),
    FirstBlock(0.0),
    MagCache([1.0] + [1.1] * 11, threshold=0.0),
]


@pytest.mark.parametrize("policy", IDENTITIES, ids=str)
def test_settings_that_are_no_cache(make_dit, run, policy):
    model = make_dit()
    plain = run(model)
    with accelerate(model, policy) as handle:
        assert torch.equal(run(model), plain)
        assert handle.report().plan.reused == 0


@pytest.mark.parametrize(
    "policy",
    [BlockSpan(1, -1, 3), DeltaDiT(3, 2), DeltaDiT(3, 3), FirstBlock(0.2), MagCache([1.0] * 12)],
    ids=str,
)
def test_one_run_is_like_the_next(make_dit, run, policy):
    model = make_dit()
    plain = run(model)
    with accelerate(model, policy) as handle:
        first = run(model)
        plan = handle.report().plan
        assert 0 < error(first, plain) < 0.2
        run(model, 5, size=4)
        assert torch.equal(run(model), first)
        separate = run(model, separate=True)
        if not isinstance(policy, FirstBlock):  # there each branch has its own signal
            torch.testing.assert_close(separate, first, atol=1e-4, rtol=1e-4)
    with accelerate(model, Replay(policy, plan)) as handle:
        assert torch.equal(run(model), first)
        assert handle.report().plan == plan
    assert torch.equal(run(model), plain)


def test_delta_dit_leaves_the_rear_out_first(make_dit, run):
    model = make_dit()
    calls = count_blocks(model)
    with accelerate(model, DeltaDiT(interval=2, blocks=3, switch=6)) as handle:
        run(model)
        plan = handle.report().plan
    assert calls == [0, 1, 2, 3, 0] * 3 + [0, 1, 2, 3, 3] * 3
    front, rear = plan.sites
    # Steps 0 .. 11; with 6 and more to do (steps 0 to 6) the rear is out.
    assert [step for step, on in enumerate(plan.of(rear)) if not on] == [1, 3, 5]
    assert [step for step, on in enumerate(plan.of(front)) if not on] == [7, 9, 11]


def test_delta_beats_keeping_the_features(make_dit, run):
    model = make_dit(depth=8, std=0.1)
    plain = run(model, 20)
    errors = {}
    for residual in (True, False):
        with accelerate(model, BlockSpan(1, 7, 2, residual=residual)):
            errors[residual] = error(run(model, 20), plain)
    assert errors[True] < 0.7 * errors[False]


def test_a_slope_of_what_is_added_helps(make_dit, run):
    model = make_dit()
    plain = run(model, 30)
    with accelerate(model, BlockSpan(0, None, 3, order=0)):
        reused = error(run(model, 30), plain)
    with accelerate(model, BlockSpan(0, None, 3, order=1)):
        assert error(run(model, 30), plain) < 0.7 * reused


@pytest.fixture
def theirs():
    """A diffusers DiT with random weights, and a run of it that returns what it computed."""
    torch.manual_seed(0)
    model = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, num_layers=4, sample_size=8,
        num_embeds_ada_norm=5,
    ).eval()  # fmt: skip
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    calls = []
    model.transformer_blocks[1].ff.register_forward_hook(lambda *_: calls.append(1))

    @torch.no_grad()
    def run(steps=30):
        calls.clear()
        full = []
        x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        for step in range(steps):
            before = len(calls)
            t = torch.full((2,), 999 - 33 * step)
            x = x - model(x, t, class_labels=torch.tensor([0, 3])).sample / steps
            full += [step] * (len(calls) - before)
        return x, full

    return model, run


def clean(model):
    for module in model.modules():
        registry = HookRegistry.check_if_exists_or_initialize(module)
        for name in list(registry.hooks):
            registry.remove_hook(name, recurse=False)


def test_first_block_forecasts_behind_its_warm_up():
    """What the other blocks add falls with time: order 1 is exact from two full steps, order 0 stays behind."""

    class Fading(Adding):
        def forward(self, hidden_states, timestep):
            for block in self.blocks[1:]:
                block.value = timestep
            return super().forward(hidden_states, torch.zeros(()))

    def run(policy):
        model = Fading([2.0, 3.0, 5.0]).eval()
        states = torch.ones(1, 4, 2)
        with accelerate(model, policy) as handle, handle.run(8):
            off = [
                float((model(states, time) - 3 - 2 * time).abs().max()) for time in torch.arange(8.0, 0, -1)
            ]
            return off, handle.report().plan.full_steps

    off, full = run(FirstBlock(0.5, warmup=3, order=1))
    assert full == [0, 1, 2]
    assert max(off) < 1e-5
    off, full = run(FirstBlock(0.5, warmup=3))
    assert full == [0, 1, 2]
    assert off[3:] == pytest.approx([2, 4, 6, 8, 10])
    assert "warmup=3, order=1" in str(FirstBlock(0.5, warmup=3, order=1))


@pytest.mark.parametrize("threshold", [0.0, 0.05, 0.2, 0.5])
def test_first_block_equals_diffusers(theirs, threshold):
    model, run = theirs
    apply_first_block_cache(model, FirstBlockCacheConfig(threshold=threshold))
    with CacheMixin.cache_context(model, "all"):
        expected, full = run()
    clean(model)
    with accelerate(model, FirstBlock(threshold)) as handle:
        found, ours = run()
        assert handle.report().plan.full_steps == full == ours
    assert torch.equal(found, expected)
    assert len(full) == 30 if threshold == 0 else len(full) > 1
    if threshold == 0.5:
        assert len(full) < 25


def test_mag_cache_equals_diffusers(theirs):
    model, run = theirs
    ratios = magnitude_ratios(model, run)
    assert len(ratios) == 30
    assert ratios[0] == 1.0
    settings = MagCacheConfig(threshold=0.1, max_skip_steps=3, num_inference_steps=30, mag_ratios=ratios)
    apply_mag_cache(model, settings)
    expected, full = run()
    clean(model)
    assert 6 < len(full) < 30
    with accelerate(model, MagCache(ratios, threshold=0.1)) as handle, handle.run(30):
        found, ours = run()
        assert handle.report().plan.full_steps == full == ours
    assert torch.equal(found, expected)
    assert sum(MagCache(ratios, threshold=0.1).schedule(15)) < 15  # another length takes the nearest ratios


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: DeltaDiT(0), "interval 0"),
        (lambda: DeltaDiT(blocks=1.5), "blocks 1.5"),
        (lambda: FirstBlock(-1), "threshold -1"),
        (lambda: FirstBlock(first=0), "first 0"),
        (lambda: MagCache([]), "magnitude_ratios"),
        (lambda: MagCache([1.0], threshold=-1), "threshold -1"),
    ],
)
def test_settings_that_cannot_be(make, said):
    with pytest.raises(PolyditError, match=said):
        make()


def test_models_and_runs_that_do_not_fit(make_dit):
    model = make_dit()
    x, t, y = torch.zeros(1, 4, 8, 8), torch.ones(1), torch.zeros(1, dtype=torch.long)
    for policy, said in [
        (BlockSpan(3, 3), "holds none of the 4 blocks"),
        (DeltaDiT(blocks=9), "9 of 4 blocks"),
        (FirstBlock(first=3, last=1), "none is left between"),
    ]:
        with pytest.raises(PolyditError, match=said):
            accelerate(model, policy)
    with (
        accelerate(model, BlockSpan(interval=3, order=2)) as handle,
        pytest.raises(PolyditError, match="order 2 needs 3"),
    ):
        handle.policy.plan(6, handle.sites)
    with accelerate(model, DeltaDiT(2)), pytest.raises(PolyditError, match="must know the number of steps"):
        model(x, t, y)
    with accelerate(
        model, MagCache([1.0] * 4)
    ):  # a run of which nobody says the length has that of the ratios
        for step in range(4):
            model(x, t - 0.1 * step, y)
        with pytest.raises(PolyditError, match="its ratios are of 4 steps, and the run goes on"):
            model(x, t - 0.4, y)
    with accelerate(model, FirstBlock(0.1)) as handle:
        with pytest.raises(PolyditError, match="decides while it runs"):
            handle.policy.plan(4, handle.sites)
        with pytest.raises(PolyditError, match="side branch"):
            model(x, t, y, block_controlnet_hidden_states=[None] * 4)
    with accelerate(model, FORA(2)):
        model(x, t, y, block_controlnet_hidden_states=[torch.zeros(1, 16, 32)] * 4)
