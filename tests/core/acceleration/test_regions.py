"""Region-adaptive sampling: the released selection, and what leaving tokens out may and may not change."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from safetensors.torch import load_file
from torch import nn

from polydit.core.acceleration import FORA, RAS, accelerate
from polydit.core.acceleration.regions import Selection
from polydit.core.diffusion import Guidance, Parameterization, TimeConvention, ddim
from polydit.core.errors import PolyditError

STEPS = 10


def test_released_selection(golden):
    data = load_file(golden / "ras" / "selection.safetensors")
    settings = RAS(ratio=0.5, start=4, end=12, resets=(8,), released=True)
    selection = Selection(settings, (2, 2), 12)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(12)
    x = data["x0"]
    for step in range(12):
        velocity = selection.merge(step, data["model_outputs"][step : step + 1])
        x = x + (scheduler.sigmas[step + 1] - scheduler.sigmas[step]) * velocity
        assert settings.is_partial(step, 12) == bool(data["partial"][step])
        expected = data["active"][step]
        if (expected >= 0).any():  # a set: the released order is that of the metric
            assert selection.active[0].tolist() == sorted(expected.tolist())
    torch.testing.assert_close(x, data["final"], atol=1e-5, rtol=1e-5)
    dropped = data["dropped"].flatten()
    assert torch.equal(selection.dropped[0], (dropped - dropped.min()).long() + selection.dropped.min())


def most_dropped(**settings):
    """Predictions whose order hardly changes: who is left out how often?"""
    selection = Selection(RAS(start=1, **settings), (1, 1), 25)
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(2, 4, 8, 8, generator=generator)
    for step in range(25):
        selection.merge(step, base + 0.05 * torch.randn(2, 4, 8, 8, generator=generator))
    assert selection.dropped.sum() == 2 * 24 * 32
    return int(selection.dropped.max())


def test_nobody_starves():
    assert most_dropped(starvation=0.0) >= 23
    assert most_dropped(starvation=0.1, released=True) == 24  # dropped once, dropped for ever
    for high_ratio in (0.0, 0.3, 1.0):
        assert most_dropped(starvation=0.3, high_ratio=high_ratio) < 18


def test_how_many_tokens():
    assert RAS(ratio=0.5).skips(5, 64, 12) == 32
    assert RAS(ratio=0.125).skips(5, 1024, 28) == 896
    groups = RAS(ratio=0.5, start=4, step_change=256, step_length=4)
    assert [groups.skips(step, 4096, 30) for step in (4, 16, 28)] == [1280, 2048, 2816]
    assert [step for step in range(28) if not RAS(resets=(12, 20)).is_partial(step, 28)] == [
        0,
        1,
        2,
        3,
        12,
        20,
    ]


@pytest.fixture
def setting(make_dit):
    def build(batch=2, height=8, width=8, separate=False, **options):
        model = make_dit(**options)
        noise = torch.randn(batch, 4, height, width, generator=torch.Generator().manual_seed(3))
        flow, guidance = Parameterization(time=TimeConvention(scale=10.0)), Guidance(scale=2.0)
        labels, null = torch.arange(batch), torch.full((batch,), 5)

        def ask(x, t, class_labels):
            return model(x, t, class_labels).sample

        if separate:
            denoise = guidance.separate(
                lambda x, t: ask(x, t, labels), lambda x, t: ask(x, t, null), flow.time
            )
        else:
            denoise = guidance.doubled(ask, {"class_labels": labels}, {"class_labels": null}, flow.time)

        @torch.no_grad()
        def run(guide=lambda f: f, steps=STEPS, visit=None):
            times = [1 - i / steps for i in range(steps + 1)]
            return ddim(guide(denoise), noise, flow, times, visit=visit)

        return model, run

    return build


@pytest.mark.parametrize("position", ["sincos", "rope"])
@pytest.mark.parametrize("separate", [False, True])
def test_fewer_tokens(setting, position, separate):
    model, run = setting(height=4, width=12, separate=separate, position=position)
    plain = run()
    with accelerate(model, RAS(ratio=0.25, start=3, resets=(6,))) as handle:
        first = run(handle.guide)
        assert handle.tokens_run == [12] * 3 + [3] * 3 + [12] + [3] * 3
        run(handle.guide, steps=5)
        assert torch.equal(run(handle.guide), first)
    assert 0 < (first - plain).norm() < 0.3 * plain.norm()
    assert torch.equal(run(), plain)
    assert all("forward" not in module.__dict__ for module in model.modules())


def test_ratio_1_and_all_tokens_are_dense(setting, monkeypatch):
    model, run = setting(position="sincos+rope")
    plain = run()
    with accelerate(model, RAS(ratio=1.0)) as handle:
        assert torch.equal(run(handle.guide), plain)
    everyone = torch.arange(16).expand(2, -1)

    def all_tokens(self, step, prediction):
        self.active = everyone

    monkeypatch.setattr(Selection, "_choose", all_tokens)
    with accelerate(model, RAS(ratio=0.5, start=2)) as handle:
        torch.testing.assert_close(run(handle.guide), plain, atol=1e-5, rtol=1e-4)


def test_who_is_left_out_moves_by_the_kept_prediction(setting):
    model, run = setting(batch=1)
    states, left_out, kept = {}, {}, {}

    with accelerate(model, RAS(ratio=0.5, start=3)) as handle:

        def visit(step, x):
            selection = handle._selection
            states[step], kept[step] = x, selection.kept
            mask = torch.ones(16, dtype=torch.bool)
            if selection.active is not None:
                mask[selection.active[0]] = False
                left_out[step] = mask.view(4, 4).repeat_interleave(2, 0).repeat_interleave(2, 1)

        run(handle.guide, visit=visit)
    moved = (states[6] - states[5]) * -STEPS
    torch.testing.assert_close(moved[..., left_out[5]], kept[5][..., left_out[5]], atol=1e-4, rtol=1e-4)
    assert (moved[..., ~left_out[5]] - kept[5][..., ~left_out[5]]).abs().max() > 1e-3


def test_left_out_tokens_stay_visible(setting):
    """With the kept keys and values the result is nearer to the dense one than without."""
    model, run = setting(height=16, width=16, std=0.12, qk_norm="rms")
    plain, errors = run(steps=20), []
    for blind in (False, True):
        with accelerate(model, RAS(ratio=0.25, start=3, starvation=0.3)) as handle:
            if blind:
                handle._complete = lambda fresh, index, axis: fresh
            errors.append(float((run(handle.guide, steps=20) - plain).norm()))
    assert errors[0] < errors[1]


def test_stable_diffusion_3():
    torch.manual_seed(0)
    model = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=8, caption_projection_dim=32, pooled_projection_dim=8,
        pos_embed_max_size=8,
    ).eval()  # fmt: skip
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    noise, text, pooled = torch.randn(1, 4, 8, 12), torch.randn(1, 5, 8), torch.randn(1, 8)
    flow = Parameterization(time=TimeConvention(scale=10.0))

    @torch.no_grad()
    def run(guide=lambda f: f):
        times = [1 - i / STEPS for i in range(STEPS + 1)]
        return ddim(guide(lambda x, t: model(x, text, pooled, t).sample), noise, flow, times)

    plain, tokens = run(), []
    model.transformer_blocks[0].ff.register_forward_pre_hook(lambda m, args: tokens.append(args[0].shape[1]))
    with accelerate(model, RAS(start=3)) as handle:
        partial = run(handle.guide)
    assert tokens == [24] * 3 + [12] * 7
    assert 0 < (partial - plain).norm() < 0.2 * plain.norm()
    assert torch.equal(run(), plain)


def test_in_training_all_tokens_are_run(setting):
    model, run = setting()
    model.train()
    torch.manual_seed(0)  # labels are dropped
    plain = run()
    with accelerate(model, RAS(ratio=0.25, start=2)) as handle:
        torch.manual_seed(0)
        with pytest.warns(UserWarning, match="training mode"):
            assert torch.equal(run(handle.guide), plain)
        assert handle.tokens_run == []
        model.eval()
        assert not torch.equal(run(handle.guide), plain)


def test_its_report(setting):
    model, run = setting()
    with accelerate(model, RAS(ratio=0.25, start=3, resets=(6,))) as handle:
        run(handle.guide)
        report = handle.report()
        assert report.plan.full_steps == [0, 1, 2, 6]
        assert (report.asked, report.computed) == (STEPS * 16, 4 * 16 + 6 * 4)
        assert report.bytes > 0
        assert "4 of 10 steps in full" in str(report)
        with handle.run(STEPS):
            run(handle.guide)
        assert handle.report() == report


def test_variance_beside_the_prediction_does_not_count():
    prediction = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    chosen = []
    for more in (torch.zeros(1, 0, 8, 8), 9 * torch.randn(1, 4, 8, 8)):
        selection = Selection(RAS(start=1), (2, 2), 10, channels=4)
        selection.merge(0, torch.cat([prediction, more], dim=1))
        chosen.append(selection.active)
    assert torch.equal(*chosen)


def test_what_is_refused(setting, make_dit):
    unknown = nn.Linear(2, 2)
    unknown.config = SimpleNamespace(patch_size=2)
    for make, said in [
        (lambda: RAS(ratio=0.0), "ratio 0"),
        (lambda: RAS(start=0), "start 0"),
        (lambda: RAS(metric="mean"), "metric 'mean'"),
        (lambda: RAS(starvation=-3.0), "starvation -3"),
        (lambda: RAS(resets=(-1,)), "resets"),
        (lambda: RAS(high_ratio=0.0, released=True), "leaves no token over"),
        (lambda: accelerate(make_dit(conv_kernel=3), RAS()), "need all tokens"),
        (lambda: accelerate(unknown, RAS()), "nobody has said"),
    ]:
        with pytest.raises(PolyditError, match=said):
            make()
    model, run = setting()
    with accelerate(model, RAS()), pytest.raises(PolyditError, match="has one already"):
        accelerate(model, FORA(2))
    with accelerate(model, RAS()), pytest.raises(PolyditError, match=r"through handle\.guide"):
        run()
    with accelerate(model, RAS(), strict=True) as handle, pytest.raises(PolyditError, match="one step only"):
        run(handle.guide, steps=1)
