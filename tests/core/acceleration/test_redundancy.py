"""The study of what changes from step to step: closed forms, that it changes nothing, and that its plan is of use."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from polydit.core.acceleration import FORA, Plan, Replay, accelerate, study
from polydit.core.errors import PolyditError
from polydit.core.media.chart import line_chart

STEPS = 8


class Layer(nn.Module):
    """A block whose attention gives ``time`` times a constant, and whose MLP gives the constant."""

    class Part(nn.Module):
        def __init__(self, moves, seed):
            super().__init__()
            self.moves = moves
            self.register_buffer("unit", torch.randn(3, 4, generator=torch.Generator().manual_seed(seed)))

        def forward(self, x, time):
            return (time if self.moves else 1.0) * self.unit.expand_as(x)

    def __init__(self, seed):
        super().__init__()
        self.attn, self.mlp = self.Part(True, seed), self.Part(False, seed)

    def forward(self, hidden_states, time):
        return hidden_states + self.attn(hidden_states, time) + self.mlp(hidden_states, time)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Layer(0), Layer(1)])

    def forward(self, hidden_states, timestep):
        for block in self.blocks:
            hidden_states = block(hidden_states, timestep)
        return hidden_states


def walk(model, steps=STEPS):
    for step in range(steps):
        model(torch.zeros(2, 3, 4), torch.tensor(float(steps - step)))


def test_closed_forms():
    model = Model().eval()
    found = study(model, [lambda: walk(model)] * 3)
    assert (found.steps, found.runs) == (STEPS, 3)
    assert set(found.curves) == {"attn", "mlp", "block"}  # no fused attention product, so no keys
    for index, block in enumerate(model.blocks):
        moving = found.curves["attn"][f"blocks.{index}.attn"]
        unit = block.attn.unit.abs()
        assert moving.change == pytest.approx([float(unit.mean())] * (STEPS - 1), rel=1e-5)
        assert moving.variance == pytest.approx([float(unit.var(unbiased=False))] * (STEPS - 1), rel=1e-5)
        assert moving.relative == pytest.approx([1 / (2 * t - 1) for t in range(STEPS, 1, -1)], rel=1e-5)
        assert moving.spread == [0.0] * (STEPS - 1)
        still = found.curves["mlp"][f"blocks.{index}.mlp"]
        assert still.change == still.variance == still.relative == [0.0] * (STEPS - 1)
    assert 0 < found.depth["blocks.1"] <= 1
    content = json.loads(found.to_json())
    assert content["curves"]["attn"]["blocks.0.attn"]["change"] == pytest.approx(moving.change, rel=1)
    plan = found.plan(0.5)
    assert all(plan.of(f"blocks.{i}.mlp") == (True,) + (False,) * (STEPS - 1) for i in range(2))
    assert sum(plan.of("blocks.0.attn")) == sum(plan.of("blocks.1.attn")) > 1
    assert plan.reused >= 0.5
    assert Plan.from_json(plan.to_json()) == plan
    with accelerate(model, Replay(FORA(), plan)) as handle:
        walk(model)
        replayed = handle.report().plan
    assert all(replayed.of(name) == plan.of(name) for name in plan.sites)


def test_nothing_is_changed_and_all_is_seen(make_dit, run):
    model = make_dit()
    plain, hooks = run(model), [len(m._forward_hooks) for m in model.modules()]
    outs = []
    found = study(model, [lambda: outs.append(run(model)), lambda: outs.append(run(model, separate=True))])
    assert torch.equal(outs[0], plain)
    assert [len(m._forward_hooks) for m in model.modules()] == hooks
    assert {kind: len(sites) for kind, sites in found.curves.items()} == dict.fromkeys(
        ("attn", "mlp", "k", "v", "block"), 4
    )
    for sites in found.curves.values():
        for curve in sites.values():
            assert len(curve.change) == 11
            assert all(0 < value < 1 for value in curve.relative)


def test_what_is_measured_is_what_costs(make_dit, run):
    """Sites that change more cost more to leave out."""
    model = make_dit(depth=4)
    for index, block in enumerate(model.blocks):
        block.modulation.weight.data.mul_(index)  # the first sees no time, the last most of it
    plain = run(model)
    found = study(model, [lambda: run(model)])
    curves = {**found.curves["attn"], **found.curves["mlp"]}
    measured = torch.tensor([sum(curve.relative) for curve in curves.values()])
    costs = []
    for name in curves:
        rows = tuple(tuple(site != name or step % 4 == 0 for site in curves) for step in range(12))
        with accelerate(model, Replay(FORA(), Plan(tuple(curves), rows))):
            costs.append(float((run(model) - plain).norm()))
    ranks = torch.stack([values.argsort().argsort().double() for values in (measured, torch.tensor(costs))])
    assert torch.corrcoef(ranks)[0, 1] > 0.5


def test_what_is_refused(make_dit, run):
    model = make_dit()
    with pytest.raises(PolyditError, match="at least 2"):
        study(model, [lambda: run(model, 1)])
    with pytest.raises(PolyditError, match="runs of 3, 4 steps"):
        study(model, [lambda: run(model, 3), lambda: run(model, 4)])
    with pytest.raises(PolyditError, match="no run"):
        study(model, [])
    assert not model.blocks[0].attn.__dict__.get("forward")
    found = study(model, [lambda: run(model, 4)])
    with pytest.raises(PolyditError, match=r"give 0\.25 to 1"):
        found.plan(0.1)


def test_chart():
    picture = line_chart({"a": [(0, 1.0), (1, 0.1)], "b": [(0, float("nan"))]}, "t", "x", "y", log=True)
    assert picture.size == (900, 520)
    assert len(picture.getcolors(1 << 20)) > 4
    points = line_chart({"one": [(3.0, 40.0)]}, "t", "x", "y", lines=False)
    assert points.getbbox() is not None
    with pytest.raises(ValueError, match="no point"):
        line_chart({"a": [(0, -1.0)]}, "t", "x", "y", log=True)
