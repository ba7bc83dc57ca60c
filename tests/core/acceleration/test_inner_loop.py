"""Inner loop feedback: nothing when fresh, one block and a few numbers to train, nearer than reuse once trained."""

from __future__ import annotations

import pytest
import torch

from polydit.core.acceleration import BlockSpan, Feedback, InnerLoop, InnerLoopTraining, accelerate
from polydit.core.diffusion import Parameterization, TimeConvention
from polydit.core.errors import PolyditError

FLOW = Parameterization(time=TimeConvention(scale=10.0))


def test_a_fresh_one_caches_the_front(make_dit, run):
    model = make_dit()
    feedback = Feedback(model, 1, 3)
    plain = run(model)
    with accelerate(model, InnerLoop(feedback, 1)):
        assert torch.equal(run(model), plain)
    calls = []
    for index, block in enumerate(model.blocks):
        block.attn.register_forward_hook(lambda *_, index=index: calls.append(index))
    with accelerate(model, InnerLoop(feedback, 2)) as handle:
        looped = run(model)
        assert handle.report().plan.full_steps == list(range(0, 12, 2))
        assert torch.equal(run(model), looped)
    assert calls[:7] == [0, 1, 2, 3, 1, 2, 3]
    with accelerate(model, BlockSpan(0, 1, 2, residual=False)):
        assert torch.equal(run(model), looped)
    assert not torch.equal(looped, plain)


def test_the_same_time_again_is_exact(make_dit):
    """Zero scales, equal conditions: the loop runs into what it gave before."""
    model = make_dit()
    x, t, y = torch.randn(2, 4, 8, 8), torch.full((2,), 3.0), torch.tensor([0, 3])
    with torch.no_grad():
        plain = model(x, t, y).sample
    with accelerate(model, InnerLoop(Feedback(model, 1, 3), 2)) as handle, handle.run(2), torch.no_grad():
        assert torch.equal(model(x, t, y).sample, plain)
        handle.clock._key = None  # the next call is another step, at the same time
        assert torch.equal(model(torch.zeros_like(x), t, y).sample, plain)


def test_size_of_a_published_one():
    from polydit.core.backbones.dit import DiTBlock

    with torch.device("meta"):
        block = DiTBlock(1152, 16)
    assert sum(parameter.numel() for parameter in block.parameters()) == 23_905_152


def test_training(make_dit, tmp_path):
    model = make_dit(depth=4, std=0.2)
    feedback = Feedback(model, 1, 3)
    block = sum(parameter.numel() for parameter in model.blocks[0].parameters())
    assert sum(parameter.numel() for parameter in feedback.parameters()) == block + 2
    before = {name: value.clone() for name, value in model.state_dict().items()}
    training = InnerLoopTraining(model, feedback, FLOW)
    labels = torch.tensor([0, 1, 2, 3] * 4)
    generator = torch.Generator().manual_seed(0)
    # Data of one kind each: what the network sees is predictable, as on images it was trained on.
    data = torch.randn(4, 4, 8, 8, generator=generator).repeat(4, 1, 1, 1)
    t, later = torch.full((16,), 0.6), torch.full((16,), 0.4)

    def loss(seed):
        noise = torch.randn(16, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
        return training.loss(lambda x, time: model(x, time, labels).sample, data, noise, t, later)

    start = loss(1000)
    start.backward()
    assert feedback.scales.grad.abs().min() > 0
    assert all(p.grad is None or not p.grad.any() for p in feedback.block.parameters())
    optimizer = torch.optim.Adam(feedback.parameters(), lr=5e-3)
    for seed in range(40):
        optimizer.zero_grad()
        loss(seed).backward()
        if seed == 1:  # one step later the scales have moved, and the block learns
            assert feedback.block.mlp.fc1.weight.grad.abs().max() > 0
        optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        assert loss(1000) < 0.7 * start  # a fresh one is reuse of the front
    feedback.save(tmp_path / "feedback.safetensors")
    other = Feedback(model, 1, 3, seed=1)
    other.load(tmp_path / "feedback.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(feedback.parameters(), other.parameters(), strict=True))
    with pytest.raises(PolyditError, match="not the feedback of this network and loop"):
        Feedback(model, 1, 4).load(tmp_path / "feedback.safetensors")
    with pytest.raises(PolyditError, match="less noise"):
        training.loss(lambda x, time: x, data, data, later, t)
    with pytest.raises(PolyditError, match="at least one in front"):
        Feedback(model, 0, 2)
