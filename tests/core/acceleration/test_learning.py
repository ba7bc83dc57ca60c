"""Caches that learn from a pipeline's own runs: they beat fixed ones of equal cost, and the network stays as it was."""

from __future__ import annotations

import pytest
import torch

from polydit.core.acceleration import (
    FORA,
    BlockSpan,
    Feedback,
    InnerLoop,
    Replay,
    Routed,
    Router,
    accelerate,
    learn_feedback,
    learn_router,
    learning,
)
from polydit.core.acceleration.learning import count_steps, last_call
from polydit.core.acceleration.plan import Plan
from polydit.core.errors import PolyditError
from polydit.core.probing.calls import call_of

from .conftest import relative_error

STEPS = 8


def error(model, run, policy):
    plain = run(model, STEPS)
    with accelerate(model, policy) as handle:
        found = run(model, STEPS)
        computed = handle.report()
    return relative_error(found, plain), computed.computed / computed.asked


def backwards(router):
    """What the router computes, for another order of the sites: equally many, other ones."""
    table = (router.logits.detach().sigmoid() > 0.1).tolist()
    rows = [[True] * len(router.sites)] + [row[::-1] for row in table[1:]]
    return Replay(FORA(), Plan(router.sites, tuple(map(tuple, rows))))


@pytest.mark.parametrize("separate", [False, True])
def test_a_router_learns_where_computing_pays(make_dit, run, separate):
    model = make_dit(depth=4, std=0.12)
    with torch.no_grad():  # two blocks hardly do anything, so it is the others that are worth computing
        for block in model.blocks[:2]:
            for parameter in block.parameters():
                parameter *= 0.3
    before = {name: value.clone() for name, value in model.state_dict().items()}
    told = []
    router = learn_router(
        model,
        lambda number: run(model, STEPS, separate=separate),
        passes=40,
        share=0.5,
        refresh=20,
        told=lambda done, error: told.append(error),
    )
    assert router.share() == pytest.approx(0.5, abs=0.01)
    assert len(told) == 40
    ours, cost = error(model, run, Routed(router))
    assert cost == pytest.approx(0.5, abs=0.01)
    other, same_cost = error(model, run, backwards(router))
    assert same_cost == pytest.approx(cost)
    assert ours < 0.7 * other
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.blocks.parameters())
    assert "forward" not in vars(model)


def test_steps_that_do_not_change_the_image_teach_the_router_nothing(make_dit, run, monkeypatch):
    model = make_dit(depth=2, std=0.12)
    weights = torch.zeros(STEPS)
    weights[3] = STEPS - 1
    monkeypatch.setattr(learning._RouterLessons, "image_errors", lambda self, run: weights)
    fresh = Router.of(model, STEPS, torch.Generator().manual_seed(0)).logits.detach()
    router = learn_router(model, lambda number: run(model, STEPS), passes=3, share=0.5)
    moved = router.logits.detach() - fresh
    still = [step for step in range(1, STEPS) if step != 3]
    assert float(moved[still].std()) < 1e-5  # all scores are shifted alike in the end
    assert float((moved[3] - moved[1, 0]).abs().min()) > 0.05


def test_a_feedback_block_beats_the_cache_of_the_front(make_dit, run, tmp_path):
    model = make_dit(depth=4, std=0.15)
    feedback = learn_feedback(model, lambda number: run(model, STEPS), passes=30, learning_rate=5e-3)
    assert (feedback.start, feedback.stop) == (1, 3)
    ours, _ = error(model, run, InnerLoop(feedback))
    fresh, _ = error(model, run, InnerLoop(Feedback(model, 1, 3)))
    assert fresh == error(model, run, BlockSpan(0, 1, 2, residual=False))[0]
    assert ours < 0.8 * fresh
    feedback.save(tmp_path / "feedback.safetensors")
    assert error(model, run, InnerLoop(Feedback.read(tmp_path / "feedback.safetensors", model)))[0] == ours
    with pytest.raises(PolyditError, match="holds no feedback block"):
        Feedback.read(tmp_path / "gone.safetensors", model)


def test_shares_of_a_router():
    router = Router(5, ["a", "b", "c", "d"], torch.Generator().manual_seed(0))
    order = router.logits[1:].flatten().argsort()
    for share, computed in ((1.0, 20), (0.2, 4), (0.5, 10), (0.55, 11)):
        router.meet(share)
        assert router.share() == pytest.approx(computed / 20)
    router = Router(5, ["a", "b", "c", "d"], torch.Generator().manual_seed(0))
    router.meet(0.5)
    assert torch.equal(router.logits[1:].flatten().argsort(), order)
    with pytest.raises(PolyditError, match=r"share 0\.1: give 0\.20 to 1"):
        router.meet(0.1)


def test_what_cannot_be_learned_is_refused(make_dit, run):
    model = make_dit(depth=2)
    assert count_steps(model, lambda: run(model, 5)) == 5
    state, answer = last_call(model, lambda: run(model, 5))
    assert state.shape == answer.shape
    with pytest.raises(PolyditError, match="in one step only"):
        learn_router(model, lambda number: run(model, 1))
    with pytest.raises(PolyditError, match=r"share 0\.1: of 5 steps the first is full"):
        learn_router(model, lambda number: run(model, 5), share=0.1)
    with pytest.raises(PolyditError, match="all must be alike"):
        learn_router(model, lambda number: run(model, 5 + number), passes=3, share=0.6)
    with accelerate(model, FORA()), pytest.raises(PolyditError, match="has one already"):
        learn_feedback(model, lambda number: run(model, 5))
    assert "forward" not in vars(model)


def test_blocks_that_are_run_past_the_forward_are_refused(make_dit):
    model = make_dit(depth=2)

    def walk(number):  # as groups of tokens do
        for step in range(4):
            with call_of(model, timestep=torch.tensor(float(4 - step))), torch.no_grad():
                model.blocks[0].attn(torch.zeros(1, 4, 32))
                model.blocks[1].attn(torch.zeros(1, 4, 32))

    for learn in (
        lambda: learn_router(model, walk, share=0.5),
        lambda: learn_feedback(model, walk, loop=(1, 2)),
        lambda: last_call(model, lambda: walk(0)),
    ):
        with pytest.raises(PolyditError, match="its blocks are run past its forward"):
            learn()
    assert "forward" not in vars(model)
